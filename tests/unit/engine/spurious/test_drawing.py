"""What is promised as enough is enough: twins and environments reach their judges past hold-out and draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.builders import tiny_hosted
from tests.spurious_texts import ambiguous
from trephine.domain.errors import AttributeConfoundedError
from trephine.domain.spurious_heads import Pooling, ProbeHead
from trephine.domain.spurious_removal import Judge, RemovalBudget, RemoveSpuriousFeatures
from trephine.domain.spurious_texts import FEWEST_GIVEN, FEWEST_JUDGED, LabelledText
from trephine.engine.models.quanta import finish
from trephine.engine.spurious.drawing import draw_judged
from trephine.engine.spurious.examples import Example, hold_out, sample
from trephine.engine.spurious.judging import judge_features
from trephine.engine.spurious.study import open_study


def _examples(count: int, twins: Sequence[int] = (), environments: int = 0) -> list[Example]:
    """Texts of label and attribute in turn, environments in turns of two."""
    return [
        Example(
            text=str(number),
            ids=(1, number + 2),
            label=number % 2,
            attribute=number % 2,
            twin=(9, number + 2) if number in twins else None,
            environment=str(number // 2 % environments) if environments else None,
        )
        for number in range(count)
    ]


def _twins(examples: Sequence[Example]) -> int:
    return sum(one.twin is not None for one in examples)


@pytest.mark.parametrize("seed", range(20))
def test_ten_twins_of_two_thousand_texts_leave_eight_to_judge_by(seed: int) -> None:
    """Wherever they stand, whatever their labels."""
    for twins in (range(10), range(0, 20, 2), (*range(0, 8, 2), *range(1, 13, 2))):
        kept, held_out = hold_out(_examples(2000, twins), seed)
        assert len(held_out) == 400
        assert _twins(draw_judged(kept, 256, seed)) == _twins(kept) >= FEWEST_JUDGED


@pytest.mark.parametrize(("count", "environments"), [(40, 2), (1000, 20), (1000, 40), (2000, 50), (400, 20)])
def test_environments_of_ten_texts_of_either_label_are_judged_by(count: int, environments: int) -> None:
    """As many as the budget has room for, and two at least."""
    for seed in range(5):
        kept, held_out = hold_out(_examples(count, environments=environments), seed)
        assert len(held_out) == count // 5
        for budget in (8, 64, 256):
            drawn = draw_judged(kept, budget, seed)
            sizes = Counter((one.environment, one.label) for one in drawn)
            judged = [
                name for name in {name for name, _ in sizes} if min(sizes[name, y] for y in (0, 1)) >= 8
            ]
            room = max(budget, 4 * FEWEST_JUDGED)
            assert len(judged) >= min(environments, room // (2 * FEWEST_JUDGED)) >= 2
            assert len(drawn) == min(len(kept), room)


def test_twins_come_first_within_an_environment_as_well() -> None:
    """Forty twins of a thousand texts in twenty environments are all drawn."""
    examples = _examples(1000, range(0, 1000, 25), environments=20)
    assert _twins(draw_judged(examples, 512, 0)) == 40


def test_without_either_nothing_is_drawn_otherwise() -> None:
    """Nor where all have a twin: no figure depends on what is not there."""
    for twins in ((), range(600)):
        examples = _examples(600, twins)
        assert draw_judged(examples, 100, 7) == sample(examples, 100, 7)


def _command(texts: Sequence[LabelledText], **changed: object) -> RemoveSpuriousFeatures:
    return RemoveSpuriousFeatures(
        training=tuple(texts),
        decision=ProbeHead(layer=1, pooling=Pooling.MEAN),
        budget=RemovalBudget(candidates=50, exact=0, effect_texts=24, fit_texts=64, random_sets=0),
        **changed,
    )


def test_the_fewest_that_are_taken_are_judged_by() -> None:
    """Ten twins of six hundred texts, and two environments of ten texts of either label."""
    hosted = tiny_hosted("llama")
    twinned = [
        one if place % 300 < 5 else replace(one, twin=None)
        for place, one in enumerate(ambiguous(300, twins=True))
    ]
    judged = finish(judge_features(finish(open_study(hosted, _command(twinned)))))
    assert judged.judges == (Judge.COUNTERFACTUALS,)
    parted = [replace(one, environment="AB"[place % 2]) for place, one in enumerate(ambiguous(20))]
    judged = finish(judge_features(finish(open_study(hosted, _command(parted)))))
    assert judged.judges == (Judge.ENVIRONMENTS,)


def test_what_is_left_is_counted_again() -> None:
    """Ten twins of one text stay together: held out with it, they leave none."""
    texts = ambiguous(40, twins=True)
    same = [replace(texts[0], twin=f"{texts[0].twin}{end}") for end in "abcdefghij"[:FEWEST_GIVEN]]
    rest = [replace(one, twin=None) for one in texts[1:]]
    study = open_study(tiny_hosted("llama"), _command([*same, *rest]))
    with pytest.raises(
        AttributeConfoundedError, match=r"there are 0\).* once a fifth is held out"
    ) as refused:
        finish(study)
    assert refused.value.context["field"] == "training.attribute"

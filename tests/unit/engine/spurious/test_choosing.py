"""How many features go, and in which order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import tiny_hosted
from tests.spurious_texts import ambiguous
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.domain.spurious_heads import LabelToken, Pooling, ProbeHead, TokenHead
from trephine.domain.spurious_removal import (
    ChoicePoint,
    Judge,
    JudgeEvidence,
    RemoveSpuriousFeatures,
    Standing,
)
from trephine.engine.models.quanta import finish
from trephine.engine.spurious.choosing import _why, choose, in_order
from trephine.engine.spurious.judging import Candidate
from trephine.engine.spurious.removal import _of_the_head
from trephine.engine.spurious.study import Study, open_study


@pytest.fixture(scope="module")
def study() -> Study:
    """Texts of which every fourth has a twin."""
    texts = tuple(
        replace(one, twin=one.twin if place % 4 < 2 else None)
        for place, one in enumerate(ambiguous(40, twins=True))
    )
    command = RemoveSpuriousFeatures(training=texts, decision=ProbeHead(layer=0, pooling=Pooling.MEAN))
    return finish(open_study(tiny_hosted("llama"), command))


def spurious(index: int, *, attribute_effect: float, score: float) -> Candidate:
    """A feature that was judged spurious."""
    evidence = JudgeEvidence(
        judge=Judge.COUNTERFACTUALS, share=score, attribute_effect=attribute_effect, label_effect=0.0,
        p_value=0.001, standing=Standing.SPURIOUS,
    )  # fmt: skip
    return Candidate(
        feature=FeatureRef(replacement=NEURONS, layer=0, index=index), node=index, effect=attribute_effect,
        standing=Standing.SPURIOUS, score=score, why="", evidence=(evidence,), attribute_probe=None,
    )  # fmt: skip


def test_a_purer_feature_goes_before_one_that_also_tells_the_label(study):
    """Half the attribute effect and a tenth of the task effect comes first; signs do not matter."""
    mixed = spurious(1, attribute_effect=2.0, score=0.8)
    pure = spurious(2, attribute_effect=1.0, score=0.96)
    small = spurious(3, attribute_effect=-0.5, score=0.96)
    certain = spurious(4, attribute_effect=0.1, score=1.0)
    _, ours = in_order(study, [mixed, small, certain, pure])
    assert [one.feature.index for one in ours] == [2, 3, 4, 1]


def test_progress_counts_what_is_tried(study):
    """A number of the budget and all that there are may be the same: it is tried, and counted, once."""
    command = replace(study.command, budget=replace(study.command.budget, counts=(1, 2)))
    ours = [spurious(index, attribute_effect=1.0, score=0.9) for index in (1, 2, 3)]
    told = [one for one in choose(replace(study, command=command), ours) if one and one.stage == "choosing"]
    assert [(one.done, one.total) for one in told] == [(0, 3), (1, 3), (2, 3)]


def test_why_says_what_was_taken_beside_a_persons_word():
    """With none of ours gone a head may still be what the criterion gained by, and is named then."""
    named, ours = spurious(1, attribute_effect=1.0, score=0.9), spurious(2, attribute_effect=1.0, score=0.9)
    points = [
        ChoicePoint(count=count, criterion=criterion, ambiguous_accuracy=1.0, leak=None, erased=erased)
        for count, criterion, erased in ((0, 0.0, False), (0, 0.8, True), (1, 0.9, False))
    ]
    free, head, removed = (_why(points, best, [named], [ours], "held-out part") for best in range(3))
    of_two = _why(points, 2, [], [ours, ours], "held-out part")
    assert "no number of them does better on the held-out part than none" in free
    assert head.startswith("removing none of 1 spurious features, beside 1 that a person named, with a head")
    assert head.endswith("from 0.000 to 0.800")
    assert removed.startswith("removing the first 1 of 1 spurious features, beside 1 that")
    assert "first 1 of 2 spurious features, by attribute effect per effect on the task" in of_two


def test_few_twins_decide_with_the_error_of_few(study):
    """The criterion is of all texts that have a twin, and of the twins, and so is its error."""
    paired = [one for one in study.everything if one.twin is not None]
    assert len([one for one in study.data.held_out if one.twin is not None]) < len(paired)
    assert len(paired) < len(study.everything)
    choice = finish(choose(study, [spurious(2, attribute_effect=1.0, score=0.96)]))
    assert all(-1 < point.criterion < 1 for point in choice.points)
    assert all(0 <= point.error < 1 / len(paired) ** 0.5 for point in choice.points)
    assert choice.criterion.startswith("bits of the label")


def test_a_head_that_stays_decides_on_every_text_that_has_a_twin():
    """What was given and is not trained has seen none of them; the error is that of all."""
    texts = tuple(ambiguous(40, twins=True))
    tokens = (LabelToken(label=texts[0].label, token=" the"), LabelToken(label=texts[-1].label, token=" is"))
    command = RemoveSpuriousFeatures(training=texts, decision=TokenHead(tokens=tokens), refit=False)
    study = finish(open_study(tiny_hosted("llama"), command))
    choice = finish(choose(study, [spurious(2, attribute_effect=1.0, score=0.96)]))
    assert max(point.error for point in choice.points) < 1 / len(study.everything) ** 0.5


def test_twins_of_training_count_where_the_validation_split_has_none():
    """Else nothing would be known of the attribute, and as many would go as cost little."""
    texts, apart = tuple(ambiguous(40, twins=True)), tuple(ambiguous(60, twins=False)[40:])
    known = {one.text for one in texts} | {one.twin for one in texts}
    validation = tuple(one for one in apart if one.text not in known)
    decision = ProbeHead(layer=0, pooling=Pooling.MEAN)
    command = RemoveSpuriousFeatures(
        training=texts,
        validation=tuple(replace(one, attribute=None) for one in validation),
        decision=decision,
    )
    study = finish(open_study(tiny_hosted("llama"), command))
    choice = finish(choose(study, [spurious(2, attribute_effect=1.0, score=0.96)]))
    assert choice.by_twins
    assert choice.criterion.endswith("by heads that were trained without them")


def test_eight_twins_are_said_to_be_too_few():
    """They make a head without the attribute, but none that has not seen one of them."""
    texts = tuple(
        replace(one, twin=one.twin if place < 8 else None)
        for place, one in enumerate(ambiguous(40, twins=True, attribute=False))
    )
    command = RemoveSpuriousFeatures(training=texts, decision=ProbeHead(layer=0, pooling=Pooling.MEAN))
    study = finish(open_study(tiny_hosted("llama"), command))
    one = spurious(2, attribute_effect=1.0, score=0.96)
    choice = finish(choose(study, [one]))
    assert not any(point.erased for point in choice.points)
    said = " ".join(_of_the_head(study, replace(choice, removed=(one,))))
    assert "of 8 texts with a twin fewer than 8 are left once a part is held out" in said


def test_twins_of_one_label_cannot_show_that_a_head_is_better():
    """What the other label's texts lose is unknown, and the report says so rather than nothing."""
    texts = ambiguous(60, twins=True, attribute=False)
    texts = tuple(one if one.label == texts[0].label else replace(one, twin=None) for one in texts)
    command = RemoveSpuriousFeatures(training=texts, decision=ProbeHead(layer=0, pooling=Pooling.MEAN))
    study = finish(open_study(tiny_hosted("llama"), command))
    one = spurious(2, attribute_effect=1.0, score=0.96)
    choice = finish(choose(study, [one]))
    assert any(point.erased for point in choice.points)
    assert not choice.erased
    said = " ".join(_of_the_head(study, replace(choice, removed=(one,))))
    other = next(name for name in study.data.labels if name != texts[0].label)
    assert f"of the texts that have a twin none is of {other}" in said


def test_why_nothing_goes_is_told_as_it_is():
    """What was judged spurious and stays, by a person's word or for its sign, was judged spurious."""
    point = [ChoicePoint(count=0, criterion=0.0, ambiguous_accuracy=1.0, leak=None)]
    against = spurious(1, attribute_effect=-1.0, score=0.9)
    kept = replace(spurious(2, attribute_effect=1.0, score=0.9), standing=Standing.TASK, override="a word")
    task = replace(kept, evidence=())

    def why(*candidates: Candidate) -> str:
        return _why(point, 0, [], [], "held-out part", candidates)

    assert why(task, against).startswith(
        "everything that was judged spurious (1) works against the attribute"
    )
    assert why(task, kept) == "everything that was judged spurious (1) is kept by a person's word"
    assert why(task) == "no feature was judged spurious: nothing undecided is removed"


@pytest.mark.parametrize("best", [0, 1])
def test_what_works_against_the_attribute_is_counted_apart(best: int):
    """The list shows all that was judged spurious; a number of which some are left out is another one."""
    points = [
        ChoicePoint(count=count, criterion=float(count), ambiguous_accuracy=1.0, leak=None)
        for count in (0, 1)
    ]
    ours = [spurious(number, attribute_effect=1.0, score=0.9) for number in (1, 2)]
    against = [spurious(number, attribute_effect=-1.0, score=0.9) for number in (3, 4, 5)]
    told = _why(points, best, [], ours, "held-out part", (*ours, *against))
    assert "2 features were judged spurious" in told or "the first 1 of 2 spurious features" in told
    assert " (3 more work against the attribute and stay), " in told
    assert "more work" not in _why(points, best, [], ours, "held-out part", ours)

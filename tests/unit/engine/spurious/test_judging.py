"""Judges are asked about the texts that effects were measured on, and by as many as they need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import tiny_hosted
from tests.spurious_texts import ambiguous, attribute_texts, labelled
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_heads import Pooling, ProbeHead
from trephine.domain.spurious_removal import (
    Judge,
    JudgeEvidence,
    JudgingRules,
    RemovalBudget,
    RemoveSpuriousFeatures,
    Standing,
)
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.spurious.judging import Candidate, Judged, judge_features
from trephine.engine.spurious.removal import remove_spurious_features
from trephine.engine.spurious.study import open_study

PROBE = ProbeHead(layer=0, pooling=Pooling.MEAN)
PARTLY = [(0, 0, 60), (1, 1, 60), (0, 1, 15), (1, 0, 15)]


@pytest.fixture(scope="module")
def hosted() -> HostedModel:
    """A tiny Llama."""
    return tiny_hosted("llama")


def _judged(hosted: HostedModel, effect_texts: int, **given: Any) -> Judged:
    budget = RemovalBudget(candidates=64, exact=0, counts=(1,), effect_texts=effect_texts, random_sets=0)
    command = RemoveSpuriousFeatures(**{"decision": PROBE, "budget": budget, **given})
    return finish(judge_features(finish(open_study(hosted, command))))


@pytest.mark.parametrize(
    ("judge", "given"),
    [
        (
            Judge.ATTRIBUTE_EXAMPLES,
            {"training": labelled(PARTLY, 0), "attribute_texts": attribute_texts()},
        ),
        (Judge.COUNTERFACTUALS, {"training": labelled(PARTLY, 0, twins=True)}),
    ],
)
def test_as_much_of_the_attribute_is_taken_off_as_is_in_what_was_measured(hosted, judge, given):
    """Of 150 texts 48 are drawn, twelve of every group: there attribute and label do not go together.

    By all of them a feature of the attribute would be said to work against the label by 0.6 of what it does,
    and one of label and attribute alike would be called the attribute's.
    """
    found = _judged(hosted, 48, **given)
    for one in found.candidates:
        said = next(said for said in one.evidence if said.judge is judge)
        assert said.label_effect == pytest.approx(one.effect, abs=1e-6)


def test_all_of_it_is_taken_off_where_all_texts_are_measured(hosted):
    """Then the pairing is that of the ambiguous set: 0.6."""
    found = _judged(hosted, 256, training=labelled(PARTLY, 0), attribute_texts=attribute_texts())
    for one in found.candidates:
        said = one.evidence[0]
        assert said.label_effect == pytest.approx(one.effect - 0.6 * said.attribute_effect, abs=1e-6)


def test_examples_judge_however_few_texts_effects_are_measured_on(hosted):
    """Eight of either value are needed; of eight in all a guess by clusters stood in for them."""
    found = _judged(hosted, 8, training=ambiguous(), attribute_texts=attribute_texts())
    assert found.judges == (Judge.ATTRIBUTE_EXAMPLES,)


def _evidence(judge: Judge, effect: float) -> JudgeEvidence:
    return JudgeEvidence(
        judge=judge, share=0.9, attribute_effect=effect, label_effect=0.0, p_value=0.0,
        standing=Standing.SPURIOUS,
    )  # fmt: skip


def test_a_spread_over_environments_does_not_say_which_way_a_feature_goes():
    """What works against the attribute by its examples does so, however unlike environments are."""
    spread = _evidence(Judge.ENVIRONMENTS, 0.5)
    for evidence, effect in (
        ((_evidence(Judge.ATTRIBUTE_EXAMPLES, -0.3), spread), -0.3),
        ((_evidence(Judge.COUNTERFACTUALS, -0.1), _evidence(Judge.GROUPS, -0.2), spread), -0.2),
        ((spread,), 0.5),
        ((), 0.0),
    ):
        candidate = Candidate(
            feature=FeatureRef(layer=0, index=0), node=0, effect=1.0, standing=Standing.SPURIOUS, score=0.9,
            why="", evidence=evidence, attribute_probe=None,
        )  # fmt: skip
        assert candidate.attribute_effect == effect


UNTOLD = ambiguous(80, attribute=False)


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (UNTOLD, "nothing is known of the attribute: features"),
        (
            tuple(replace(one, environment=str(place // 4)) for place, one in enumerate(UNTOLD)),
            "of which no two have 8 texts of either label",
        ),
        (
            tuple(
                replace(one, twin=None if place > 3 else f"{one.text}x") for place, one in enumerate(UNTOLD)
            ),
            "texts with a twin, fewer than 8 of them different",
        ),
        (
            tuple(
                replace(one, attribute="X" if place > 3 else "Z") if one.label == "Q" else one
                for place, one in enumerate(UNTOLD)
            ),
            "texts, which are not 8 of every group",
        ),
    ],
)
def test_a_guess_says_what_was_given_and_is_too_little(hosted, training, said):
    """Clusters stand in for environments that are too small: nobody is to take it that these judged."""
    found = finish(
        remove_spurious_features(
            Session(hosted=hosted),
            RemoveSpuriousFeatures(
                training=training,
                decision=PROBE,
                budget=RemovalBudget(candidates=64, exact=0, counts=(1,), effect_texts=64, random_sets=0),
                judging=JudgingRules(clusters=2),
                resamples=10,
            ),
        )
    )
    assert found.judges == (Judge.CLUSTERS,)
    assert sum(said in one for one in found.caveats) == 1

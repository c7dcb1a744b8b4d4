"""Splits in which the attribute of some texts is not known, or a group has hardly any."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import tiny_hosted
from tests.spurious_texts import GROUPS, ambiguous, attribute_texts, balanced, labelled
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_heads import Pooling, ProbeHead
from trephine.domain.spurious_outcomes import Ground
from trephine.domain.spurious_removal import Override, RemovalBudget, RemoveSpuriousFeatures
from trephine.domain.spurious_texts import LabelledText
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.spurious.removal import remove_spurious_features

GONE = (Override(feature=FeatureRef(layer=0, index=3), remove=True, reason="so that something goes"),)
GIVEN: dict[str, Any] = {
    "training": ambiguous(),
    "attribute_texts": attribute_texts(),
    "decision": ProbeHead(layer=0, pooling=Pooling.MEAN),
    "budget": RemovalBudget(candidates=64, exact=0, counts=(1, 20), effect_texts=64, random_sets=1),
    "overrides": GONE,
    "resamples": 10,
}


@pytest.fixture(scope="module")
def session():
    """A tiny Llama."""
    return Session(hosted=tiny_hosted("llama"))


def _run(session, **changed: Any):
    return finish(remove_spurious_features(session, RemoveSpuriousFeatures(**{**GIVEN, **changed})))


def _partly(texts: tuple[LabelledText, ...]) -> tuple[tuple[LabelledText, ...], tuple[LabelledText, ...]]:
    """Every third text untold; and the others alone."""
    partly = tuple(one if place % 3 else replace(one, attribute=None) for place, one in enumerate(texts))
    return partly, tuple(one for one in partly if one.attribute is not None)


def test_figures_of_a_test_split_are_of_the_texts_that_are_told(session):
    """As if the others were not there, groups and scores included; the report says how many they are."""
    partly, told = _partly(balanced(9, seed=11))
    found, alone = (_run(session, test=test) for test in (partly, told))
    assert found.arms == alone.arms
    assert found.scores == alone.scores
    assert found.outcome == alone.outcome
    assert found.scores.scr is not None
    assert all(one.figure("worst_group") and one.figure("attribute_probe") for one in found.arms)
    said = "the attribute of 12 of 36 texts of the test split is not known: its figures are of the other 24"
    assert said in found.caveats
    assert set(found.caveats) - set(alone.caveats) == {said}


def test_a_validation_split_chooses_by_the_texts_that_are_told(session):
    """By their worst group, as if the others were not there; the outcome is of them, too."""
    partly, told = _partly(balanced(12, seed=11))
    given = {"training": ambiguous(attribute=False), "attribute_texts": ()}
    found, alone = (_run(session, validation=validation, **given) for validation in (partly, told))
    assert found.choices == alone.choices
    assert all(one.leak is not None for one in found.choices)
    assert found.outcome == alone.outcome
    assert (found.outcome.ground, found.outcome.texts) == (Ground.VALIDATION, 8)
    assert found.criterion.endswith("worst group of the validation split, of texts whose attribute is known")
    said = "of 16 of 48 texts of the validation split is not known: the worst group that was chosen by is of"
    assert sum(said in caveat for caveat in found.caveats) == 1
    assert any(
        "validation split alone tells" in caveat and "it chooses" in caveat for caveat in found.caveats
    )
    assert not any("nothing tells" in caveat for caveat in found.caveats)


MIXED = labelled([(0, 0, 40), (1, 1, 40), (0, 1, 16), (1, 0, 16)], 0)


def test_a_head_without_the_attribute_may_win_where_some_is_not_known(session):
    """Texts of all groups tell it, and held-out ones of all groups choose by it, one unknown or more."""
    partly, _ = _partly(MIXED)
    found = _run(session, training=partly, attribute_texts=())
    assert found.criterion.startswith("accuracy of the worst group")
    assert any(one.erased for one in found.choices)
    assert all(one.leak is not None and 0 <= one.criterion <= 1 for one in found.choices)
    few = tuple(one for place, one in enumerate(MIXED) if place < 84 or 96 <= place < 104)
    found = _run(
        session, training=(*few, *balanced(2, seed=11)), validation=balanced(6, seed=12), attribute_texts=()
    )
    assert any("fewer than 8 are of one of the four groups" in caveat for caveat in found.caveats)


@pytest.mark.parametrize("attribute", [True, False])
def test_a_head_that_nothing_held_out_can_judge_is_not_taken(session, attribute):
    """The report says so, and that the attribute is known, though of no held-out text that crosses it."""
    validation = ambiguous(12, seed=9, attribute=attribute)
    found = _run(session, training=MIXED, validation=validation, attribute_texts=())
    assert found.criterion.endswith("of all four groups no text is held out")
    assert any(one.erased for one in found.choices)
    assert not any(one.taken and one.erased for one in found.choices)
    assert any("not taken: no held-out texts tell" in caveat for caveat in found.caveats)


@pytest.mark.parametrize("counts", [(1, 1, 1, 1), (1, 1, 6, 6), (1, 6, 6, 6)])
def test_a_group_of_one_text_leaves_scores_out(session, counts):
    """After all the work the rest of the report stands; a probe has no half of that group to learn from."""
    sizes = [(*group, count) for group, count in zip(GROUPS, counts, strict=True)]
    found = _run(session, test=labelled(sizes, 11))
    assert found.chosen > 0
    assert (found.scores.scr, found.scores.tpp) == (None, None)
    assert all(one.figure("worst_group") and not one.figure("attribute_probe") for one in found.arms)
    assert any("no SCR and no TPP" in caveat for caveat in found.caveats)


def test_two_texts_of_every_group_are_enough_for_scores(session):
    """One to train on, one to measure."""
    found = _run(session, test=balanced(2, seed=11))
    assert found.scores.scr is not None
    assert all(one.figure("attribute_probe") for one in found.arms)
    assert not any("no SCR" in caveat for caveat in found.caveats)


CROSSED = labelled([(0, 0, 60), (1, 1, 60), (0, 1, 10), (1, 0, 10)], 4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "held-out ambiguous accuracy less how far the decision follows the attribute on examples"),
        (
            {
                "attribute_texts": (),
                "training": labelled([(0, 0, 60), (1, 1, 60), (0, 1, 10), (1, 0, 10)], 4, twins=True),
            },
            "bits of the label that decisions on texts and on their counterfactual twins tell",
        ),
        ({"attribute_texts": ()}, "accuracy of the worst group of the held-out part"),
        ({"validation": balanced(2, seed=8)}, "accuracy of the worst group of the validation split"),
    ],
)
def test_two_texts_of_a_group_do_not_choose_where_more_is_told(session, given, said):
    """One that is right by luck before anything goes would keep everything; where nothing else tells it does.

    What ships is measured on them nevertheless: the report says how they took part.
    """
    found = _run(session, **{"training": CROSSED, **given})
    assert found.criterion.startswith(said)
    assert (found.outcome.ground, found.outcome.texts) == (Ground.VALIDATION, 2)
    among = "among those that the number of features and the head were chosen by"
    assert (among in found.outcome.why) == ("worst group" not in said)

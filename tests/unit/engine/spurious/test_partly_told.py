"""Splits in which the attribute of some texts is not known, or a group has hardly any."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import tiny_hosted
from tests.spurious_texts import GROUPS, ambiguous, attribute_texts, balanced, labelled
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_heads import Pooling, ProbeHead
from trephine.domain.spurious_removal import Override, RemovalBudget, RemoveSpuriousFeatures
from trephine.domain.spurious_texts import LabelledText
from trephine.engine.quanta import finish
from trephine.engine.session import Session
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

"""Whether a removal held: the first ground that there is, and none where only examples tell the attribute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import resident_set
from tests.spurious_texts import ambiguous, attribute_texts, balanced, labelled
from trephine.domain.errors import InvalidRequestError
from trephine.domain.findings import Verdict
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_arms import Arm
from trephine.domain.spurious_heads import Pooling, ProbeHead
from trephine.domain.spurious_outcomes import UNSEEN, Ground
from trephine.domain.spurious_removal import JudgingRules, Override, RemovalBudget, RemoveSpuriousFeatures
from trephine.domain.spurious_texts import LabelledText
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.spurious.erasing import fit_erased, share_left
from trephine.engine.spurious.pooling import Readout
from trephine.engine.spurious.removal import remove_spurious_features

GONE = (Override(feature=FeatureRef(layer=0, index=3), remove=True, reason="so that something goes"),)
GIVEN: dict[str, Any] = {
    "training": ambiguous(),
    "attribute_texts": attribute_texts(),
    "decision": ProbeHead(layer=0, pooling=Pooling.MEAN),
    "budget": RemovalBudget(candidates=64, exact=0, counts=(1, 20), effect_texts=64, random_sets=0),
    "overrides": GONE,
    "resamples": 10,
}
TWINS = ambiguous(twins=True)
_JUDGED = "features were judged by texts of"


@pytest.fixture(scope="module")
def session():
    """A tiny Llama."""
    return Session(hosted=tiny_hosted("llama"))


def _run(session, **changed: Any):
    return finish(remove_spurious_features(session, RemoveSpuriousFeatures(**{**GIVEN, **changed})))


def test_a_decision_that_leaves_the_examples_alone_has_not_been_shown_to_hold(session):
    """On examples the erased head follows nothing, which says nothing of the texts; what would is told."""
    found = _run(session)
    first, taken = found.choices[0], next(one for one in found.choices if one.taken)
    assert taken.leak < first.leak, "by the examples it is a success"
    assert (found.outcome.verdict, found.outcome.ground) == (Verdict.INCONCLUSIVE, Ground.NOTHING)
    assert found.outcome.gain is None
    assert f"by {taken.leak:.2f} instead of {first.leak:.2f}" in found.outcome.why
    assert "degrees off" in found.outcome.why
    assert "all four groups" in found.outcome.settles


def test_the_test_split_comes_before_all_else(session):
    """Its worst group, of the arm that ships, and of the original."""
    found = _run(session, test=balanced(), validation=balanced(10, seed=5))
    outcome = found.outcome
    assert (outcome.ground, outcome.texts) == (Ground.TEST, 12)
    for figure, arm in ((outcome.before, Arm.ORIGINAL), (outcome.after, found.ships)):
        assert figure.value == pytest.approx(found.arm(arm).figure("worst_group").value, abs=1e-6)
    assert found.ships in (Arm.ERASED, Arm.REFITTED)
    assert not any(_JUDGED in one for one in found.caveats), "though the validation split judged features"


def test_a_validation_split_says_that_it_was_chosen_by(session):
    """Of all four groups; its figures are those of the choice."""
    found = _run(session, validation=balanced(10, seed=5))
    assert (found.outcome.ground, found.outcome.texts) == (Ground.VALIDATION, 10)
    taken = next(one for one in found.choices if one.taken)
    assert found.outcome.after.value == pytest.approx(taken.criterion, abs=1e-6)
    assert f"chosen by ({len(found.choices)} in all" in found.outcome.why
    assert any(f"{_JUDGED} the validation split, too" in one for one in found.caveats)
    few = _run(session, validation=balanced(4, seed=5))
    assert few.outcome.ground is Ground.VALIDATION
    assert not any(_JUDGED in one for one in few.caveats), "four of a group judge nothing"


def test_what_is_held_out_is_not_called_a_split_that_was_given(session):
    """Without a validation split a fifth of all four groups is the ground, called the held-out part."""
    crossed = labelled([(0, 1, 20), (1, 0, 20)], seed=9)
    found = _run(session, training=(*ambiguous(), *crossed), attribute_texts=())
    assert (found.outcome.ground, found.outcome.texts) == (Ground.VALIDATION, 4)
    assert found.criterion == "accuracy of the worst group of the held-out part"
    assert found.outcome.why.startswith("on the held-out part of the ambiguous set, which the number of")
    said = " ".join((found.why, found.criterion, found.outcome.why, *found.caveats))
    assert "validation split" not in said


def test_twins_are_a_ground_where_there_is_no_other(session):
    """Held-out texts and their twins, per label; a test split that does not tell the attribute is none."""
    labels_alone = ambiguous(8, seed=9, attribute=False)
    found = _run(session, training=TWINS, attribute_texts=(), test=labels_alone)
    assert found.outcome.ground is Ground.TWINS
    assert found.outcome.texts == 8, "a fifth of forty per label, as they were and edited"
    assert found.outcome.before.name.endswith(", edited")
    assert "twins, among those that the number of features and the head were chosen by" in found.outcome.why
    assert found.outcome.verdict is not Verdict.PASS


def test_a_cue_that_twins_share_is_not_seen_on_them(session):
    """By twins the worst group goes from 0 to 100 %: a doubt; on balanced texts the style decides."""
    paired = {"training": _styled(ambiguous(60, twins=True)), "attribute_texts": ()}
    edits, balance = (_run(session, **paired, test=test).outcome for test in ((), _styled(balanced(20))))
    assert (edits.before.value, edits.after.value, edits.ground) == (0, 1, Ground.TWINS)
    assert edits.gain.low > 0.5
    assert edits.after.low > 0.5
    assert edits.verdict is Verdict.INCONCLUSIVE
    assert edits.why.endswith(UNSEEN)
    assert (balance.verdict, balance.ground) == (Verdict.FAIL, Ground.TEST)


def _styled(texts: Sequence[LabelledText]) -> tuple[LabelledText, ...]:
    """Four more letters of the attribute, which twins turn, and three of a style, which they keep."""
    found = []
    for one in texts:
        turned, style = ("X", "vvv") if one.attribute == "Z" else ("Z", "kkk")
        twin = None if one.twin is None else one.twin + 4 * turned + style
        found.append(replace(one, text=one.text + 4 * str(one.attribute) + style, twin=twin))
    return tuple(found)


def test_nothing_removed_is_no_pass(session):
    """The report says that nothing went, whatever the test split has."""
    nothing = JudgingRules(false_discoveries=1e-300)
    found = _run(session, test=balanced(), overrides=(), judging=nothing)
    assert found.chosen == 0
    assert (found.outcome.verdict, found.ships) == (Verdict.INCONCLUSIVE, Arm.ORIGINAL)
    assert found.outcome.why.startswith("nothing was removed")
    assert "test split" not in found.outcome.settles, "there is one"
    assert "an override that names what is to go" in found.outcome.settles


def test_a_word_on_a_feature_that_cannot_go_is_refused(session):
    """A layer behind the head would be ignored silently."""
    behind = Override(feature=FeatureRef(layer=2, index=0), remove=True, reason="behind the head")
    with pytest.raises(InvalidRequestError, match="neurons: layers 0 to 0") as refused:
        _run(session, overrides=(*GONE, behind))
    assert refused.value.context["field"] == "overrides[1].feature"
    of_set = FeatureRef(replacement=resident_set(session.require_model(), "relu"), layer=0, index=0)
    other = Override(feature=of_set, remove=True, reason="of a set")
    with pytest.raises(
        InvalidRequestError, match=r"^overrides.0..feature: set:0:0 is of set, .* write LAYER:INDEX"
    ):
        _run(session, overrides=(other,))


def test_what_is_left_is_the_squared_sine_to_what_is_forbidden():
    """Axes of unit variance within a label: forbidding one of two equal ones leaves a half."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(4000) % 2
    x = torch.randn(4000, 3, generator=generator)
    x[:, :2] += (2 * y - 1)[:, None]
    readout = Readout(layer=1, pooling=Pooling.MEAN)
    forbidden = torch.tensor([[1.0, 0.0, 0.0]])
    head, free = (fit_erased(readout, x, y, one) for one in (forbidden, forbidden[:0]))
    assert share_left(head, free, x, y) == pytest.approx(0.5, abs=0.03)

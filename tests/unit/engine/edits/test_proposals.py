"""ProposeEdit offers the smallest prefix that meets both bounds, or nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.builders import tiny_hosted
from trephine.domain.ablation import LogitTarget
from trephine.domain.edits import ProposeEdit
from trephine.domain.errors import InvalidRequestError
from trephine.domain.sites import FeatureRef
from trephine.engine.edits import proposals
from trephine.engine.edits.effects import measured_prompt
from trephine.engine.edits.proposals import HANDLERS, ablation, candidates, rank
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.runs.retain import RetainText, retain_kl, retain_text

PROMPT = "When Mary and John went to the store, John gave a drink to"
SHORT = "The capital of France is Paris. " * 6


@pytest.fixture(scope="module")
def hosted():
    """One tiny model for the module."""
    return tiny_hosted("llama", seed=3)


@pytest.fixture(scope="module")
def target(hosted):
    """The target that this random model prefers."""
    value = measured_prompt(hosted, PROMPT, " Mary", " John").values([()])
    first, second = (" Mary", " John") if finish(value)[0] > 0 else (" John", " Mary")
    return LogitTarget(token=first, against=second)


def propose(hosted, target, **bounds: Any):
    command = ProposeEdit(**({"prompt": PROMPT, "target": target, "retain_text": SHORT} | bounds))
    return finish(HANDLERS[ProposeEdit](Session(hosted=hosted), command))


def test_the_choice_is_the_smallest_prefix_that_meets_both_bounds(hosted, target):
    """Every shorter prefix, measured by hand, misses a bound; the chosen one meets both."""
    bounds = {"min_drop": 0.3, "max_retain_kl": 5.0}
    proposal = propose(hosted, target, **bounds)
    assert proposal.chosen > 1
    measured = measured_prompt(hosted, PROMPT, target.token, target.against)
    baseline = finish(measured.values([()]))[0]
    for count in range(1, proposal.chosen + 1):
        plan = ablation(proposal.ranking, count)
        value = finish(measured.values([plan]))[0]
        damage = finish(retain_kl(hosted, retain_text(hosted, SHORT), plan))
        meets = (baseline - value) / baseline >= 0.3 and damage.everywhere <= 5 and damage.after_first <= 5
        assert meets == (count == proposal.chosen)


def test_the_curve_holds_what_was_measured(hosted, target):
    """Its points are ascending, and each agrees with its prefix measured alone."""
    proposal = propose(hosted, target, min_drop=0.3, max_retain_kl=5.0)
    counts = [point.count for point in proposal.curve]
    assert counts == sorted(set(counts))
    assert proposal.chosen in counts
    measured = measured_prompt(hosted, PROMPT, target.token, target.against)
    for point in proposal.curve:
        plan = ablation(proposal.ranking, point.count)
        assert point.value == pytest.approx(finish(measured.values([plan]))[0], abs=1e-4)
        damage = finish(retain_kl(hosted, retain_text(hosted, SHORT), plan))
        assert point.retain_kl == pytest.approx(damage.everywhere)
        assert point.drop == pytest.approx((proposal.baseline - point.value) / proposal.baseline)


def test_as_many_are_measured_as_are_asked_for(hosted, target):
    """No cap of ours lies below what a caller may ask for."""
    few, many = (propose(hosted, target, min_drop=0.3, max_features=count) for count in (5, 120))
    assert len(few.ranking) <= 5
    assert len(many.ranking) > 48


@pytest.mark.parametrize(
    "bounds",
    [{"min_drop": 1.0, "max_features": 2, "max_retain_kl": 9.0}, {"min_drop": 0.3, "max_retain_kl": 1e-9}],
)
def test_nothing_is_offered_if_nothing_meets_both_bounds(hosted, target, bounds):
    """Too little drop, or too much damage: the length is 0 and the reason says so."""
    proposal = propose(hosted, target, **bounds)
    assert proposal.chosen == 0
    assert "nothing is to be shipped" in proposal.why


def test_a_target_that_is_not_preferred_is_refused(hosted, target):
    """There is nothing to lower; the message says to swap."""
    swapped = LogitTarget(token=target.against, against=target.token)
    with pytest.raises(InvalidRequestError, match="Swap"):
        propose(hosted, swapped)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_drop", 0.0),
        ("min_drop", 1.5),
        ("max_retain_kl", 0.0),
        ("max_features", 0),
        ("max_features", 1025),
    ],
)
def test_bounds_that_make_no_sense_are_refused(hosted, target, field, value):
    """The field is named."""
    with pytest.raises(InvalidRequestError) as caught:
        propose(hosted, target, **{field: value})
    assert caught.value.context["field"] == field


def test_same_request_same_proposal(hosted, target):
    """Nothing is drawn at random (law 9)."""
    assert propose(hosted, target) == propose(hosted, target)


def test_candidates_are_the_largest_effects_after_position_0():
    """Position 0 does not count, and neurons that push away are left out."""
    effects = torch.zeros(2, 3, 4)
    effects[0, 0, 1] = 9.0
    effects[0, 1, 2], effects[1, 1, 3], effects[1, 2, 3] = 1.0, 0.8, 0.8
    effects[1, 1, 0] = -5.0
    assert candidates(effects, 8) == (FeatureRef(layer=1, index=3), FeatureRef(layer=0, index=2))
    assert candidates(effects, 1) == (FeatureRef(layer=1, index=3),)


def test_the_ranking_is_effect_over_use():
    """Largest ratio first; no neuron that does not lower the target; an unused one gets the least use."""
    norms = torch.tensor([[1.0, 10.0, 0.0, 2.0]])
    features = [FeatureRef(layer=0, index=i) for i in range(4)]
    ranked = rank(features, [0.5, 2.0, 0.1, -1.0], norms)
    assert [r.feature.index for r in ranked] == [0, 1, 2]
    assert [r.score for r in ranked] == pytest.approx([0.5, 0.2, 0.1])
    assert ranked[2].use == 1.0


def test_a_neuron_that_wrecks_the_model_alone_is_no_candidate(hosted, target, monkeypatch):
    """With the sink of the model among them every prefix would be spoilt."""
    everything = propose(hosted, target, min_drop=0.01, max_retain_kl=9.0)
    worst = everything.ranking[0].feature
    original = proposals.run_rows

    def wrecked(hosted: Any, rows: Any, **options: Any) -> Any:
        output = original(hosted, rows, **options)
        for number, row in enumerate(rows):
            if any(i.target.feature == worst for i in row.interventions):
                output.logits[number] = output.logits[number] + 50 * torch.randn(output.logits[number].shape)
        return output

    monkeypatch.setattr(proposals, "run_rows", wrecked)
    without = propose(hosted, target, min_drop=0.01, max_retain_kl=9.0)
    assert worst not in [r.feature for r in without.ranking]
    assert set(without.ranking) < set(everything.ranking)


def test_retain_text_of_the_caller_is_used_and_named(hosted, target):
    """Its hash is in the proposal."""
    proposal = propose(hosted, target)
    own: RetainText = retain_text(hosted, SHORT)
    assert own.sha256 in proposal.retain_text
    assert proposal.retain_tokens == own.n_tokens
    assert replace(proposal) == proposal

"""Stand-ins: as often used, writing as much, in the right layer; the operation is as large there as here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import NAME, resident_set
from tests.unit.engine.interventions import direction, neuron
from trephine.domain.edit_evaluation import FeatureControls
from trephine.domain.interventions import (
    Ablate,
    Add,
    Clamp,
    Condition,
    DirectionTarget,
    ErrorTerm,
    FeatureTarget,
    Scale,
    SetTo,
)
from trephine.domain.sites import NEURONS, FeatureRef, SiteKind
from trephine.engine.edit_evaluation.controls import Elsewhere, draw_elsewhere
from trephine.engine.edit_evaluation.matching import Draws, draw_stand_ins, targets_of
from trephine.engine.edit_evaluation.standins import no_op, stand_in
from trephine.engine.edit_evaluation.uses import LayerUse, Uses, measure_uses
from trephine.engine.models.neurons import neuron_site
from trephine.engine.models.quanta import finish
from trephine.engine.replacements.sets import opened
from trephine.engine.runs.retain import retain_text
from trephine.engine.runs.rows import RowInput, run_rows

CONTROLS = FeatureControls(factor=2.0)


def use(*pairs: tuple[float, float]) -> LayerUse:
    """Features by frequency and size, with decoders of norm 1."""
    frequency, size = torch.tensor(pairs, dtype=torch.float64).T
    return LayerUse(frequency=frequency, activation=size, decoder=torch.ones_like(size))


def drawn(own: FeatureRef, uses: Uses, layer: int, sets: int = 9) -> tuple[Draws, set[FeatureRef]]:
    """Stand-ins of one feature, looked for in a layer."""
    target = FeatureTarget(feature=own)
    found = draw_stand_ins((target,), uses, {}, {(NEURONS, own.layer): layer}, CONTROLS, sets=sets, seed=0)
    return found, {one[target].feature for one in found.sets}


def test_stand_ins_are_used_as_often_and_write_as_much():
    """Within a factor of 2 in both; never the feature itself."""
    here = use((0.1, 1.0), (0.15, 1.5), (0.06, 0.6), (0.1, 2.5), (0.3, 1.0))
    found, features = drawn(FeatureRef(layer=3, index=0), {(NEURONS, 3): here}, 3, sets=2)
    assert {feature.index for feature in features} == {1, 2}
    assert (found.factor, found.notes, found.unmatched) == (2.0, (), ())


def test_a_factor_that_finds_too_few_is_widened_and_said():
    """At most to its double; what is never used has no match at all."""
    here = use((0.1, 1.0), (0.1, 2.5), (0.1, 3.5), (0.1, 9.0), (0.0, 1.0))
    found, features = drawn(FeatureRef(layer=3, index=0), {(NEURONS, 3): here}, 3, sets=2)
    assert {feature.index for feature in features} == {1, 2}
    assert found.factor == 4.0
    assert "within a factor of 4" in found.notes[0]
    unused, _ = drawn(FeatureRef(layer=3, index=4), {(NEURONS, 3): here}, 3)
    assert unused.sets == ()
    assert unused.unmatched[0].candidates == 0


def test_other_layers_are_matched_to_the_feature_and_not_to_themselves():
    """What stands in for 3:0 in layer 5 is used there as 3:0 is here."""
    uses = {(NEURONS, 3): use((0.1, 1.0), (0.9, 9.0)), (NEURONS, 5): use((0.9, 9.0), (0.1, 1.1))}
    _, features = drawn(FeatureRef(layer=3, index=0), uses, 5, sets=1)
    assert features == {FeatureRef(layer=5, index=1)}


def test_the_farthest_layer_with_enough_is_taken_else_the_one_with_most():
    """One stand-in is enough for one set; for three of them the nearer layer has more."""
    own = FeatureTarget(feature=FeatureRef(layer=3, index=0))
    like, unlike = (0.1, 1.0), (0.9, 9.0)
    uses = {
        (NEURONS, 3): use(like, unlike),
        (NEURONS, 9): use(like, unlike, unlike),
        (NEURONS, 5): use(like, like, unlike),
    }
    places = Elsewhere(layers=({(NEURONS, 3): 9}, {(NEURONS, 3): 5}))
    for sets, layer, found in ((1, 9, 1), (3, 5, 2)):
        controls = FeatureControls(factor=2.0, wrong_layer_sets=sets)
        drawn, chosen = draw_elsewhere((own,), uses, places, controls, seed=0)
        assert chosen == {(NEURONS, 3): layer}
        assert [one[own].feature.layer for one in drawn.sets] == [layer] * found
    nothing = {**uses, (NEURONS, 9): use(unlike), (NEURONS, 5): use(unlike)}
    drawn, chosen = draw_elsewhere((own,), nothing, places, FeatureControls(), seed=0)
    assert (drawn.sets, chosen, drawn.notes) == ((), {}, ("none has features that are used like these",))


def test_directions_are_replaced_by_differences_as_long_as_they_are():
    """Every one is a multiple of the difference of two activations."""
    target = direction(SiteKind.RESID_POST, 1, [3.0, 4.0, 0.0], Add(amount=1.0)).target
    activations = {target.site: torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])}
    found = draw_stand_ins((target,), {}, activations, {}, CONTROLS, sets=20, seed=0)
    vectors = torch.tensor([one[target].vector for one in found.sets])
    torch.testing.assert_close(vectors.norm(dim=-1), torch.full((20,), 5.0))
    assert vectors[:, 1].abs().max() == 0
    assert len({one[target].vector for one in found.sets}) > 2


@pytest.mark.parametrize("held", [0.0, float("nan"), float("inf")])
def test_where_no_two_activations_differ_there_is_no_stand_in_for_a_direction(held):
    """As behind an MLP whose output an earlier export took away, or where a narrow type overflows."""
    given = direction(SiteKind.MLP_OUT, 1, (3.0, 4.0), Add(amount=1.0)).target
    activations = {given.site: torch.full((6, 2), held)}
    found = draw_stand_ins((given,), {}, activations, {}, CONTROLS, sets=9, seed=0)
    assert found.sets == ()
    assert found.notes == (
        "no controls: at mlp_out of layer 1 no two finite activations of the retain text differ, and a "
        "stand-in for a direction is such a difference",
    )


def test_operations_are_as_large_on_the_stand_in():
    """Values that are written go by the decoders, bounds and conditions by the activations."""
    here = LayerUse(
        frequency=torch.ones(2), activation=torch.tensor([2.0, 6.0]), decoder=torch.tensor([4.0, 1.0])
    )
    own, other = FeatureRef(layer=1, index=0), FeatureRef(layer=1, index=1)
    stand_ins = {FeatureTarget(feature=own): FeatureTarget(feature=other)}
    expected = {
        Add(amount=3.0): Add(amount=12.0),
        SetTo(value=1.0): SetTo(value=4.0),
        Clamp(low=-1.0, high=2.0): Clamp(low=-3.0, high=6.0),
        Clamp(high=2.0): Clamp(high=6.0),
        Ablate(): Ablate(),
        Scale(factor=0.5): Scale(factor=0.5),
    }
    condition = Condition(feature=own, at_least=0.5)
    for operation, scaled in expected.items():
        (found,) = stand_in((neuron(1, 0, operation, condition=condition),), stand_ins, {(NEURONS, 1): here})
        assert found.target == FeatureTarget(feature=other)
        assert found.operation == scaled
        assert found.condition == Condition(feature=other, at_least=1.5)
    foreign = Condition(feature=FeatureRef(layer=0, index=9), at_least=0.5)
    (kept,) = stand_in((neuron(1, 0, Ablate(), condition=foreign),), stand_ins, {(NEURONS, 1): here})
    assert kept.condition == foreign


def test_no_op_keeps_everything_but_the_operation():
    """Same hooks, same error term, nothing done."""
    given = replace(neuron(1, 0, SetTo(value=3.0)), error_term=ErrorTerm.DROP)
    assert no_op((given,)) == (replace(given, operation=Scale(factor=1.0)),)
    assert targets_of((given, given)) == (given.target,)
    assert not isinstance(given.target, DirectionTarget)


@pytest.mark.parametrize("kind", ["jumprelu", "topk", "normalised", "denormalised"])
def test_uses_are_those_of_the_activations(kind):
    """Frequency and size of features over positions >= 1 of the retain text, and of neurons by their rms."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, kind)
    retain = retain_text(hosted)
    with torch.inference_mode():
        uses, _ = finish(measure_uses(hosted, retain, [(NAME, 1), (NEURONS, 1)]))
        with opened(hosted, NAME, [1]) as resident:
            layer = resident[1]
        sites = [layer.info.site_in, neuron_site(1)]
        rows = [run_rows(hosted, [RowInput(w)], reads=sites).values[0] for w in retain.windows]
        code = layer.encode(torch.cat([one[layer.info.site_in][1:] for one in rows]))
        neurons = torch.cat([one[neuron_site(1)][1:] for one in rows]).double()
    written = (code.activations * code.scale_out).abs().double()
    active = code.active.double()
    torch.testing.assert_close(uses[NAME, 1].frequency, active.mean(0))
    size = written.sum(0) / active.sum(0).clamp_min(1) * layer.decoder_norms().double()
    torch.testing.assert_close(uses[NAME, 1].size, size, rtol=1e-5, atol=1e-7)
    own = code.activations.abs().double().sum(0) / active.sum(0).clamp_min(
        1
    )  # bounds and values are in these
    torch.testing.assert_close(uses[NAME, 1].activation, own, rtol=1e-5, atol=1e-7)
    rms = neurons.pow(2).mean(0).sqrt()
    torch.testing.assert_close(uses[NEURONS, 1].activation, rms, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(uses[NEURONS, 1].frequency, (neurons.abs() > rms).double().mean(0))

"""What weights cannot express is refused with the field named; what they can is compiled exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import tiny_hosted
from tests.unit.engine.interventions import direction, neuron, whole
from trephine.domain.errors import EditNotExpressibleError, FeatureOutOfRangeError, LayerOutOfRangeError
from trephine.domain.interventions import (
    Ablate,
    AddNormScaled,
    Clamp,
    Condition,
    ErrorTerm,
    FeatureTarget,
    HeadInput,
    Intervention,
    MeanAblate,
    Mode,
    PatternMode,
    Phase,
    ProjectOut,
    Resample,
    Scale,
    Selector,
)
from trephine.domain.sites import FeatureRef, SiteKind
from trephine.engine.weights.operations import sort_operations

PLAIN = neuron(1, 4, Ablate())
OWN = FeatureRef(replacement="transcoders", layer=1, index=5)
PROJECTED = Intervention(target=FeatureTarget(feature=OWN), operation=ProjectOut())
FOREIGN = FeatureTarget(feature=FeatureRef(replacement="transcoders", layer=0, index=1))

REFUSED = [
    (replace(PLAIN, selector=Selector(positions=(14,))), "selector.positions"),
    (replace(PLAIN, selector=Selector(tokens=(3,))), "selector.tokens"),
    (replace(PLAIN, selector=Selector(phases=(Phase.PROMPT,))), "selector.phases"),
    (replace(PLAIN, selector=Selector(exclude_positions=(0,))), "selector.exclude_positions"),
    (replace(PLAIN, selector=Selector(exclude_tokens=(2,))), "selector.exclude_tokens"),
    (replace(PLAIN, mode=Mode(last_layer=2)), "mode.last_layer"),
    (replace(PLAIN, mode=Mode(patterns=PatternMode.FROZEN)), "mode.patterns"),
    (replace(PLAIN, mode=Mode(heads=(HeadInput(layer=2, head=0, role="q"),))), "mode.heads"),
    (replace(PLAIN, operation=Clamp(low=0.0), mode=Mode(strength=0.5)), "mode.strength"),
    (replace(PLAIN, condition=Condition(feature=FeatureRef(layer=0, index=1), at_least=0.5)), "condition"),
    (replace(PROJECTED, condition=Condition(feature=OWN, at_least=0.5)), "condition"),
    (replace(PROJECTED, selector=Selector(tokens=(3,))), "selector.tokens"),
    (replace(PROJECTED, mode=Mode(last_layer=2)), "mode.last_layer"),
    (replace(PROJECTED, error_term=ErrorTerm.DROP), "error_term"),
    (
        replace(
            PLAIN, operation=ProjectOut(), condition=Condition(feature=PLAIN.target.feature, at_least=0.5)
        ),
        "condition",
    ),
    (
        replace(
            direction(SiteKind.ATTN_OUT, 1, [1.0] * 32, ProjectOut()),
            condition=Condition(feature=OWN, at_least=0.5),
        ),
        "condition",
    ),
    (direction(SiteKind.MLP_IN, 1, [1.0] * 32, ProjectOut()), "target.site"),
    (direction(SiteKind.RESID_POST, 1, [1.0] * 32, AddNormScaled(fraction=0.1)), "operation"),
    (whole(SiteKind.RESID_POST, 1, Ablate()), "target.site"),
    *(
        (neuron(1, 4, operation), "operation")
        for operation in (
            Clamp(high=1.0),
            AddNormScaled(fraction=0.1),
            MeanAblate(text="x y"),
            Resample(donor="x y"),
        )
    ),
]


@pytest.fixture(scope="module")
def hosted():
    """One tiny model."""
    return tiny_hosted("llama")


@pytest.mark.parametrize(("intervention", "field"), REFUSED, ids=lambda value: str(value)[-30:])
def test_what_weights_cannot_express_is_refused_by_name(hosted, intervention, field):
    """The context names the field of the third intervention; the message says why and what can be done."""
    with pytest.raises(EditNotExpressibleError) as caught:
        sort_operations(hosted, (PLAIN, PLAIN, intervention))
    assert caught.value.context["field"] == f"interventions[2].{field}"
    message = caught.value.message
    assert "cannot be written into weights: " in message
    assert any(word in message for word in ("serve the edit instead", " use "))


def test_both_phases_in_any_order_are_everywhere(hosted):
    """Order of phases means nothing."""
    everywhere = Selector(phases=(Phase.GENERATION, Phase.PROMPT))
    assert sort_operations(hosted, (replace(PLAIN, selector=everywhere),)).neurons[0].factor == 0.0


def test_factors_of_one_neuron_multiply(hosted):
    """As they do at run time, where interventions follow one another; ablation wins for good."""
    plan = (
        neuron(2, 1, Scale(factor=0.5)),
        neuron(0, 7, Scale(factor=3.0)),
        neuron(2, 1, Scale(factor=-0.5)),
        neuron(0, 8, Scale(factor=2.0)),
        neuron(0, 8, Ablate()),
    )
    compiled = {(op.layer, op.index): op.factor for op in sort_operations(hosted, plan).neurons}
    assert compiled == {(0, 7): 3.0, (0, 8): 0.0, (2, 1): -0.25}


@pytest.mark.parametrize(
    ("layer", "index", "error"), [(9, 0, LayerOutOfRangeError), (0, 640, FeatureOutOfRangeError)]
)
def test_what_does_not_exist_is_refused(hosted, layer, index, error):
    """Unknown layers and neurons keep their own errors."""
    with pytest.raises(error):
        sort_operations(hosted, (neuron(layer, index, Ablate()),))

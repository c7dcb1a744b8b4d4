"""What weights cannot express is refused with the field named; what they can is compiled exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import tiny_hosted
from tests.unit.engine.interventions import direction, neuron, whole
from trephine.domain.errors import EditNotExpressibleError, FeatureOutOfRangeError, LayerOutOfRangeError
from trephine.domain.interventions import (
    Ablate,
    Add,
    AddNormScaled,
    Clamp,
    Condition,
    FeatureTarget,
    HeadInput,
    MeanAblate,
    Mode,
    PatternMode,
    Phase,
    ProjectOut,
    Resample,
    Scale,
    Selector,
    SetTo,
)
from trephine.domain.sites import FeatureRef, SiteKind
from trephine.engine.expressible import neuron_scalings

PLAIN = neuron(1, 4, Ablate())
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
    (replace(PLAIN, condition=Condition(feature=FeatureRef(layer=0, index=1), at_least=0.5)), "condition"),
    (replace(PLAIN, target=FOREIGN), "target.feature.replacement"),
    (direction(SiteKind.RESID_POST, 1, [1.0] * 32, ProjectOut()), "target"),
    (whole(SiteKind.MLP_OUT, 1, Ablate()), "target"),
    *(
        (neuron(1, 4, operation), "operation")
        for operation in (
            SetTo(value=0.0),
            Clamp(high=1.0),
            Add(amount=1.0),
            AddNormScaled(fraction=0.1),
            ProjectOut(),
            MeanAblate(text="x y"),
            Resample(donor="x y"),
        )
    ),
]


@pytest.fixture(scope="module")
def architecture():
    """One tiny model's architecture."""
    return tiny_hosted("llama").architecture


@pytest.mark.parametrize(("intervention", "field"), REFUSED, ids=lambda value: str(value)[-30:])
def test_what_weights_cannot_express_is_refused_by_name(architecture, intervention, field):
    """The context names the field of the third intervention; the message says why."""
    with pytest.raises(EditNotExpressibleError) as caught:
        neuron_scalings(architecture, (PLAIN, PLAIN, intervention))
    assert caught.value.context["field"] == f"interventions[2].{field}"
    assert "cannot be written into weights: " in caught.value.message


def test_both_phases_in_any_order_are_everywhere(architecture):
    """Order of phases means nothing."""
    everywhere = Selector(phases=(Phase.GENERATION, Phase.PROMPT))
    assert neuron_scalings(architecture, (replace(PLAIN, selector=everywhere),))[0].factors == {4: 0.0}


def test_factors_of_one_neuron_multiply(architecture):
    """As they do at run time, where interventions follow one another; ablation wins for good."""
    plan = (
        neuron(2, 1, Scale(factor=0.5)),
        neuron(0, 7, Scale(factor=3.0)),
        neuron(2, 1, Scale(factor=-0.5)),
        neuron(0, 8, Scale(factor=2.0)),
        neuron(0, 8, Ablate()),
    )
    compiled = {s.layer: s.factors for s in neuron_scalings(architecture, plan)}
    assert compiled == {0: {7: 3.0, 8: 0.0}, 2: {1: -0.25}}


@pytest.mark.parametrize(
    ("layer", "index", "error"), [(9, 0, LayerOutOfRangeError), (0, 640, FeatureOutOfRangeError)]
)
def test_what_does_not_exist_is_refused(architecture, layer, index, error):
    """Unknown layers and neurons keep their own errors."""
    with pytest.raises(error):
        neuron_scalings(architecture, (neuron(layer, index, Ablate()),))

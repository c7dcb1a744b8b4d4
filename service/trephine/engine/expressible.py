"""Which interventions weights can express, and the exact change of weights that expresses them.

Scaling neuron i everywhere by s is scaling column i of the down projection by s: the projection is linear
in what it reads. Nothing else in the intervention language is expressible at the `exact` tier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trephine.domain.errors import EditNotExpressibleError, TrephineError
from trephine.domain.interventions import (
    Ablate,
    FeatureTarget,
    Intervention,
    Mode,
    PatternMode,
    Scale,
    Selector,
)
from trephine.domain.sites import NEURONS
from trephine.engine.architecture import Architecture
from trephine.engine.replacements.sets import require_neuron


@dataclass(slots=True)
class NeuronScaling:
    """What an edit does to one layer's neurons: index -> factor. Factors of one neuron multiply."""

    layer: int
    factors: dict[int, float] = field(default_factory=dict)


def neuron_scalings(
    architecture: Architecture, interventions: Sequence[Intervention]
) -> tuple[NeuronScaling, ...]:
    """Compile interventions into factors per neuron, by layer.

    Interventions on the same neuron are applied one after the other at run time, and scaling commutes, so
    their factors multiply here.

    Raises:
        EditNotExpressibleError: With the field that no weights can express, and why.
    """
    scalings: dict[int, NeuronScaling] = {}
    for index, intervention in enumerate(interventions):
        require_expressible(architecture, intervention, f"interventions[{index}]")
        target, factor = _scaled(intervention)
        layer = scalings.setdefault(target.feature.layer, NeuronScaling(layer=target.feature.layer))
        layer.factors[target.feature.index] = layer.factors.get(target.feature.index, 1.0) * factor
    return tuple(scalings[layer] for layer in sorted(scalings))


def require_expressible(architecture: Architecture, intervention: Intervention, where: str) -> None:
    """Refuse an intervention that is not the same everywhere, or not a scaling of a neuron.

    Raises:
        EditNotExpressibleError: Naming the field under `where`.
    """
    _require_neuron(architecture, intervention, where)
    _require_everywhere(intervention.selector, where)
    _require_unlimited(intervention.mode, where)
    if intervention.condition is not None:
        raise _refusal(
            f"{where}.condition",
            "weights act on every input; they cannot ask for another feature's activation first",
        )


def _require_neuron(architecture: Architecture, intervention: Intervention, where: str) -> None:
    target = intervention.target
    if not isinstance(target, FeatureTarget):
        raise _refusal(
            f"{where}.target", f"only neurons can be written into weights so far, not a {target.kind}"
        )
    if target.feature.replacement != NEURONS:
        raise _refusal(
            f"{where}.target.feature.replacement",
            f"only the model's own neurons can be written so far, not {target.feature.replacement!r}",
        )
    try:
        require_neuron(architecture, target.feature, field=f"{where}.target.feature")
    except TrephineError as error:
        raise error.with_field(f"{where}.target.feature") from None
    if not isinstance(intervention.operation, Ablate | Scale):
        raise _refusal(
            f"{where}.operation",
            f"weights can scale a neuron; {intervention.operation.kind} depends on its activation or a text",
        )


def _require_everywhere(selector: Selector, where: str) -> None:
    plain = Selector()
    reasons = {
        "positions": "weights act at every position",
        "tokens": "weights act on every token",
        "phases": "weights act on prompts and on generated tokens alike",
        "exclude_positions": "weights cannot leave a position out",
        "exclude_tokens": "weights cannot leave a token out",
    }
    for name, reason in reasons.items():
        chosen, default = getattr(selector, name), getattr(plain, name)
        if (set(chosen) != set(default)) if name == "phases" else (chosen != default):
            raise _refusal(
                f"{where}.selector.{name}", f"{reason}; leave {name} out of an edit that is to ship"
            )


def _require_unlimited(mode: Mode, where: str) -> None:
    if mode.last_layer is not None:
        raise _refusal(f"{where}.mode.last_layer", "a change of weights reaches every later layer")
    if mode.patterns is not PatternMode.LIVE:
        raise _refusal(
            f"{where}.mode.patterns", "attention follows changed weights; patterns cannot be frozen"
        )
    if mode.heads:
        raise _refusal(f"{where}.mode.heads", "a neuron's column is read by every head")


def _scaled(intervention: Intervention) -> tuple[FeatureTarget, float]:
    target, operation = intervention.target, intervention.operation
    if not isinstance(target, FeatureTarget):
        raise TypeError("checked by require_expressible")
    return target, operation.factor if isinstance(operation, Scale) else 0.0


def _refusal(field_name: str, why: str) -> EditNotExpressibleError:
    return EditNotExpressibleError(f"{field_name} cannot be written into weights: {why}", field=field_name)

"""How far an edit goes: at strength s the activation moves s times as far as the operation moves it.

With x the activation and op(x) what the operation makes of it, the new one is x + s (op(x) - x). 0 leaves it
alone, 1 is the edit as stored, more goes beyond. Where the language has a plain operation that does just
that, the intervention is rewritten into it, so that it stays expressible in weights:

    ablate, project_out of a direction   scale(1 - s)
    scale(f)                             scale(1 + s (f - 1))
    add(a), add_norm_scaled(p)           add(s a), add_norm_scaled(s p)
    set, clamp, mean_ablate, resample, project_out of a feature's decoder: carried as `mode.strength`

What becomes of the error term is no matter of degree: with `frozen` or `drop` only strength 1 is served.
"""

from __future__ import annotations

from dataclasses import replace

from trephine.domain.errors import UnsupportedInterventionError
from trephine.domain.interventions import (
    Ablate,
    Add,
    AddNormScaled,
    DirectionTarget,
    ErrorTerm,
    FeatureTarget,
    Intervention,
    Operation,
    ProjectOut,
    Scale,
    require_strength,
)
from trephine.domain.sites import NEURONS


def at_strength(interventions: tuple[Intervention, ...], strength: float) -> tuple[Intervention, ...]:
    """Scale how far interventions go.

    Raises:
        InvalidRequestError: If the strength is negative or no number.
        UnsupportedInterventionError: If an error term is frozen or dropped and the strength is not 1.
    """
    require_strength(strength, "strength")
    return tuple(_scaled(one, strength, index) for index, one in enumerate(interventions))


def _scaled(intervention: Intervention, strength: float, index: int) -> Intervention:
    if strength == 1:
        return intervention
    if intervention.error_term is not ErrorTerm.LIVE and _is_of_set(intervention):
        raise UnsupportedInterventionError(
            f"interventions[{index}].error_term: an error term cannot be half "
            f"{intervention.error_term.value}; such an edit has strength 1 only, not {strength:g}",
            field="strength",
            intervention=index,
        )
    share = strength * intervention.mode.strength
    plain = _plain(intervention, share)
    mode = replace(intervention.mode, strength=share if plain is None else 1.0)
    return replace(intervention, operation=plain or intervention.operation, mode=mode)


def _plain(intervention: Intervention, share: float) -> Operation | None:
    """The operation that does exactly that, if the language has one."""
    match intervention.operation:
        case Ablate():
            return Scale(factor=1 - share)
        case ProjectOut() if isinstance(intervention.target, DirectionTarget):
            return Scale(factor=1 - share)
        case Scale(factor=factor):
            return Scale(factor=1 + share * (factor - 1))
        case Add(amount=amount):
            return Add(amount=share * amount)
        case AddNormScaled(fraction=fraction):
            return AddNormScaled(fraction=share * fraction)
        case _:
            return None


def _is_of_set(intervention: Intervention) -> bool:
    target = intervention.target
    return isinstance(target, FeatureTarget) and target.feature.replacement != NEURONS

"""The intervention language, both ways (DESIGN 5.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trephine.domain import interventions as domain
from trephine.domain.errors import InvalidRequestError, NonFiniteValueError
from trephine.rpc.wire.common import feature_from_wire, feature_to_wire, site_from_wire, site_to_wire
from trephine.rpc.wire.fields import at_least, clean, finite, one_of, within
from trephine.rpc.wire.operators import operation_from_wire, operation_to_wire
from trephine.v1 import interventions_pb2 as pb

_PHASES = {pb.PHASE_PROMPT: domain.Phase.PROMPT, pb.PHASE_GENERATION: domain.Phase.GENERATION}
_PHASE_NUMBERS = {phase: number for number, phase in _PHASES.items()}
_PATTERNS = {
    pb.PATTERN_MODE_UNSPECIFIED: domain.PatternMode.LIVE,
    pb.PATTERN_MODE_LIVE: domain.PatternMode.LIVE,
    pb.PATTERN_MODE_FROZEN: domain.PatternMode.FROZEN,
}
_PATTERN_NUMBERS = {mode: number for number, mode in _PATTERNS.items()}
ERROR_TERMS = {
    pb.ERROR_TERM_UNSPECIFIED: domain.ErrorTerm.LIVE,
    pb.ERROR_TERM_LIVE: domain.ErrorTerm.LIVE,
    pb.ERROR_TERM_FROZEN: domain.ErrorTerm.FROZEN,
    pb.ERROR_TERM_DROP: domain.ErrorTerm.DROP,
}
ERROR_TERM_NUMBERS = {term: number for number, term in ERROR_TERMS.items()}


def interventions_from_wire(
    messages: Sequence[pb.Intervention], field: str = "interventions"
) -> tuple[domain.Intervention, ...]:
    """Read a list of interventions; an error names the place, `interventions[0].operation.scale`."""
    read = []
    for index, message in enumerate(messages):
        with within(f"{field}[{index}]"):
            read.append(intervention_from_wire(message))
    return tuple(read)


def intervention_from_wire(message: pb.Intervention) -> domain.Intervention:
    """Read one intervention, with the defaults that the contract states.

    Raises:
        InvalidRequestError: Naming the field that is missing or out of its domain.
    """
    with within("target"):
        target = _target_from_wire(message.target)
    with within("operation"):
        operation = operation_from_wire(message.operation)
    with within("mode"):
        mode = _mode_from_wire(message.mode)
    return domain.Intervention(
        target=target,
        operation=operation,
        selector=_selector_from_wire(message.selector),
        mode=mode,
        condition=_condition_from_wire(message.condition) if message.HasField("condition") else None,
        error_term=one_of(message.error_term, ERROR_TERMS, "error_term"),
        label=message.label,
    )


def intervention_to_wire(intervention: domain.Intervention) -> pb.Intervention:
    """Write one intervention."""
    condition = intervention.condition
    return pb.Intervention(
        target=_target_to_wire(intervention.target),
        operation=operation_to_wire(intervention.operation),
        selector=_selector_to_wire(intervention.selector),
        mode=_mode_to_wire(intervention.mode),
        condition=None if condition is None else _condition_to_wire(condition),
        error_term=ERROR_TERM_NUMBERS[intervention.error_term],
        label=clean(intervention.label),
    )


def applied_to_wire(applied: Iterable[domain.Applied]) -> list[pb.Applied]:
    """Write the echoes of interventions."""
    return [
        pb.Applied(
            index=echo.index,
            layer=echo.layer,
            positions=echo.positions,
            mean_change=echo.mean_change,
            max_change=echo.max_change,
            degraded=echo.degraded,
            changed=echo.changed,
        )
        for echo in applied
    ]


def _target_from_wire(message: pb.InterventionTarget) -> domain.Target:
    match message.WhichOneof("target"):
        case "feature":
            with within("feature"):
                return domain.FeatureTarget(feature=feature_from_wire(message.feature))
        case "direction":
            with within("direction"):
                return _direction_from_wire(message.direction)
        case "site":
            with within("site"):
                return domain.SiteTarget(site=site_from_wire(message.site))
        case _:
            raise InvalidRequestError("set exactly one of feature, direction, site")


def _target_to_wire(target: domain.Target) -> pb.InterventionTarget:
    match target:
        case domain.FeatureTarget(feature=feature):
            return pb.InterventionTarget(feature=feature_to_wire(feature))
        case domain.DirectionTarget(site=site, vector=vector):
            direction = pb.Direction(site=site_to_wire(site), vector=vector)
            return pb.InterventionTarget(direction=direction)
        case domain.SiteTarget(site=site):
            return pb.InterventionTarget(site=site_to_wire(site))


def _direction_from_wire(message: pb.Direction) -> domain.DirectionTarget:
    vector = tuple(finite(value, f"vector[{index}]") for index, value in enumerate(message.vector))
    if not any(vector):
        raise InvalidRequestError("a direction must not be empty or all zeros", field="vector")
    with within("site"):
        site = site_from_wire(message.site)
    return domain.DirectionTarget(site=site, vector=vector)


def _selector_from_wire(message: pb.Selector) -> domain.Selector:
    phases = tuple(
        one_of(phase, _PHASES, f"selector.phases[{index}]") for index, phase in enumerate(message.phases)
    )
    return domain.Selector(
        positions=tuple(message.positions) or None,
        tokens=tuple(message.tokens) or None,
        phases=phases or tuple(domain.Phase),
        exclude_positions=tuple(message.exclude_positions),
        exclude_tokens=tuple(message.exclude_tokens),
    )


def _selector_to_wire(selector: domain.Selector) -> pb.Selector:
    return pb.Selector(
        positions=selector.positions or (),
        tokens=selector.tokens or (),
        phases=[_PHASE_NUMBERS[phase] for phase in selector.phases],
        exclude_positions=selector.exclude_positions,
        exclude_tokens=selector.exclude_tokens,
    )


def _mode_from_wire(message: pb.InterventionMode) -> domain.Mode:
    heads = []
    for index, head in enumerate(message.heads):
        with within(f"heads[{index}]"):
            heads.append(_head_from_wire(head))
    last = at_least(message.last_layer, 0, "last_layer") if message.HasField("last_layer") else None
    patterns = one_of(message.patterns, _PATTERNS, "patterns")
    strength = finite(message.strength, "strength") if message.HasField("strength") else 1.0
    if strength < 0:
        raise InvalidRequestError(f"strength must not be negative, got {strength:g}", field="strength")
    return domain.Mode(last_layer=last, patterns=patterns, heads=tuple(heads), strength=strength)


def _head_from_wire(message: pb.HeadInput) -> domain.HeadInput:
    if message.role not in ("q", "k"):
        raise InvalidRequestError(f"role must be q or k, got {message.role!r}", field="role")
    return domain.HeadInput(
        layer=at_least(message.layer, 0, "layer"),
        head=at_least(message.head, 0, "head"),
        role="q" if message.role == "q" else "k",
    )


def _mode_to_wire(mode: domain.Mode) -> pb.InterventionMode:
    return pb.InterventionMode(
        last_layer=mode.last_layer,
        patterns=_PATTERN_NUMBERS[mode.patterns],
        heads=[pb.HeadInput(layer=head.layer, head=head.head, role=head.role) for head in mode.heads],
        strength=None if mode.strength == 1 else mode.strength,
    )


def _condition_from_wire(message: pb.Condition) -> domain.Condition:
    with within("condition"):
        if message.at_least != message.at_least:
            raise NonFiniteValueError("at_least must be a number, got nan", field="at_least")
        with within("feature"):
            feature = feature_from_wire(message.feature)
        return domain.Condition(feature=feature, at_least=message.at_least)


def _condition_to_wire(condition: domain.Condition) -> pb.Condition:
    return pb.Condition(feature=feature_to_wire(condition.feature), at_least=condition.at_least)

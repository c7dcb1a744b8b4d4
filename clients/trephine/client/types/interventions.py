"""The intervention language as values, and their way to and from the contract's message.

They mirror `trephine.v1.Intervention` whole. What the service cannot carry out is refused by it with
`UnsupportedInterventionError` naming the field.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from google.protobuf.empty_pb2 import Empty

from trephine.client.decoding import decode
from trephine.client.errors import InvalidRequestError
from trephine.client.sendable import listed
from trephine.client.types.common import FeatureRef, Site
from trephine.v1 import common_pb2, interventions_pb2

OperationKind = Literal[
    "ablate",
    "scale",
    "set",
    "clamp",
    "add",
    "add_norm_scaled",
    "project_out",
    "mean_ablate_text",
    "resample_donor",
]
_WITHOUT_ARGUMENT = frozenset({"ablate", "project_out"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """A vector at a site, as wide as the site."""

    site: Site
    vector: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is done to the target."""

    kind: OperationKind
    value: float | str | tuple[float | None, float | None] | None = None
    """A number; a text for `mean_ablate_text` and `resample_donor`; (low, high) for `clamp`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Which positions are touched. What is left out selects all; an exclusion always wins.

    Raises:
        InvalidRequestError: If positions, tokens or phases are given and empty: a choice that found nothing
            must not become a change of everything, which is what the contract's message without them says.
    """

    positions: tuple[int, ...] | None = None
    """Absolute positions; negative ones count from the prompt's end."""
    tokens: tuple[int, ...] | None = None
    """Token ids."""
    phases: tuple[Literal["prompt", "generation"], ...] | None = None
    exclude_positions: tuple[int, ...] = ()
    """Empty: excludes nothing."""
    exclude_tokens: tuple[int, ...] = ()
    """Empty: excludes nothing."""

    def __post_init__(self) -> None:
        for name in ("positions", "tokens", "phases", "exclude_positions", "exclude_tokens"):
            given = getattr(self, name)
            if given is None:
                continue
            chosen = listed(given, f"where.{name}")  # a generator would be empty when read again
            if not chosen and not name.startswith("exclude_"):
                raise InvalidRequestError(
                    f"{name} is empty, which selects nothing; leave it out to select all",
                    field=f"where.{name}",
                )
            object.__setattr__(self, name, chosen)


EVERYWHERE = Where()


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One input of one attention head."""

    layer: int
    head: int
    role: Literal["q", "k"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervention:
    """One reversible change: what, how, where, how far, when."""

    target: FeatureRef | Direction | Site
    change: Change
    where: Where = EVERYWHERE
    last_layer: int | None = None
    """Layers after the target up to this one keep their clean MLP outputs."""
    frozen_patterns: bool = False
    heads: tuple[Head, ...] = ()
    condition: tuple[FeatureRef, float] | None = None
    """Apply only where this feature is at least this active."""
    error_term: Literal["live", "frozen", "drop"] = "live"
    label: str = ""
    strength: float = 1.0
    """How far the operation goes: new = old + strength (operation(old) - old); 0 does nothing."""

    def at(self, *positions: int) -> Intervention:
        """The same, at these positions only. Such an edit cannot be exported into weights.

        Raises:
            InvalidRequestError: If there is none: without `at` it acts everywhere.
        """
        if not positions:
            raise InvalidRequestError(
                "at() is given no position, which selects nothing; leave it out to select all",
                field="where.positions",
            )
        return replace(self, where=replace(self.where, positions=positions))

    def generating(self) -> Intervention:
        """The same, on generated tokens only."""
        return replace(self, where=replace(self.where, phases=("generation",)))

    def labelled(self, label: str) -> Intervention:
        """The same, with a text for people."""
        return replace(self, label=label)

    def to_message(self) -> interventions_pb2.Intervention:
        """The contract's message."""
        return encode(self)

    @classmethod
    def from_message(cls, message: Any) -> Intervention:
        """Rebuild one that the server echoes."""
        return _decode(message)


def encode(value: Intervention) -> interventions_pb2.Intervention:
    """The contract's message of an intervention."""
    message = interventions_pb2.Intervention(
        target=_encode_target(value.target), operation=_encode_change(value.change), label=value.label
    )
    if value.where != EVERYWHERE:
        message.selector.CopyFrom(_encode_where(value.where))
    _encode_mode(message, value)
    if value.condition is not None:
        message.condition.feature.CopyFrom(encode_feature(value.condition[0]))
        message.condition.at_least = value.condition[1]
    if value.error_term != "live":
        message.error_term = interventions_pb2.ErrorTerm.Value(f"ERROR_TERM_{value.error_term.upper()}")
    return message


def encode_feature(ref: FeatureRef) -> common_pb2.FeatureRef:
    """The contract's message of a feature's address."""
    return common_pb2.FeatureRef(replacement=ref.replacement, layer=ref.layer, index=ref.index)


def site_message(value: Site) -> common_pb2.Site:
    """The contract's message of a site."""
    kind = common_pb2.SiteKind.Value(f"SITE_KIND_{value.kind.value.upper()}")
    return common_pb2.Site(kind=kind, layer=value.layer)


def _encode_target(target: FeatureRef | Direction | Site) -> interventions_pb2.InterventionTarget:
    if isinstance(target, FeatureRef):
        return interventions_pb2.InterventionTarget(feature=encode_feature(target))
    if isinstance(target, Site):
        return interventions_pb2.InterventionTarget(site=site_message(target))
    vector = interventions_pb2.Direction(site=site_message(target.site), vector=target.vector)
    return interventions_pb2.InterventionTarget(direction=vector)


def _encode_change(change: Change) -> interventions_pb2.InterventionOperation:
    message = interventions_pb2.InterventionOperation()
    if change.kind in _WITHOUT_ARGUMENT:
        getattr(message, change.kind).CopyFrom(Empty())
    elif isinstance(change.value, tuple):
        low, high = change.value
        message.clamp.SetInParent()
        if low is not None:
            message.clamp.low = low
        if high is not None:
            message.clamp.high = high
    else:
        setattr(message, change.kind, change.value)
    return message


def _encode_where(where: Where) -> interventions_pb2.Selector:
    return interventions_pb2.Selector(
        positions=where.positions,
        tokens=where.tokens,
        phases=[interventions_pb2.Phase.Value(f"PHASE_{phase.upper()}") for phase in where.phases or ()],
        exclude_positions=where.exclude_positions,
        exclude_tokens=where.exclude_tokens,
    )


def _encode_mode(message: interventions_pb2.Intervention, value: Intervention) -> None:
    if value.last_layer is not None:
        message.mode.last_layer = value.last_layer
    if value.frozen_patterns:
        message.mode.patterns = interventions_pb2.PATTERN_MODE_FROZEN
    if value.strength != 1:
        message.mode.strength = value.strength
    for head in value.heads:
        message.mode.heads.add(layer=head.layer, head=head.head, role=head.role)


def _decode(message: Any) -> Intervention:
    condition = None
    if message.HasField("condition"):
        condition = (decode(FeatureRef, message.condition.feature), message.condition.at_least)
    mode = message.mode
    error_terms: dict[int, Literal["live", "frozen", "drop"]] = {2: "frozen", 3: "drop"}
    return Intervention(
        target=_decode_target(message.target),
        change=_decode_change(message.operation),
        where=_decode_where(message.selector),
        last_layer=mode.last_layer if mode.HasField("last_layer") else None,
        frozen_patterns=mode.patterns == interventions_pb2.PATTERN_MODE_FROZEN,
        heads=tuple(Head(layer=h.layer, head=h.head, role=h.role) for h in mode.heads),
        condition=condition,
        error_term=error_terms.get(message.error_term, "live"),
        label=message.label,
        strength=mode.strength if mode.HasField("strength") else 1.0,
    )


def _decode_target(message: Any) -> FeatureRef | Direction | Site:
    kind = message.WhichOneof("target")
    if kind == "feature":
        return decode(FeatureRef, message.feature)
    if kind == "direction":
        return Direction(site=decode(Site, message.direction.site), vector=tuple(message.direction.vector))
    return decode(Site, message.site)


def _decode_change(message: Any) -> Change:
    kind = message.WhichOneof("operation")
    if kind in _WITHOUT_ARGUMENT:
        return Change(kind=kind)
    if kind == "clamp":
        clamp = message.clamp
        low = clamp.low if clamp.HasField("low") else None
        high = clamp.high if clamp.HasField("high") else None
        return Change(kind="clamp", value=(low, high))
    return Change(kind=kind, value=getattr(message, kind))


def _decode_where(message: Any) -> Where:
    names: dict[int, Literal["prompt", "generation"]] = {1: "prompt", 2: "generation"}
    phases = tuple(names[phase] for phase in message.phases if phase in names)
    if set(phases) == {"prompt", "generation"}:
        phases = ()  # both is what leaving them out means
    return Where(
        positions=tuple(message.positions) or None,
        tokens=tuple(message.tokens) or None,
        phases=phases or None,
        exclude_positions=tuple(message.exclude_positions),
        exclude_tokens=tuple(message.exclude_tokens),
    )

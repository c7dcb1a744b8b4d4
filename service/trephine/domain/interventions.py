"""The intervention language (DESIGN 5.3): data, never code.

An intervention says *what* is changed (target), *where* (selector), *how* (operation), in which *mode*,
under which *condition*, and what becomes of the *error term*. The language is complete from the first
release; a combination that an engine cannot carry out is refused by `UnsupportedInterventionError`
naming the field. Every response echoes what was applied, and what matched nothing is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite, isnan
from typing import Annotated, Literal

from pydantic import Field

from trephine.domain.errors import InvalidRequestError, NonFiniteValueError
from trephine.domain.sites import FeatureRef, Site


def require_finite(name: str, *values: float) -> None:
    """Refuse NaN and infinity by name.

    Raises:
        NonFiniteValueError: If a value is not finite.
    """
    for value in values:
        if not isfinite(value):
            raise NonFiniteValueError(f"{name} must be a finite number, got {value}", field=name)


def require_strength(strength: float, name: str) -> float:
    """Return a strength: a finite number that is not negative.

    Raises:
        NonFiniteValueError: If it is not finite.
        InvalidRequestError: If it is negative.
    """
    require_finite(name, strength)
    if strength < 0:
        raise InvalidRequestError(
            f"{name} must not be negative, got {strength:g}; 0 does nothing, 1 is as stored", field=name
        )
    return strength


# --- what ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureTarget:
    """A feature's activation, read by its encoder and written through its decoder."""

    kind: Literal["feature"] = "feature"
    feature: FeatureRef


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectionTarget:
    """The component of an activation along a vector (steering, projection)."""

    kind: Literal["direction"] = "direction"
    site: Site
    vector: tuple[float, ...]
    """Width of the site. Used as given by `add`; normalised by every other operation."""

    def __post_init__(self) -> None:
        require_finite("target.vector", *self.vector)
        if not any(self.vector):
            raise InvalidRequestError("a direction must not be all zeros", field="target.vector")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteTarget:
    """A whole activation vector."""

    kind: Literal["site"] = "site"
    site: Site


Target = Annotated[FeatureTarget | DirectionTarget | SiteTarget, Field(discriminator="kind")]


# --- where ---------------------------------------------------------------------------------------


class Phase(StrEnum):
    """Prompt tokens, or those generated after them."""

    PROMPT = "prompt"
    GENERATION = "generation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Which positions are touched. Includes are intersected; an exclusion always wins."""

    positions: tuple[int, ...] | None = None
    """Absolute positions; negative ones count from the prompt's end. None means all."""
    tokens: tuple[int, ...] | None = None
    """Only positions that hold one of these token ids. None means any token."""
    phases: tuple[Phase, ...] = (Phase.PROMPT, Phase.GENERATION)
    exclude_positions: tuple[int, ...] = ()
    exclude_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.phases:
            raise InvalidRequestError("a selector needs at least one phase", field="selector.phases")
        if self.positions == () or self.tokens == ():
            raise InvalidRequestError(
                "an empty list selects nothing; leave it out to select all", field="selector"
            )


# --- how -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablate:
    """Set the activation to zero."""

    kind: Literal["ablate"] = "ablate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Multiply the activation."""

    kind: Literal["scale"] = "scale"
    factor: float

    def __post_init__(self) -> None:
        require_finite("operation.factor", self.factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTo:
    """Set the activation to a value."""

    kind: Literal["set"] = "set"
    value: float

    def __post_init__(self) -> None:
        require_finite("operation.value", self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamp:
    """Clip the activation into `[low, high]`."""

    kind: Literal["clamp"] = "clamp"
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise InvalidRequestError("clamp needs low, high or both", field="operation.clamp")
        require_finite("operation.clamp", *(v for v in (self.low, self.high) if v is not None))
        if self.low is not None and self.high is not None and self.low > self.high:
            raise InvalidRequestError("clamp needs low <= high", field="operation.clamp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Add:
    """Add `amount` activation units (feature) or `amount` times the vector (direction)."""

    kind: Literal["add"] = "add"
    amount: float

    def __post_init__(self) -> None:
        require_finite("operation.amount", self.amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddNormScaled:
    """Add the unit vector times `fraction` of the site's own norm at that position."""

    kind: Literal["add_norm_scaled"] = "add_norm_scaled"
    fraction: float

    def __post_init__(self) -> None:
        require_finite("operation.fraction", self.fraction)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectOut:
    """Remove the component along the direction, or along the feature's decoder."""

    kind: Literal["project_out"] = "project_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanAblate:
    """Set the activation to its mean over a text."""

    kind: Literal["mean_ablate"] = "mean_ablate"
    text: str
    """The mean is taken over all positions >= 1 of this text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resample:
    """Take the activation from another prompt at the same position (swap, interchange)."""

    kind: Literal["resample"] = "resample"
    donor: str


Operation = Annotated[
    Ablate | Scale | SetTo | Clamp | Add | AddNormScaled | ProjectOut | MeanAblate | Resample,
    Field(discriminator="kind"),
]


# --- mode, condition, error term -----------------------------------------------------------------


class PatternMode(StrEnum):
    """Whether attention patterns follow the changed activations or stay as in the clean run."""

    LIVE = "live"
    FROZEN = "frozen"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadInput:
    """One input of one attention head, for changes that only Q or only K may see."""

    layer: int
    head: int
    role: Literal["q", "k"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """How far the change travels."""

    last_layer: int | None = None
    """Layers after the target up to this one keep their clean MLP outputs. None: all propagate."""
    patterns: PatternMode = PatternMode.LIVE
    heads: tuple[HeadInput, ...] = ()
    """If given, only these head inputs see the change."""
    strength: float = 1.0
    """How far the operation goes: new = old + strength (operation(old) - old); 0 does nothing."""

    def __post_init__(self) -> None:
        require_strength(self.strength, "mode.strength")


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Apply only where a feature's activation is at least this large, at the same position."""

    feature: FeatureRef
    at_least: float

    def __post_init__(self) -> None:
        if isnan(self.at_least):
            raise NonFiniteValueError("condition.at_least must be a number", field="condition.at_least")


class ErrorTerm(StrEnum):
    """What becomes of true output minus reconstruction. Neurons reconstruct exactly: all agree."""

    LIVE = "live"
    """True MLP(x') + (f' - f) W_dec with f on the current x'."""
    FROZEN = "frozen"
    """The clean run's error."""
    DROP = "drop"
    """The reconstruction only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervention:
    """One reversible change during a forward pass."""

    target: Target
    operation: Operation
    selector: Selector = field(default_factory=Selector)
    mode: Mode = field(default_factory=Mode)
    condition: Condition | None = None
    error_term: ErrorTerm = ErrorTerm.LIVE
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The echo of one intervention: what was really changed, and how much."""

    index: int
    """Place in the request's list of interventions."""
    layer: int
    positions: int
    """How many (position, forward pass) pairs were written."""
    mean_change: float
    """Mean L2 norm of the change of the activation written."""
    max_change: float
    changed: int | None = None
    """In how many of these pairs the activation written (a feature's own, whatever its error term does)
    became another one: where a feature is silent or a strength is 0 it does not. None: in older records."""
    degraded: bool = False
    """True if a set that it names failed admission and was accepted all the same."""

"""Measuring what interventions do to a prompt's answer, against matched random controls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from trephine.domain.commands import Command, Progress
from trephine.domain.errors import InvalidRequestError
from trephine.domain.interventions import Applied, Intervention
from trephine.domain.sites import FeatureRef
from trephine.domain.tokens import Token


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitTarget:
    """What is measured at the last position: a token's logit, or its difference to another's."""

    kind: Literal["logit"] = "logit"
    token: str
    """Exactly one token, or `#id`."""
    against: str | None = None
    """Exactly one token, or `#id`. None measures the logit less the mean logit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedControls:
    """Random features of the same layer, moved so far that they write as much (DESIGN 5.9).

    What the operation writes on the prompt is matched, change of the activation x decoder norm over the
    positions that it reaches: stand-ins that would write about as much are moved by so much more, or less,
    that they do. For additions and projections, and for features that are silent there, it is what they
    usually write, rms activation x decoder norm on the retain text, and nothing is scaled.
    """

    sets: int = 99
    """Random sets; p = (1 + #{|control| >= |effect|}) / (sets + 1)."""
    norm_factor: float = 2.0
    """What a stand-in would write, moved as the feature is, is within this factor; within its double where
    it holds fewer than 20 candidates."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sets < 1:
            raise InvalidRequestError("at least one control set is needed", field="controls.sets")
        if not self.norm_factor > 1:
            raise InvalidRequestError("norm_factor must be above 1", field="controls.norm_factor")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmatchedFeature:
    """A feature for which too few controls were found; it is listed, never matched badly."""

    feature: FeatureRef
    candidates: int
    """Features of its layer within the factor, widened; itself and the other targets excluded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedFeature:
    """A feature that has stand-ins, and what they were drawn from."""

    feature: FeatureRef
    candidates: int
    """Features of its layer within the factor; itself and the other targets excluded."""
    factor: float
    """Within which they are."""
    written: float | None
    """What a stand-in would write if it were moved as the feature is, over what that writes: the median of
    the sets. Each is moved by so much more, or less, that it writes as much. None: what is usually written
    was matched, and nothing is scaled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one list of interventions does to the target."""

    name: str
    """`as_given`; `position_bound` for the same features at the named positions only; `matched_only` for
    those that have controls, where some have none."""
    baseline: float
    """The measured quantity without interventions, in logits."""
    intervened: float
    change: float
    """Intervened minus baseline, in logits."""
    kl_last: float
    """KL(plain || intervened) of the next-token distribution at the last position, in nats."""
    applied: tuple[Applied, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlResult:
    """The same operation on random matched features."""

    changes: tuple[float, ...]
    """Change of the target by each random set, in logits."""
    p_value: float
    """(1 + #{|control| >= |effect|}) / (sets + 1); a control that is no number counts, and beside an effect
    that is none all do."""
    found: tuple[MatchedFeature, ...]
    """Features that have controls."""
    unmatched: tuple[UnmatchedFeature, ...]

    @property
    def matched(self) -> int:
        """How many features have controls."""
        return len(self.found)


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationReport:
    """Effects, controls and their p-value."""

    target: Token
    against: Token | None
    effects: tuple[Effect, ...]
    controls: ControlResult | None
    retain_kl: float
    """Mean KL(plain || intervened) over all positions of the retain text, in nats per token."""
    retain_kl_after_first: float
    """The same over positions >= 1."""
    retain_tokens: int
    model: str
    weight_hash: str
    caveats: tuple[str, ...] = ()
    """What a reader must know: a first token that a set was trained with and the prompt lacks, effects that
    are no numbers, control sets that are too few, too alike, far from the features or change nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureAblation(Command[AblationReport, Progress]):
    """Apply interventions to a prompt, measure the target, and compare with matched controls."""

    prompt: str
    target: LogitTarget
    interventions: tuple[Intervention, ...]
    controls: MatchedControls | None = field(default_factory=MatchedControls)
    bound_positions: tuple[int, ...] | None = None
    """If given, the same interventions bound to these positions are measured beside."""

    def __post_init__(self) -> None:
        if not self.interventions:
            raise InvalidRequestError("at least one intervention is needed", field="interventions")

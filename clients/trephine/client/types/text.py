from __future__ import annotations

from dataclasses import dataclass

from trephine.client.decoding import WireValue
from trephine.client.types.common import FeatureRef, Token, Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied(WireValue):
    """The echo of one intervention: what was really changed, and how much."""

    index: int
    layer: int
    positions: int
    """(position, forward pass) pairs that were written, whether or not anything moved there."""
    mean_change: float
    """Mean L2 norm of the change of the activation written."""
    max_change: float
    degraded: bool
    """True if a set that it names failed admission and was accepted all the same."""
    changed: int | None = None
    """In how many of `positions` the activation written (a feature's own, whatever its error term does)
    became another one: where a feature is silent or a strength is 0 it does not. None: in evaluations that
    were stored before this was counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedEdit(WireValue):
    """The echo of one edit."""

    edit: str
    """Resource name of the version that was served, `edits/no-mary@2`."""
    content_hash: str
    strength: float
    applied: tuple[Applied, ...]
    """Per intervention of the edit, in its order; one that matched nothing has 0 positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent(WireValue):
    """One generated token of one row."""

    row: int
    step: int
    token: Token
    text: str
    """Text that became complete with it; joined over a row it is the completion."""
    log_probability: float
    """Nats, before temperature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion(WireValue):
    """A finished row."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    """`stop`, `length`, or `overflow`: no token could be chosen; the caveats say why."""
    applied: tuple[Applied, ...]
    n_prompt_tokens: int
    caveats: tuple[str, ...]
    """What a reader must know of the prompt: a first token that a set was trained with and that it lacks; and
    of a row that overflows, where it does and what to do."""
    edits: tuple[AppliedEdit, ...] = ()
    """Echo of the edits that it was served under."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation(WireValue):
    """All rows of a generation, in order."""

    completions: tuple[Completion, ...]
    version: Version


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScore(WireValue):
    """Log-probabilities of a continuation, one entry per continuation token."""

    token_ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    """Nats. NaN where the row's activations overflow."""
    top_token_ids: tuple[int, ...]
    """The most likely token at each place; -1 where they overflow."""
    kl: tuple[float, ...]
    """KL(plain || intervened) in nats; zeros without interventions."""
    applied: tuple[Applied, ...]
    caveats: tuple[str, ...]
    """What a reader must know of the prompt: a first token that a set was trained with and that it lacks; and
    of a row that overflows, where it does and what to do."""
    edits: tuple[AppliedEdit, ...] = ()
    """Echo of the edits that it was served under."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores(WireValue):
    """All rows of a scoring, in order."""

    rows: tuple[RowScore, ...]
    version: Version


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationEffect(WireValue):
    """What one list of interventions does to the target."""

    name: str
    """`as_given`; `position_bound`; `matched_only`, without the features that have no controls."""
    baseline: float
    intervened: float
    change: float
    """Intervened minus baseline, logits."""
    kl_last: float
    """KL(plain || intervened) at the last position, nats."""
    applied: tuple[Applied, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmatchedFeature(WireValue):
    """A feature with fewer than 20 candidates for a control; it is listed, never matched badly."""

    feature: FeatureRef
    candidates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedFeature(WireValue):
    """A feature with controls, and what those were drawn from."""

    feature: FeatureRef
    candidates: int
    """Features of its layer that would write about as much, within the factor."""
    factor: float
    written: float | None
    """What a stand-in would write if it were moved as the feature is, over what that writes (median). Each is
    moved by so much more, or less, that it writes as much. None: what is usually written was matched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlResult(WireValue):
    """The same operation on random matched features."""

    changes: tuple[float, ...]
    p_value: float
    """A control that is no number counts, and beside an effect that is none all do."""
    matched: int
    unmatched: tuple[UnmatchedFeature, ...]
    found: tuple[MatchedFeature, ...] = ()
    """Features with controls; `matched` is how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation(WireValue):
    """Effects, controls, damage."""

    target: Token
    against: Token | None
    effects: tuple[AblationEffect, ...]
    controls: ControlResult | None
    retain_kl: float
    retain_kl_after_first: float
    retain_tokens: int
    version: Version
    caveats: tuple[str, ...]
    """What a reader must know of the prompt."""
    edits: tuple[AppliedEdit, ...] = ()
    """Echo of the edits that were measured, as given."""

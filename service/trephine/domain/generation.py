"""Generation and scoring over rows, each with its own interventions (DESIGN 5.4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from trephine.domain.commands import Command, Progress
from trephine.domain.errors import InvalidRequestError
from trephine.domain.interventions import Applied, Intervention, require_finite
from trephine.domain.tokens import Token


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    """Each row draws from its own generator seeded with (seed, row): what it draws depends on its place in
    the request, and not on what stands at other places."""

    def __post_init__(self) -> None:
        require_finite("sampling", self.temperature, self.top_p)
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise InvalidRequestError("temperature must be >= 0 and top_p in (0, 1]", field="sampling")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence of a batch and what is done to it."""

    prompt: str
    interventions: tuple[Intervention, ...] = ()
    from_edits: int = 0
    """The first so many interventions are of stored edits: one that matches nothing here is no error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One generated token of one row."""

    row: int
    step: int
    token: Token
    text: str
    """Text that became complete with this token; joined over a row it is the completion."""
    log_probability: float
    """Nats, under the distribution that was sampled from before temperature."""


FinishReason = Literal["stop", "length", "overflow"]
"""`overflow`: no token could be chosen, for the row's activations overflow; its caveats say more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished row."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    applied: tuple[Applied, ...]
    n_prompt_tokens: int
    caveats: tuple[str, ...] = ()
    """What a reader must know of the prompt: a first token that a set was trained with and that it lacks; and
    of a row that overflows, where it does and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """All rows of a Generate command, in order."""

    completions: tuple[Completion, ...]
    model: str
    weight_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate(Command[Generation, TokenEvent]):
    """Continue every row; tokens stream as they come."""

    rows: tuple[Row, ...]
    max_new_tokens: int = 64
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if not self.rows:
            raise InvalidRequestError("at least one row is needed", field="rows")
        if self.max_new_tokens < 1:
            raise InvalidRequestError("max_new_tokens must be at least 1", field="max_new_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRow:
    """A prompt and the continuation whose probability is asked for."""

    prompt: str
    continuation: str
    interventions: tuple[Intervention, ...] = ()
    from_edits: int = 0
    """The first so many interventions are of stored edits: one that matches nothing here is no error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScore:
    """Log-probabilities of a continuation, one entry per continuation token."""

    token_ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    """Nats. NaN where the row's activations overflow."""
    top_token_ids: tuple[int, ...]
    """The most likely token at each of these places; -1 where they overflow."""
    kl: tuple[float, ...]
    """KL(plain || intervened) in nats at each of these places; zeros without interventions."""
    applied: tuple[Applied, ...]
    caveats: tuple[str, ...] = ()
    """What a reader must know of the prompt: a first token that a set was trained with and that it lacks; and
    of a row that overflows, where it does and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """All rows of a Score command, in order."""

    rows: tuple[RowScore, ...]
    model: str
    weight_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Score(Command[Scores, Progress]):
    """Log-probabilities of given continuations, and what interventions do to them."""

    rows: tuple[ScoredRow, ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise InvalidRequestError("at least one row is needed", field="rows")

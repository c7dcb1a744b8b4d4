"""Why a head looked where it looked: a score taken apart, and carried through the exact softmax."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.domain.commands import Command, Progress
from trephine.domain.errors import InvalidRequestError
from trephine.domain.sites import NEURONS
from trephine.domain.spanned_sets import check_spanned_sets
from trephine.domain.tokens import Token

MOST_TERMS = 1000
"""Sources of a side, and pairs, that can be asked for at once."""


class SourceKind(StrEnum):
    """What wrote a part of the residual stream that a head reads."""

    FEATURE = "feature"
    """A feature of the set, or a neuron."""
    ERROR = "error"
    """What the set does not reconstruct, and MLPs that it does not cover."""
    HEAD = "head"
    """A lower head's output at this position."""
    SKIP = "skip"
    """The linear skip path of a transcoder."""
    TOKEN = "token"  # noqa: S105  a kind of source, not a secret
    """The embedding, with its position where positions are embedded."""
    BIAS = "bias"
    """All constants: biases of projections, norms and dictionaries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One summand of the residual stream at one position."""

    kind: SourceKind
    position: int
    layer: int
    """-1 for tokens and biases."""
    index: int
    """Of a feature or head; the vocabulary id of a token; of errors by their site, as in graphs
    (`error_sites`); -1 otherwise."""
    label: str
    replacement: str = ""
    """The set of a feature or a skip path; empty otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideTerm:
    """One source on the query or key side, against everything on the other side."""

    source: Source
    score: float
    """Its part of the score at the traced key (a key-side source: at its own position)."""
    log_odds: float
    """Its part of the traced key's score less the runner-up's, of which the log-odds of the two are the sum
    (before a soft cap); 0 for sources at other keys."""
    share: float
    """Its part of the weight's distance from an even spread (Aumann-Shapley through the softmax)."""
    alone: float
    """How much the weight would fall without it, all else as it is: exact, through the softmax."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairTerm:
    """One bilinear term of the score: a source at the query with one at a key (Kamath et al. 2025)."""

    query: Source
    key: Source
    score: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KindTerm:
    """All terms of two kinds of sources at the traced key, added up."""

    query: SourceKind
    key: SourceKind
    score: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyWeight:
    """One key that the query can see."""

    position: int
    score: float
    """Before a soft cap and the softmax."""
    weight: float
    """In the pattern, a probability."""
    sensitivity: float
    """What a unit of score at this key adds to the traced weight, averaged along the path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTrace:
    """A pattern entry, explained."""

    tokens: tuple[Token, ...]
    layer: int
    head: int
    query: int
    key: int
    """The traced one."""
    runner_up: int | None
    """The visible key with the next largest score; None if the query sees one key."""
    softcap: float | None
    score: float
    """Of the model's own query and key, before a soft cap."""
    terms_sum: float
    """All bilinear terms added up: the score, up to rounding."""
    weight: float
    even: float
    """The weight if all scores were 0: one over the number of visible keys."""
    change: float
    """`weight - even`, what shares add up to."""
    shares_sum: float
    residual: float
    """`|shares_sum - change|`."""
    nodes: int
    """Evaluations of the softmax along the path."""
    keys: tuple[KeyWeight, ...]
    query_side: tuple[SideTerm, ...]
    """Largest absolute share first. All of the side, shown or not, adds up to `change`."""
    key_side: tuple[SideTerm, ...]
    """Over all visible keys, largest absolute share first. All of them add up to `change`."""
    pairs: tuple[PairTerm, ...]
    """At the traced key, between the strongest of both sides, largest absolute score first."""
    kinds: tuple[KindTerm, ...]
    """At the traced key; their scores add up to `terms_sum`."""
    model: str
    weight_hash: str
    replacement: str
    beside: tuple[str, ...]
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceAttention(Command[AttentionTrace, Progress]):
    """Explain one entry of an attention pattern on a prompt."""

    prompt: str
    layer: int
    head: int
    query: int | None = None
    """Position; None: the last one."""
    key: int | None = None
    """Position; None: the key with the largest weight."""
    replacement: str = NEURONS
    top: int = 20
    """Sources of each side, and pairs, that are returned."""
    beside: tuple[str, ...] = ()
    """Further sets whose features span the stream; no two may reconstruct the same site. `neurons`: those of
    the MLPs that no set reconstructs."""

    @property
    def sets(self) -> tuple[str, ...]:
        """Every set that is asked for."""
        return (self.replacement, *self.beside)

    def __post_init__(self) -> None:
        check_spanned_sets(self.replacement, self.beside)
        for name in ("layer", "head"):
            if getattr(self, name) < 0:
                raise InvalidRequestError(f"{name} must not be negative", field=name)
        if not 1 <= self.top <= MOST_TERMS:
            raise InvalidRequestError(f"top must be from 1 to {MOST_TERMS}, got {self.top}", field="top")

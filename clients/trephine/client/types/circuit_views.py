from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.client.decoding import WireValue
from trephine.client.types.common import Token, Version


class HopKind(StrEnum):
    """What carries a path on."""

    UNSPECIFIED = "unspecified"
    HEAD = "head"
    SKIP = "skip"


class StreamSourceKind(StrEnum):
    """What wrote a part of the residual stream that a head reads."""

    UNSPECIFIED = "unspecified"
    FEATURE = "feature"
    ERROR = "error"
    HEAD = "head"
    SKIP = "skip"
    TOKEN = "token"  # noqa: S105  a kind of source, not a secret
    BIAS = "bias"


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeEnds(WireValue):
    """Node indices of an edge."""

    source: int
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop(WireValue):
    """One step of a path."""

    kind: HopKind
    layer: int
    head: int
    """-1 for skip paths."""
    key: int
    """Position that is read."""
    query: int
    """Position that is written."""
    pattern: float
    """Weight of the key in the head's pattern; 1 for skip paths."""

    def __str__(self) -> str:
        """`12.3 @5>9`: layer, head, from where to where."""
        name = f"{self.layer}.{self.head}" if self.kind is HopKind.HEAD else f"skip {self.layer}"
        where = f"@{self.key}" if self.key == self.query else f"@{self.key}>{self.query}"
        return f"{name} {where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PathFactors(WireValue):
    """A part of a path's weight: `weight = invariant * dependent`."""

    readout: str
    invariant: float | None
    """None where the source is an error term, or the read-out depends on the prompt."""
    dependent: float
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenExcitation(WireValue):
    """A token and how much its embedding moves a read-out."""

    token: Token
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgePath(WireValue):
    """One path of an edge."""

    hops: tuple[Hop, ...]
    """From source to target; none: through the residual stream alone."""
    weight: float
    factors: tuple[PathFactors, ...]
    excites: tuple[TokenExcitation, ...]
    inhibits: tuple[TokenExcitation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShare(WireValue):
    """Everything of an edge that enters the target through one hop."""

    hop: Hop
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedEdge(WireValue):
    """An edge: direct + heads + heads_remainder = paths + paths_remainder = weight."""

    ends: EdgeEnds
    source_label: str
    target_label: str
    weight: float
    stored: float | None
    """The circuit's own; None if it keeps no such edge."""
    direct: float
    heads: tuple[HeadShare, ...]
    heads_remainder: float
    paths: tuple[EdgePath, ...]
    paths_remainder: float
    estimated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeExplanations(WireValue):
    """Edges of a circuit, taken apart."""

    edges: tuple[ExplainedEdge, ...]
    tokens: tuple[Token, ...]
    version: Version
    caveats: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSource(WireValue):
    """One summand of the residual stream at one position."""

    kind: StreamSourceKind
    position: int
    layer: int
    index: int
    """Of a feature or head; the vocabulary id of a token; of errors by their site; -1 otherwise."""
    label: str
    replacement: str
    """The set of a feature or a skip path; empty otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSideTerm(WireValue):
    """One source on one side of a score."""

    source: StreamSource
    score: float
    log_odds: float
    share: float
    """Of the weight's distance from an even spread, through the exact softmax."""
    alone: float
    """What the weight would lose without it, through the exact softmax."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPairTerm(WireValue):
    """One bilinear term of the score."""

    query: StreamSource
    key: StreamSource
    score: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionKindTerm(WireValue):
    """All terms of two kinds of sources, added up."""

    query: StreamSourceKind
    key: StreamSourceKind
    score: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionKey(WireValue):
    """One key that the query sees."""

    position: int
    score: float
    weight: float
    sensitivity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTrace(WireValue):
    """A pattern entry, explained."""

    tokens: tuple[Token, ...]
    layer: int
    head: int
    query: int
    key: int
    runner_up: int | None
    softcap: float | None
    score: float
    """Before a soft cap."""
    terms_sum: float
    weight: float
    even: float
    change: float
    shares_sum: float
    residual: float
    nodes: int
    keys: tuple[AttentionKey, ...]
    query_side: tuple[AttentionSideTerm, ...]
    key_side: tuple[AttentionSideTerm, ...]
    pairs: tuple[AttentionPairTerm, ...]
    kinds: tuple[AttentionKindTerm, ...]
    replacement: str
    beside: tuple[str, ...]
    """Further sets."""
    version: Version
    caveats: tuple[str, ...]

"""Edges taken apart: which heads carry an edge, along which paths, and what of it the weights decide."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.domain.circuits import Circuit
from trephine.domain.commands import Command, Progress
from trephine.domain.errors import InvalidRequestError
from trephine.domain.tokens import Token

MOST_EDGES = 50
"""Edges that can be explained at once."""
MOST_PATHS = 200
MOST_TOKENS = 50


class HopKind(StrEnum):
    """What carries a path on."""

    HEAD = "head"
    """An attention head, by its OV matrix, pattern held."""
    SKIP = "skip"
    """The linear skip path of a transcoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One step of a path."""

    kind: HopKind
    layer: int
    head: int
    """-1 for skip paths."""
    key: int
    """Position that is read."""
    query: int
    """Position that is written; the same for skip paths."""
    pattern: float
    """Weight of the key in the head's pattern; 1 for skip paths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """A part of a path's weight as a product (Dunefsky et al. 2024): weight = invariant * dependent."""

    readout: str
    """What the target reads with: `encoder`, also through a linearised MLP, `logit`, `direction`, a gated
    neuron's `gate` and `read`, or a side of an attention score, `query` and `key`."""
    invariant: float | None
    """Virtual weight: decoder, OV matrices, norm gains, encoder. Decided by the model's weights alone. None
    where the source is an error term, or the read-out another side's, which the input makes."""
    dependent: float
    """Activation, patterns, norm scales, and a neuron's coefficient of the half rule."""
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgePath:
    """One path of an edge."""

    hops: tuple[Hop, ...]
    """From source to target; none: through the residual stream alone."""
    weight: float
    factors: tuple[Factors, ...]
    """One per readout of the target; their weights add up to the path's."""
    excites: tuple[tuple[Token, float], ...] = ()
    """De-embedding: tokens whose embeddings, read at the path's beginning, would raise the target most, per
    unit of pattern and of norm scale."""
    inhibits: tuple[tuple[Token, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShare:
    """Everything of an edge that enters the target through one head from one position, whatever is below."""

    hop: Hop
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedEdge:
    """An edge: `direct` + `heads` + `heads_remainder` = `paths` + `paths_remainder` = `weight`."""

    source: int
    """Node index."""
    target: int
    weight: float
    """Computed anew, along all paths at once."""
    stored: float | None
    """The circuit's own; None if the circuit keeps no such edge."""
    direct: float
    """Through the residual stream alone."""
    heads: tuple[HeadShare, ...]
    """By the last hop before the target, largest absolute weight first."""
    heads_remainder: float
    paths: tuple[EdgePath, ...]
    """Largest absolute weight first, found greedily."""
    paths_remainder: float
    estimated: bool
    """True if the target is a neuron (half rule), a feature read through a linearised MLP, or an attention
    score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeExplanations:
    """Explained edges of one circuit, in the order asked for."""

    edges: tuple[ExplainedEdge, ...]
    model: str
    weight_hash: str
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainEdges(Command[EdgeExplanations, Progress]):
    """Take edges of a circuit apart on the prompt that it was found on."""

    circuit: Circuit
    edges: tuple[tuple[int, int], ...]
    """Source and target node of each."""
    paths: int = 10
    heads: int = 20
    tokens: int = 0
    """Tokens per end of every path's de-embedding; 0 skips it."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.edges) <= MOST_EDGES:
            raise InvalidRequestError(
                f"from 1 to {MOST_EDGES} edges can be explained at once, not {len(self.edges)}", field="edges"
            )
        for name, most in (("paths", MOST_PATHS), ("heads", MOST_PATHS), ("tokens", MOST_TOKENS)):
            if not 0 <= getattr(self, name) <= most:
                raise InvalidRequestError(f"{name} must be from 0 to {most}", field=name)

"""What is gathered on the walk over the summands of a stream, for one entry of a pattern."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.attention import SourceKind
from trephine.engine.attribution.attention_scores import HeadScores
from trephine.engine.graphs.stream import StreamPart
from trephine.engine.tracing.softmax_paths import SoftmaxPath

KINDS = tuple(SourceKind)
"""Rows of sums by kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The pattern entry that is explained."""

    layer: int
    head: int
    query: int
    key: int
    runner_up: int | None
    scores: HeadScores
    visible: Tensor
    """int64 `(n_keys,)`."""
    row: Tensor
    """`(n_keys,)`, scores before a soft cap."""
    measured: Tensor
    """`(n_keys,)`, one at the traced key."""
    path: SoftmaxPath

    def column(self, position: int) -> int:
        """Where a visible key stands in the row."""
        return position - int(self.visible[0])


@dataclass(slots=True)
class Ranking:
    """The best sources so far, by absolute value; what they are, in tensors."""

    room: int
    value: Tensor
    """float64 `(n,)`."""
    scores: Tensor
    """`(n, n_keys)` parts of scores on the query side; `(n, 1)` at their own position on the key side."""
    kind: Tensor
    layer: Tensor
    index: Tensor
    position: Tensor
    owner: Tensor
    """int64 `(n,)`, which of `sets` a feature or a skip path is of; -1 for all else."""
    sets: tuple[str, ...]
    vectors: Tensor | None
    """`(n, d_model)`, kept only for pairs."""

    def add(self, part: StreamPart, chosen: Tensor, value: Tensor, scores: Tensor) -> None:
        """Offer some summands of a part, `chosen (n,)`, with their values `(n,)`."""
        kind = torch.full((len(chosen),), KINDS.index(part.kind))
        layer = torch.full((len(chosen),), part.layer)
        number = self.sets.index(part.replacement) if part.replacement else -1
        owner = torch.full((len(chosen),), number)
        columns = (kind, layer, part.index[chosen].cpu(), part.position[chosen].cpu(), owner)
        self.value = torch.cat([self.value, value.double().cpu()])
        keep = self.value.abs().topk(min(self.room, len(self.value))).indices
        self.value = self.value[keep]
        self.scores = torch.cat([self.scores, scores.cpu()])[keep]
        for name, column in zip(("kind", "layer", "index", "position", "owner"), columns, strict=True):
            setattr(self, name, torch.cat([getattr(self, name), column])[keep])
        if self.vectors is not None:
            self.vectors = torch.cat([self.vectors, part.vectors[chosen]])[keep.to(self.vectors.device)]


def empty_ranking(room: int, columns: int, like: Tensor, sets: tuple[str, ...], *, vectors: bool) -> Ranking:
    """Begin a ranking of `room` sources, features among them of `sets`, whose scores have so many columns."""
    numbers = torch.zeros(0, dtype=torch.int64)
    return Ranking(
        room=room,
        value=torch.zeros(0, dtype=torch.float64),
        scores=torch.zeros(0, columns, dtype=like.dtype),
        kind=numbers,
        layer=numbers,
        index=numbers,
        position=numbers,
        owner=numbers,
        sets=sets,
        vectors=like.new_zeros(0, like.shape[-1]) if vectors else None,
    )


@dataclass(slots=True, kw_only=True)
class Sums:
    """What is gathered in one walk over the summands of the stream."""

    query_side: Ranking
    key_side: Ranking
    query_pairs: Ranking
    key_pairs: Ranking
    query_kinds: Tensor
    """`(n_kinds, d_model)`, the stream at the query by kind."""
    key_kinds: Tensor
    """`(n_kinds, d_model)`, the stream at the traced key by kind."""

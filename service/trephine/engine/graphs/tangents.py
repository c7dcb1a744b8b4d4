"""What one source does to the stream at every place above it, forwards, with all that edges hold held.

The transpose of the sweep (`sweeping.py`): a unit of the source goes up through value paths and skip paths;
patterns and norm scales are those of the prompt, MLP outputs do not follow, dictionaries on the stream and on
attention's output end what comes from below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from trephine.domain.sites import Site, SiteKind
from trephine.engine.attribution.operators import FrozenLayer, FrozenNorm, FrozenOperators


class Reading(Enum):
    """Where in a block something reads the stream."""

    EMBEDDING = -1
    """The tokens' embeddings, below a dictionary that reconstructs them."""
    PRE = 0
    """What attention reads: the stream before the block."""
    MID_BEFORE_CUT = 1
    """The stream between attention and MLP, below a dictionary that reconstructs it there."""
    MID = 2
    """What the MLP's norm reads."""
    POST_BEFORE_CUT = 3
    """The stream behind the block, below a dictionary on it or on what the next block reads."""
    POST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenNetwork:
    """What a unit of a source goes through."""

    operators: FrozenOperators
    held: frozenset[Site]
    """Sites that a dictionary reconstructs: on attention's output and on the stream."""
    skips: Mapping[int, Tensor]
    """Skip matrices `(d_model, d_model)` by layer."""

    def carried_by_attention(self, layer: int) -> bool:
        """True if edges go through a layer's heads."""
        return Site(kind=SiteKind.ATTN_OUT, layer=layer) not in self.held


@dataclass(slots=True, kw_only=True)
class Tangent:
    """The stream's change per unit of a source, by block and reading."""

    values: dict[tuple[int, Reading], Tensor] = field(default_factory=dict)
    """`(n_pos, d_model)` each."""

    def at(self, layer: int, reading: Reading) -> Tensor:
        """`(n_pos, d_model)` where something reads."""
        return self.values[layer, reading]


def tangent(
    network: FrozenNetwork,
    writes: Mapping[Site, Tensor],
    position: int,
    *,
    routed: bool,
    token: bool = False,
) -> Tangent:
    """Send a unit of a source up.

    Args:
        network: What it goes through.
        writes: What a unit writes at each site, `(d_model,)`.
        position: Where.
        routed: False: along the residual stream alone.
        token: True if the source is a token, whose embedding stands below a dictionary there.
    """
    operators = network.operators
    state = _Stream(network, writes, position, Tangent(), torch.zeros_like(operators.embedding))
    state.embed(token)
    for layer in operators.layers:
        state.block(layer, routed)
    return state.found


@dataclass(slots=True)
class _Stream:
    network: FrozenNetwork
    writes: Mapping[Site, Tensor]
    position: int
    found: Tangent
    now: Tensor

    def write(self, kind: SiteKind, layer: int) -> None:
        vector = self.writes.get(Site(kind=kind, layer=layer))
        if vector is not None:
            self.now[self.position] += vector

    def embed(self, token: bool) -> None:
        """Begin with a token, or with what a dictionary on the embeddings writes in its place."""
        site, nothing = Site(kind=SiteKind.EMBED, layer=0), self.now.clone()
        self.write(SiteKind.EMBED, 0)
        self.found.values[0, Reading.EMBEDDING] = self.now.clone() if token else nothing
        if token and site in self.network.held:
            self.now = nothing

    def cut(self, kind: SiteKind, layer: int, after: Reading, before: Reading | None = None) -> None:
        """Keep what is read below a dictionary, begin anew with what it writes, keep what is read above."""
        if before is not None:
            self.found.values[layer, before] = self.now.clone()
        if Site(kind=kind, layer=layer) in self.network.held:
            self.now = torch.zeros_like(self.now)
        self.write(kind, layer)
        self.found.values[layer, after] = self.now.clone()

    def block(self, layer: FrozenLayer, routed: bool) -> None:
        number, parallel = layer.block.layer, layer.block.parallel
        self.cut(SiteKind.RESID_PRE, number, Reading.PRE)
        attended = routed and self.network.carried_by_attention(number)
        mixed = attention_change(layer, self.now) if attended else torch.zeros_like(self.now)
        if not parallel:
            self.now = self.now + mixed
            self.write(SiteKind.ATTN_OUT, number)
        self.cut(SiteKind.RESID_MID, number, Reading.MID, Reading.MID_BEFORE_CUT)
        matrix = self.network.skips.get(number)
        skipped = skip_change(layer, matrix, self.now) if routed and matrix is not None else 0
        self.now = self.now + skipped + (mixed if parallel else 0)
        if parallel:
            self.write(SiteKind.ATTN_OUT, number)
        self.write(SiteKind.MLP_OUT, number)
        self.cut(SiteKind.RESID_POST, number, Reading.POST, Reading.POST_BEFORE_CUT)


def linear(norm: FrozenNorm, change: Tensor) -> Tensor:
    """Carry a change `(n_pos, d_model)` through a norm of frozen scales."""
    return norm.push(change, slice(len(change)))


def value_change(layer: FrozenLayer, change: Tensor) -> Tensor:
    """Change of the values `(n_kv_heads, n_pos, d_head)` for one of the stream `(n_pos, d_model)`."""
    return linear(layer.attention_norm, change) @ layer.block.attention.W_V.to(change.dtype).transpose(1, 2)


def attention_change(layer: FrozenLayer, change: Tensor) -> Tensor:
    """Change of what attention adds `(n_pos, d_model)`, pattern held."""
    attention = layer.block.attention
    value = value_change(layer, change).repeat_interleave(attention.group, 0)
    mixed = (layer.pattern @ value).transpose(0, 1).flatten(1)  # (n_pos, n_heads * d_head)
    out = mixed @ attention.W_O.to(change.dtype).flatten(1).T
    return out if layer.attention_post_norm is None else linear(layer.attention_post_norm, out)


def skip_change(layer: FrozenLayer, matrix: Tensor, change: Tensor) -> Tensor:
    """Change of what a skip path adds `(n_pos, d_model)`."""
    return linear(layer.mlp_norm, change) @ matrix.to(change.dtype).T

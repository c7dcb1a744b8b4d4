"""The residual stream that a block reads, as a sum of what was written below it at the same position.

Features of a set (or neurons), error terms, the outputs of lower heads, skip paths, embeddings, constants. A
dictionary on the stream is its whole beginning: nothing below it is listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trephine.domain.attention import SourceKind
from trephine.domain.error_sites import error_number
from trephine.domain.sites import NEURONS, Site, SiteKind
from trephine.engine.attribution.operators import FrozenLayer, FrozenOperators, push_through
from trephine.engine.attribution.places import (
    AFTER,
    ATTENTION,
    BEFORE,
    EMBEDDING,
    PER_BLOCK,
    clean_value,
    is_cut,
    place_of,
)
from trephine.engine.graphs.actives import ActiveFeatures, ActiveLayer
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import opened


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPart:
    """Summands of one kind and layer."""

    kind: SourceKind
    layer: int
    index: Tensor
    """int64 `(n,)`, of features and heads; of errors the number of their site; -1 otherwise."""
    position: Tensor
    """int64 `(n,)`."""
    vectors: Tensor
    """`(n, d_model)`, as added to the stream."""
    replacement: str = ""
    """The set of features and skip paths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSources:
    """What the stream before one block consists of."""

    hosted: HostedModel
    operators: FrozenOperators
    active: ActiveFeatures | None
    """None: the model's own neurons."""
    layer: int

    def parts(self, positions: Sequence[int]) -> Iterator[StreamPart]:
        """Yield every summand at some positions, layer by layer; together they are the stream there."""
        at = torch.tensor(sorted(positions), device=self.operators.device)
        constants = self.operators.embedding.new_zeros(len(at), self.operators.embedding.shape[1])
        cut = self._cut()
        yield from self._beginning(cut, at, constants)
        for layer in self.operators.layers[: self.layer]:
            first = PER_BLOCK * layer.block.layer
            if first + ATTENTION > cut:
                yield from self._attention(layer, at, constants)
            if first + AFTER > cut:
                yield from self._mlp(layer, at, constants)
        yield self._part(SourceKind.BIAS, -1, at, constants)

    def _cut(self) -> int:
        """Place of the highest dictionary on the stream below the block; under all places without one."""
        reads = PER_BLOCK * self.layer + BEFORE
        cuts = [] if self.active is None else [cut for cut in self.active.cuts if cut < reads]
        return max(cuts, default=EMBEDDING - 1)

    def _beginning(self, cut: int, at: Tensor, constants: Tensor) -> Iterator[StreamPart]:
        if self.active is not None and cut >= EMBEDDING:
            own = [x for x in self.active.layers if is_cut(x.info) and place_of(x.info.site_in) == cut]
            yield from self._dictionary(own[0].info.site_in, at, constants)
        else:
            yield self._part(SourceKind.TOKEN, -1, at, self.operators.embedding[at])

    def _attention(self, layer: FrozenLayer, at: Tensor, constants: Tensor) -> Iterator[StreamPart]:
        number = layer.block.layer
        site = Site(kind=SiteKind.ATTN_OUT, layer=number)
        if self.active is not None and site in self.active.errors:
            yield from self._dictionary(site, at, constants)
            return
        post = layer.attention_post_norm
        heads = head_outputs(layer, at)  # (n, n_heads, d_model)
        b_O = layer.block.attention.b_O
        if b_O is not None:
            constants += push_through(post, b_O.to(constants.dtype).expand(len(at), -1), at)
        if post is not None and post.bias is not None:
            constants += post.bias
        for head in range(heads.shape[1]):
            yield self._part(SourceKind.HEAD, number, at, push_through(post, heads[:, head], at), index=head)

    def _mlp(self, layer: FrozenLayer, at: Tensor, constants: Tensor) -> Iterator[StreamPart]:
        site = Site(kind=SiteKind.MLP_OUT, layer=layer.block.layer)
        if self.active is not None:
            yield from self._dictionary(site, at, constants)
            return
        mlp, post = layer.block.mlp, layer.mlp_post_norm
        if mlp.b_down is not None:
            constants += push_through(post, mlp.b_down.to(constants.dtype).expand(len(at), -1), at)
        if post is not None and post.bias is not None:
            constants += post.bias
        decoders = mlp.W_down.T.to(constants.dtype)
        for position in at.tolist():
            here = torch.full((len(decoders),), position, device=at.device)
            written = push_through(post, layer.activation[position, :, None] * decoders, here)
            yield StreamPart(
                kind=SourceKind.FEATURE,
                layer=site.layer,
                index=torch.arange(len(decoders), device=at.device),
                position=here,
                vectors=written,
                replacement=NEURONS,
            )

    def _dictionary(self, site: Site, at: Tensor, constants: Tensor) -> Iterator[StreamPart]:
        """Features that write a site, its error, its skip path; constants are added up."""
        active = self.active
        if active is None:
            raise ValueError("neurons are no dictionary")
        for layer in active.writers(site):
            yield from self._features(layer, site, at)
            if layer.info.has_skip and layer.info.layer == site.layer:
                yield from self._skip(layer, at)
        constants += active.constants[site][at]
        errors, number = active.errors[site][at], error_number(site.kind)
        yield self._part(SourceKind.ERROR, site.layer, at, errors, index=number)

    def _features(self, layer: ActiveLayer, site: Site, at: Tensor) -> Iterator[StreamPart]:
        chosen = torch.isin(layer.position, at).nonzero().flatten()
        if not len(chosen):
            return
        unique, place = layer.index[chosen].unique(return_inverse=True)
        with opened(self.hosted, layer.ref.replacement, [layer.ref.layer]) as resident:
            decoders = resident[layer.ref.layer].decoders(unique.tolist(), site)
        yield StreamPart(
            kind=SourceKind.FEATURE,
            layer=layer.info.layer,
            index=layer.index[chosen],
            position=layer.position[chosen],
            vectors=decoders.to(self.operators.dtype)[place] * layer.written[chosen, None],
            replacement=layer.ref.replacement,
        )

    def _skip(self, layer: ActiveLayer, at: Tensor) -> Iterator[StreamPart]:
        with opened(self.hosted, layer.ref.replacement, [layer.ref.layer]) as resident:
            matrix = resident[layer.ref.layer].skip_matrix()
        if matrix is not None:
            read = clean_value(self.operators, layer.info.site_in)[at]
            part = self._part(SourceKind.SKIP, layer.info.layer, at, read @ matrix.T.to(read.dtype))
            yield replace(part, replacement=layer.ref.replacement)

    def _part(
        self, kind: SourceKind, layer: int, at: Tensor, vectors: Tensor, *, index: int = -1
    ) -> StreamPart:
        numbers = torch.full((len(at),), index, device=at.device)
        return StreamPart(kind=kind, layer=layer, index=numbers, position=at, vectors=vectors)


def head_outputs(layer: FrozenLayer, positions: Tensor) -> Tensor:
    """What each head writes at some positions `(n, n_heads, d_model)`, before a post-norm, without `b_O`."""
    attention, dtype = layer.block.attention, layer.resid_pre.dtype
    read = layer.attention_norm.apply(layer.resid_pre)
    value = read @ attention.W_V.to(dtype).transpose(1, 2)  # (n_kv_heads, n_pos, d_head)
    if attention.b_V is not None:
        value = value + attention.b_V.to(dtype)[:, None]
    mixed = layer.pattern[:, positions] @ value.repeat_interleave(attention.group, 0)  # (n_heads, n, d_head)
    return torch.einsum("hne,dhe->nhd", mixed, attention.W_O.to(dtype))

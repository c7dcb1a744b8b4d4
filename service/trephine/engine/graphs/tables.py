"""What all sweeps of one prompt multiply with, laid out for a device where calls cost more than work.

On a GPU a model of ordinary size leaves the card idle between calls, so that time is the number of calls. Per
block, everything that was written becomes one batch of matrices by position (features, padded to the widest
position; the error term; the constants), and attention four products with matrices into which gains,
centring and frozen scales are folded. Works for sets that read what MLPs read and write what they write
(transcoders, skip and cross-layer ones, neurons aside); `sweeping` does all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.sites import Site, SiteKind
from trephine.engine.adjoints import output_matrix, scaled_pattern, value_matrix
from trephine.engine.graphs.actives import ActiveFeatures
from trephine.engine.graphs.skips import skip_of
from trephine.engine.graphs.writes import Span, spans_of
from trephine.engine.hosted import HostedModel
from trephine.engine.operators import FrozenLayer, FrozenNorm, FrozenOperators
from trephine.engine.replacements.sets import opened

MOST_BYTES = 3 << 30
"""Tables larger than this are not made: a long prompt has work enough."""
_BLOCK_ROWS = 1 << 17
_REST = 2
"""Columns of every position beside its features: the error term and the constants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What stands at a span of positions of one MLP's output."""

    span: Span
    first: int
    """Where its scores begin in the table of all."""
    vectors: Tensor
    """`(n_positions, d_model, width)`, as added to the stream; what is padding is never read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedSkip:
    """The linear path beside an MLP's features, from its output to the stream that its norm reads."""

    matrix: Tensor
    """`(d_model, d_model)`, the norm's gain and centring in, its scale out."""
    scale: Tensor
    """`(n_pos, 1, 1)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedAttention:
    """Attention with its pattern frozen, from its output to the stream before the block."""

    output: Tensor
    """`(n_heads, d_model, d_head)`."""
    pattern: Tensor
    """`(n_kv_heads, n_key, group, n_query)`, times the scales of the norms at key and query."""
    value: Tensor
    """`(n_kv_heads * d_head, d_model)`."""
    constants: Tensor | None
    """`(n_pos, d_model, 1)`, what biases write; None where there are none."""

    def until(self, n_cone: int) -> Tensor:
        """Return the pattern of the first positions, `(n_kv_heads, n_cone, group * n_cone)`."""
        return self.pattern[:, :n_cone, :, :n_cone].flatten(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTable:
    """One block."""

    parallel: bool
    written: tuple[Written, ...]
    skip: FoldedSkip | None
    attention: FoldedAttention


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepTables:
    """One prompt."""

    layers: tuple[LayerTable, ...]
    width: int
    """Scores of one target, padding included."""
    cells: Tensor
    """int64 `(n_entries,)`, the cell of every feature that is written somewhere, and"""
    columns: Tensor
    """int64 `(n_entries,)`, where its scores stand."""
    n_cells: int
    one_each: bool
    """True if every cell is written once, in order: then columns are the cells'."""
    errors: Tensor
    """int64 `(n_error_sites * n_pos,)`, where the scores of error terms stand."""
    constants: Tensor
    """int64 `(n_error_sites * n_pos,)`, and those of constants."""
    embedding: Tensor
    """`(n_pos, d_model, 1)`."""

    @property
    def n_pos(self) -> int:
        """Positions of the prompt."""
        return len(self.embedding)


def is_tabled(active: ActiveFeatures, operators: FrozenOperators) -> bool:
    """True where tables can be made, and a device is there that gains by them."""
    return operators.device.type == "cuda" and can_be_tabled(active) and _bytes(active) <= MOST_BYTES


def can_be_tabled(active: ActiveFeatures) -> bool:
    """True if all layers of a set read and write at MLPs: between their outputs a sweep is linear algebra."""
    return all(
        layer.info.site_in.kind is SiteKind.MLP_IN
        and all(site.kind is SiteKind.MLP_OUT for site in layer.info.sites_out)
        for layer in active.layers
    )


def _bytes(active: ActiveFeatures) -> int:
    """Bound the bytes of what features write."""
    vector = next(iter(active.errors.values()))
    vectors = sum(layer.count * len(layer.info.sites_out) for layer in active.layers)
    return 2 * vectors * vector.shape[1] * vector.element_size()


def sweep_tables(hosted: HostedModel, operators: FrozenOperators, active: ActiveFeatures) -> SweepTables:
    """Lay a prompt out.

    Args:
        hosted: The model with its sets.
        operators: The frozen network.
        active: The prompt's active features, of a set that `can_be_tabled`.
    """
    device, n_pos = operators.device, operators.n_pos
    sites = [Site(kind=SiteKind.MLP_OUT, layer=layer.block.layer) for layer in operators.layers]
    plans = _plans(active, sites, n_pos)
    rest = torch.cat([torch.stack([plan.starts, plan.starts + 1]) for plan in plans], 1)  # (2, sites * n_pos)
    errors, constants = rest.to(device)
    vectors = operators.embedding.new_empty(plans[-1].end, operators.embedding.shape[1])
    vectors[errors] = torch.cat([active.errors[site] for site in sites])
    vectors[constants] = torch.cat([_constants(hosted, operators, active, site) for site in sites])
    cells, columns = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
    for site, plan in zip(sites, plans, strict=True):
        for layer, places in zip(active.writers(site), plan.places, strict=True):
            if not layer.count:
                continue
            with opened(hosted, active.replacement, [layer.info.layer]) as resident:
                decoders = resident[layer.info.layer].decoders(layer.index, site).to(vectors.dtype)
            vectors[places.to(device)] = decoders * layer.written[:, None].to(vectors.dtype)
            cells.append(torch.arange(layer.start, layer.start + layer.count))
            columns.append(places)
    cell, column = torch.cat(cells), torch.cat(columns)
    return SweepTables(
        layers=tuple(
            LayerTable(
                parallel=layer.block.parallel,
                written=tuple(_written(plan, vectors)),
                skip=_skip(hosted, active, layer),
                attention=attention,
            )
            for layer, plan, attention in zip(operators.layers, plans, _attentions(operators), strict=True)
        ),
        width=plans[-1].end,
        cells=cell.to(device),
        columns=column.to(device),
        n_cells=active.count,
        one_each=torch.equal(cell, torch.arange(active.count)),
        errors=errors[_by_site(active, sites, n_pos).to(device)],
        constants=constants,
        embedding=operators.embedding[:, :, None],
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where what one site holds stands in the table."""

    spans: tuple[Span, ...]
    first: int
    end: int
    starts: Tensor
    """int64 `(n_pos,)`: of a position's error term; its constants and features follow."""
    places: list[Tensor]
    """int64 `(n,)`, per layer that writes the site, of its features."""


def _plans(active: ActiveFeatures, sites: Sequence[Site], n_pos: int) -> list[_Plan]:
    plans: list[_Plan] = []
    end = 0
    for site in sites:
        writers = active.writers(site)
        counts = torch.full((n_pos,), _REST)
        ranks: list[Tensor] = []
        for layer in writers:
            offsets = torch.tensor(layer.offsets)
            position = active.position[layer.start : layer.start + layer.count]
            ranks.append(torch.arange(layer.count) - offsets[position] + counts[position])
            counts = counts + offsets.diff()
        spans = tuple(spans_of((0, *counts.cumsum(0).tolist()), _BLOCK_ROWS))
        first, starts = end, torch.zeros(n_pos, dtype=torch.int64)
        for span in spans:
            own = torch.arange(len(span.positions))
            starts[span.positions.start : span.positions.stop] = end + own * span.width
            end += span.rows
        positions = [active.position[layer.start : layer.start + layer.count] for layer in writers]
        places = [starts[position] + rank for position, rank in zip(positions, ranks, strict=True)]
        plans.append(_Plan(spans, first, end, starts, places))
    return plans


def _by_site(active: ActiveFeatures, sites: Sequence[Site], n_pos: int) -> Tensor:
    """Order error terms as the active features number them, `(n_error_sites * n_pos,)`."""
    order = torch.tensor([sites.index(site) for site in active.error_sites])
    return (order[:, None] * n_pos + torch.arange(n_pos)).flatten()


def _written(plan: _Plan, vectors: Tensor) -> list[Written]:
    found, first = [], plan.first
    for span in plan.spans:
        own = vectors[first : first + span.rows].unflatten(0, (len(span.positions), span.width))
        found.append(Written(span=span, first=first, vectors=own.transpose(1, 2)))
        first += span.rows
    return found


def _constants(hosted: HostedModel, operators: FrozenOperators, active: ActiveFeatures, site: Site) -> Tensor:
    """Return what no source writes at an MLP's output `(n_pos, d_model)`, through the skip path included."""
    layer = operators.layers[site.layer]
    matrix, bias = skip_of(hosted, active, layer), layer.mlp_norm.bias
    constants = active.constants[site]
    return constants if matrix is None or bias is None else constants + matrix.to(bias.dtype) @ bias


def _skip(hosted: HostedModel, active: ActiveFeatures, layer: FrozenLayer) -> FoldedSkip | None:
    matrix, norm = skip_of(hosted, active, layer), layer.mlp_norm
    if matrix is None:
        return None
    return FoldedSkip(matrix=_through(norm, matrix.to(norm.gain.dtype)), scale=norm.scale[:, :, None])


def _through(norm: FrozenNorm, matrix: Tensor) -> Tensor:
    """Fold a norm's gain and centring into `(d_out, d_model)` on its output."""
    gained = matrix * norm.gain
    return gained - gained.mean(1, keepdim=True) if norm.centred else gained


def _attentions(operators: FrozenOperators) -> Iterator[FoldedAttention]:
    """Fold all layers, each written into one piece of memory: a call per matrix."""
    attention, n_layers = operators.layers[0].block.attention, len(operators.layers)
    n_heads, n_kv_heads, d_head = attention.n_heads, attention.n_kv_heads, attention.d_head
    n_pos, d_model = operators.embedding.shape
    empty = operators.embedding.new_empty
    outputs = empty(n_layers, n_heads, d_model, d_head)
    values = empty(n_layers, n_kv_heads * d_head, d_model)
    patterns = empty(n_layers, n_kv_heads, n_pos, attention.group, n_pos)
    for layer, output, value, pattern in zip(operators.layers, outputs, values, patterns, strict=True):
        folded = output_matrix(layer, output.dtype)  # (d_model, n_heads * d_head)
        output.copy_(folded.unflatten(1, (n_heads, d_head)).transpose(0, 1))
        value_matrix(layer, value.dtype, out=value)
        scaled_pattern(layer, n_pos, out=pattern.permute(0, 3, 2, 1))
        constants = _attention_constants(layer, folded)
        yield FoldedAttention(output=output, pattern=pattern, value=value, constants=constants)


def _attention_constants(layer: FrozenLayer, output: Tensor) -> Tensor | None:
    """What the biases of values, output and norms write, with the pattern as it is."""
    attention, norm, post = layer.block.attention, layer.attention_norm, layer.attention_post_norm
    values = [] if attention.b_V is None else [attention.b_V.to(output.dtype)]
    values += [] if norm.bias is None else [attention.W_V.to(output.dtype) @ norm.bias]
    own = [] if attention.b_O is None else [attention.b_O.to(output.dtype)]
    if not values and not own and (post is None or post.bias is None):
        return None
    found = torch.zeros_like(layer.resid_pre)
    if values:
        by_head = sum(values[1:], values[0]).repeat_interleave(attention.group, 0)  # (n_heads, d_head)
        heard = layer.pattern.sum(2).T[:, :, None] * by_head  # (n_pos, n_heads, d_head)
        found = found + heard.flatten(1) @ output.T
    for bias in own:
        if post is not None:
            gained = bias - bias.mean() if post.centred else bias
            bias = gained * post.gain
        found = found + bias
    if post is not None:
        found = found * post.scale
        found = found if post.bias is None else found + post.bias
    return found[:, :, None]

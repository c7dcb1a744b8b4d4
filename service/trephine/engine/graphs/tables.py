"""What all sweeps of one prompt multiply with, laid out for a device where calls cost more than work.

On a GPU a model of ordinary size leaves the card idle between calls, so that time is the number of calls. Per
block, everything that was written becomes one batch of matrices of one width (features, the error term, the
constants; a position with many takes several), and attention three products with matrices into which gains,
centring and frozen scales are folded. Works for sets that read what MLPs read and write what they write
(transcoders, skip and cross-layer ones, neurons aside); `sweeping` does all others.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.replacements import LayerKind
from trephine.domain.sites import Site, SiteKind
from trephine.domain.sweeps import TABLED_BYTES
from trephine.engine.attribution.operators import FrozenLayer, FrozenOperators
from trephine.engine.graphs.actives import ActiveFeatures, ActiveLayer
from trephine.engine.graphs.skips import skip_of
from trephine.engine.graphs.writes import PADDING
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.memory import free_bytes
from trephine.engine.replacements.sets import opened

_SHARE = 3
"""Of what is free, the part that tables may take: a sweep's scores and the rows need the rest."""
_MULTIPLE = 8
"""Packs are as wide as so many features, times a whole number, where the mean position has as many."""
_FOLDED_BYTES = 256 << 20
"""Patterns, or matrices, that are folded together."""
_REST = 2
"""Columns of every position beside its features: the error term and the constants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What stands at one MLP's output, in packs of one width; a position's follow each other."""

    first: int
    """Where its scores begin in the table of all."""
    ends: tuple[int, ...]
    """Packs of the first positions, by how many these are: 0 of none, first."""
    positions: Tensor | None
    """int64 `(n_packs,)`, of each pack, ascending; None where every position has one."""
    vectors: Tensor
    """`(n_packs, d_model, width)`: error term, constants, decoders; what is padding is never read."""


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
    written: Written
    skip: FoldedSkip | None
    attention: FoldedAttention


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepTables:
    """One prompt."""

    layers: tuple[LayerTable, ...]
    width: int
    """Scores of one target, padding included."""
    parts: tuple[range, ...]
    """Cells of every layer, once for every site that it writes; entries are theirs, part by part."""
    columns: Tensor
    """int64 `(n_entries,)`, where the scores of entries stand."""
    amounts: Tensor
    """`(n_entries,)`, what the decoder is multiplied with when it is written."""
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
    """True where tables can be made, and a device is there that gains by them and has room."""
    if operators.device.type != "cuda" or not can_be_tabled(active):
        return False
    return table_bytes(active, operators) <= min(TABLED_BYTES, free_bytes(operators.device) // _SHARE)


def can_be_tabled(active: ActiveFeatures) -> bool:
    """True if all layers read and write at MLPs: between their outputs a sweep is linear algebra."""
    return all(
        layer.info.kind is not LayerKind.NEURONS
        and layer.info.site_in.kind is SiteKind.MLP_IN
        and all(site.kind is SiteKind.MLP_OUT for site in layer.info.sites_out)
        for layer in active.layers
    )


def table_bytes(active: ActiveFeatures, operators: FrozenOperators) -> int:
    """Bound the bytes of a prompt's tables: what is written, padded, and every block's folded matrices."""
    attention, n_layers = operators.layers[0].block.attention, len(operators.layers)
    n_pos, d_model = operators.embedding.shape
    vectors = sum(layer.count * len(layer.info.sites_out) for layer in active.layers)
    padded = PADDING * (vectors + _REST * n_layers * n_pos) * d_model
    matrices = (attention.n_heads + attention.n_kv_heads) * attention.d_head * d_model
    matrices += attention.n_heads * n_pos**2
    skips = sum(layer.info.has_skip for layer in active.layers) * d_model**2
    return (padded + n_layers * matrices + skips) * operators.embedding.element_size()


def sweep_tables(
    hosted: HostedModel, operators: FrozenOperators, active: ActiveFeatures
) -> Generator[None, None, SweepTables]:
    """Lay a prompt out, one layer of the set a quantum.

    Args:
        hosted: The model with its sets.
        operators: The frozen network.
        active: The prompt's active features, of a set that `can_be_tabled`.
    """
    device, n_pos = operators.device, operators.n_pos
    sites = [Site(kind=SiteKind.MLP_OUT, layer=layer.block.layer) for layer in operators.layers]
    writings = _writings(active, sites)
    plan = _plan(writings, n_pos, len(sites))
    amounts = [layer.written for layer, _ in writings.parts]
    with torch.inference_mode():
        columns, starts = plan.columns.to(device), plan.starts.to(device)
        errors, constants = starts, starts + 1
        width = plan.packs.rows
        vectors = operators.embedding.new_empty(width, operators.embedding.shape[1])
        vectors[errors] = torch.cat([active.errors[site] for site in sites])
        vectors[constants] = torch.cat([_constants(hosted, operators, active, site) for site in sites])
    for (layer, site), places in zip(writings.parts, columns.split(writings.counts), strict=True):
        ref = layer.ref
        with opened(hosted, ref.replacement, [ref.layer]) as resident, torch.inference_mode():
            vectors[places] = resident[ref.layer].decoders(layer.index, site).to(vectors.dtype)
        yield
    with torch.inference_mode():
        return SweepTables(
            layers=tuple(
                LayerTable(
                    parallel=layer.block.parallel,
                    written=written,
                    skip=_skip(hosted, active, layer),
                    attention=attention,
                )
                for layer, written, attention in zip(
                    operators.layers,
                    _written(plan.packs, vectors),
                    _attentions(operators.layers),
                    strict=True,
                )
            ),
            width=width,
            parts=tuple(range(layer.start, layer.end) for layer, _ in writings.parts),
            columns=columns,
            amounts=torch.cat(amounts).to(vectors.dtype) if amounts else vectors.new_zeros(0),
            n_cells=active.count,
            one_each=torch.equal(writings.cells, torch.arange(active.count)),
            errors=errors[_by_site(active, sites, n_pos).to(device)],
            constants=constants,
            embedding=operators.embedding[:, :, None],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writings:
    """Every feature at every site that it writes."""

    parts: list[tuple[ActiveLayer, Site]]
    """Layers that have active features, by the sites that they write."""
    cells: Tensor
    """int64 `(n_entries,)`, part by part."""
    places: Tensor
    """int64 `(n_entries,)`, the site's number times positions, plus the position."""

    @property
    def counts(self) -> list[int]:
        """Entries of each part."""
        return [layer.count for layer, _ in self.parts]


def _writings(active: ActiveFeatures, sites: Sequence[Site]) -> _Writings:
    number = {site: place for place, site in enumerate(sites)}
    parts = [(layer, site) for layer in active.layers if layer.count for site in layer.info.sites_out]
    none = torch.zeros(0, dtype=torch.int64)
    cells = torch.cat([none, *(torch.arange(layer.start, layer.end) for layer, _ in parts)])
    first = torch.tensor([number[site] * active.n_pos for _, site in parts], dtype=torch.int64)
    counts = torch.tensor([layer.count for layer, _ in parts], dtype=torch.int64)
    return _Writings(
        parts=parts, cells=cells, places=active.position[cells] + first.repeat_interleave(counts)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Packs:
    """How what stands at every site and position is divided; on the CPU."""

    widths: Tensor
    """int64 `(n_sites,)`."""
    counts: Tensor
    """int64 `(n_sites, n_pos)`."""

    @property
    def starts(self) -> Tensor:
        """int64 `(n_sites, n_pos)`, row of the table at which each position begins."""
        rows = (self.counts * self.widths[:, None]).flatten()
        return (rows.cumsum(0) - rows).view_as(self.counts)

    @property
    def rows(self) -> int:
        """Rows of the table, padding included."""
        return int((self.counts.sum(1) * self.widths).sum())

    @property
    def positions(self) -> Tensor:
        """int64 `(n_packs,)`, of every pack, site by site."""
        n_sites, n_pos = self.counts.shape
        return torch.arange(n_pos).repeat(n_sites).repeat_interleave(self.counts.flatten())


def packs_of(standing: Tensor) -> Packs:
    """Divide what stands at every site and position.

    One pack a position where the widest one wastes little; else packs as wide as the mean, so that a position
    of many features costs packs of its own alone. Either way at most `PADDING` times the rows are laid out.

    Args:
        standing: int64 `(n_sites, n_pos)`, vectors; at least one everywhere.
    """
    n_pos = standing.shape[1]
    total, widest = standing.sum(1), standing.amax(1)
    mean = total // n_pos
    narrow = torch.where(mean < _MULTIPLE, mean, mean // _MULTIPLE * _MULTIPLE)
    widths = torch.where(n_pos * widest <= PADDING * total, widest, narrow)
    return Packs(widths=widths, counts=(standing + widths[:, None] - 1) // widths[:, None])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Where everything stands in the table."""

    packs: Packs
    starts: Tensor
    """int64 `(n_sites * n_pos,)`, of a position's error term; its constants and features follow."""
    columns: Tensor
    """int64 `(n_entries,)`, of the entries."""


def _plan(entries: _Writings, n_pos: int, n_sites: int) -> _Plan:
    features = torch.bincount(entries.places, minlength=n_sites * n_pos)
    packs = packs_of((features + _REST).view(n_sites, n_pos))
    # Entries of one place follow each other in the order in which they are listed.
    order = entries.places.argsort(stable=True)
    before = features.cumsum(0) - features
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - before[entries.places[order]]
    starts = packs.starts.flatten()
    return _Plan(packs=packs, starts=starts, columns=starts[entries.places] + _REST + rank)


def _by_site(active: ActiveFeatures, sites: Sequence[Site], n_pos: int) -> Tensor:
    """Order error terms as the active features number them, `(n_error_sites * n_pos,)`."""
    order = torch.tensor([sites.index(site) for site in active.error_sites])
    return (order[:, None] * n_pos + torch.arange(n_pos)).flatten()


def _written(packs: Packs, vectors: Tensor) -> Iterator[Written]:
    n_pos, first = packs.counts.shape[1], 0
    ends = torch.nn.functional.pad(packs.counts.cumsum(1), (1, 0)).tolist()
    positions = packs.positions.to(vectors.device).split([own[-1] for own in ends])
    for width, own, at in zip(packs.widths.tolist(), ends, positions, strict=True):
        rows = vectors[first : first + len(at) * width].view(len(at), width, -1)
        yield Written(
            first=first,
            ends=tuple(own),
            positions=None if len(at) == n_pos else at,
            vectors=rows.transpose(1, 2),
        )
        first += len(at) * width


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
    return FoldedSkip(matrix=norm.fold(matrix.to(norm.gain.dtype)), scale=norm.scale[:, :, None])


def _attentions(layers: Sequence[FrozenLayer]) -> Iterator[FoldedAttention]:
    """Fold all layers, as many together as their size allows: a call per kind of matrix."""
    pattern, matrix = layers[0].pattern, layers[0].block.attention.W_O
    together = max(1, _FOLDED_BYTES // (max(pattern.numel(), matrix.numel()) * pattern.element_size()))
    for first in range(0, len(layers), together):
        yield from _attentions_together(layers[first : first + together])


def _attentions_together(layers: Sequence[FrozenLayer]) -> Iterator[FoldedAttention]:
    attention, dtype = layers[0].block.attention, layers[0].resid_pre.dtype
    n_kv_heads, group = attention.n_kv_heads, attention.group
    outputs = torch.stack([layer.block.attention.W_O for layer in layers]).to(dtype).flatten(2)
    values = torch.stack([layer.block.attention.W_V for layer in layers]).to(dtype).flatten(1, 2)
    posts = [layer.attention_post_norm for layer in layers]
    norms = [layer.attention_norm for layer in layers]
    behind = [post for post in posts if post is not None]
    if behind:
        outputs = outputs - outputs.mean(1, keepdim=True) if behind[0].centred else outputs
        outputs = torch.stack([post.gain for post in behind])[:, :, None] * outputs
    values = values * torch.stack([norm.gain for norm in norms])[:, None]
    values = values - values.mean(2, keepdim=True) if norms[0].centred else values
    patterns = torch.stack([layer.pattern for layer in layers])  # (n_layers, n_heads, n_query, n_key)
    by_group = patterns.unflatten(1, (n_kv_heads, group)).permute(0, 1, 4, 2, 3)  # key, group, query
    scaled = by_group * torch.stack([norm.scale for norm in norms])[:, None, :, :, None]
    if behind:
        scaled = scaled * torch.stack([post.scale[:, 0] for post in behind])[:, None, None, None]
    by_head = outputs.unflatten(2, (attention.n_heads, -1)).transpose(1, 2).contiguous()
    columns = (layers, outputs, by_head, values, scaled.contiguous())
    for layer, output, own, value, pattern in zip(*columns, strict=True):
        yield FoldedAttention(
            output=own, pattern=pattern, value=value, constants=_attention_constants(layer, output)
        )


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
            bias = post.centre(bias) * post.gain
        found = found + bias
    if post is not None:
        found = found * post.scale
        found = found if post.bias is None else found + post.bias
    return found[:, :, None]

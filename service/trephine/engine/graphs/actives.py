"""The active features of one prompt under replacement sets, and what the sets do not explain.

At every site that a set writes, the clean activation is a sum: active features, constants, a linear skip
path, and the error term, which is explicit (DESIGN 2). MLPs that no set covers are error as a whole.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from trephine.domain.replacements import ReplacementLayerInfo
from trephine.domain.sites import NEURONS, FeatureRef, LayerRef, Site, SiteKind
from trephine.engine.attribution.operators import FrozenOperators, push_through
from trephine.engine.attribution.places import clean_value, is_cut, place_of
from trephine.engine.graphs.linearised import is_estimated, read_place
from trephine.engine.graphs.open_layers import checked
from trephine.engine.models.architecture import Architecture
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.neurons import decoders
from trephine.engine.models.products import product
from trephine.engine.replacements.layer import ReplacementLayer
from trephine.engine.replacements.sets import opened

_LISTED_BYTES = 256 << 20
"""Dense activations that are listed together on a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveLayer:
    """Active features of one layer of a set, by position, then index."""

    ref: LayerRef
    info: ReplacementLayerInfo
    start: int
    """Cell of the first one."""
    offsets: tuple[int, ...]
    """`offsets[p] : offsets[p + 1]` are those of position p, counted from `start`."""
    position: Tensor
    """int64 `(n,)`."""
    index: Tensor
    """int64 `(n,)`."""
    activation: Tensor
    """`(n,)`, in the working dtype."""
    written: Tensor
    """`(n,)`, activation times what denormalisation multiplies outputs with at its position."""
    read_scale: Tensor
    """`(n_pos,)`, what the input is divided by before the encoder reads it."""

    @property
    def count(self) -> int:
        """Number of active features."""
        return len(self.index)

    @property
    def end(self) -> int:
        """Cell after the last one."""
        return self.start + self.count


@dataclass(frozen=True, kw_only=True)
class ActiveFeatures:
    """All active features of a prompt; a *cell* is a feature's number."""

    layers: tuple[ActiveLayer, ...]
    """From the bottom up by what they read."""
    error_sites: tuple[Site, ...]
    errors: dict[Site, Tensor]
    """`(n_pos, d_model)`, what is there beside features, constants and skip path."""
    constants: dict[Site, Tensor]
    """`(n_pos, d_model)`, decoder biases and what input normalisation puts back."""
    n_pos: int
    owner: Tensor
    """int64 `(n_cells,)`, which of `layers` has it."""
    layer: Tensor
    """int64 `(n_cells,)`."""
    position: Tensor
    """int64 `(n_cells,)`."""
    index: Tensor
    """int64 `(n_cells,)`."""
    activation: Tensor
    """float32 `(n_cells,)`."""

    @cached_property
    def rest(self) -> dict[Site, Tensor]:
        """`(n_pos, 2, d_model)` by site: the error term and the constants, side by side for one product."""
        return {site: torch.stack([self.errors[site], self.constants[site]], dim=1) for site in self.errors}

    @property
    def count(self) -> int:
        """Number of cells."""
        return len(self.index)

    @property
    def n_errors(self) -> int:
        """Number of error sources: sites times positions."""
        return len(self.error_sites) * self.n_pos

    def split(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return layer, position and index of `cells (n,)`."""
        return self.layer[cells], self.position[cells], self.index[cells]

    def writers(self, site: Site) -> tuple[ActiveLayer, ...]:
        """List the layers that write a site."""
        return tuple(layer for layer in self.layers if site in layer.info.sites_out)

    def places(self, cells: Tensor) -> Tensor:
        """Return the place at which each of `cells (n,)` reads, `(n,)`."""
        by_layer = torch.tensor([read_place(layer.info) for layer in self.layers], dtype=torch.int64)
        return by_layer[self.owner[cells]]

    def refs(self, cells: Tensor) -> list[FeatureRef]:
        """Return the addresses of `cells (n,)`."""
        names = [layer.ref.replacement for layer in self.layers]
        columns = (self.owner[cells], self.layer[cells], self.index[cells])
        return [
            FeatureRef(replacement=names[owner], layer=layer, index=index)
            for owner, layer, index in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def layer_of(self, ref: LayerRef) -> ActiveLayer | None:
        """Return one layer of a set; None if it is not open."""
        return next((layer for layer in self.layers if layer.ref == ref), None)

    def is_estimated(self) -> bool:
        """True if edges into some features are estimates, by the half rule."""
        return any(is_estimated(layer.info) for layer in self.layers)

    @property
    def cuts(self) -> tuple[int, ...]:
        """Places of dictionaries on the residual stream, ascending."""
        return tuple(sorted(place_of(layer.info.site_in) for layer in self.layers if is_cut(layer.info)))


def activate(
    hosted: HostedModel,
    operators: FrozenOperators,
    layers: Sequence[LayerRef],
    *,
    keep_first: bool = False,
) -> Generator[None, None, ActiveFeatures]:
    """Encode a prompt with sets, one layer a quantum.

    Args:
        hosted: The model.
        operators: Its clean pass over the prompt.
        layers: Layers of loaded sets that are opened, and of neurons.
        keep_first: Have features at position 0 too. It is an attention sink that sets are not trained on:
            what they say there is worth nothing, so that by default it is error as a whole.

    Raises:
        UnsupportedOptionError: If no attribution law holds for a layer, or two reconstruct one site.
    """
    found = checked(hosted, layers)
    written = _sites_written([info for _, info in found], operators)
    errors = {site: clean_value(operators, site).clone() for site in written}
    constants = {site: torch.zeros_like(value) for site, value in errors.items()}
    active: list[ActiveLayer] = []
    first = 0 if keep_first else 1
    for group in _groups(found, operators):
        encoded: list[_Encoded] = []
        for ref, info in group:
            with torch.inference_mode():
                if ref.replacement == NEURONS:
                    encoded.append(
                        _encode_neurons(hosted.architecture, ref, info, operators, errors, constants, first)
                    )
                else:
                    with opened(hosted, ref.replacement, [ref.layer]) as resident:
                        layer = resident[ref.layer]
                        encoded.append(_encode(ref, layer, operators, errors, constants, first))
            yield
        with torch.inference_mode():
            active += _listed(encoded, start=sum(layer.count for layer in active), first=first)
    return ActiveFeatures(
        layers=tuple(active),
        error_sites=tuple(sorted(errors, key=lambda site: (site.layer, site.kind.value))),
        errors=errors,
        constants=constants,
        n_pos=operators.n_pos,
        owner=_joined(torch.full((a.count,), number) for number, a in enumerate(active)),
        layer=_joined(torch.full((a.count,), a.info.layer) for a in active),
        position=_joined(a.position for a in active).cpu(),
        index=_joined(a.index for a in active).cpu(),
        activation=_joined(a.activation for a in active).float().cpu(),
    )


def _sites_written(infos: Sequence[ReplacementLayerInfo], operators: FrozenOperators) -> list[Site]:
    """List every site with an error term: those of the sets, and the MLPs that they leave alone."""
    sites = {site for info in infos for site in info.sites_out}
    sites |= {Site(kind=SiteKind.MLP_OUT, layer=layer) for layer in range(len(operators.layers))}
    return sorted(sites)


def _groups(
    found: Sequence[tuple[LayerRef, ReplacementLayerInfo]], operators: FrozenOperators
) -> Iterator[Sequence[tuple[LayerRef, ReplacementLayerInfo]]]:
    """Divide layers into those whose active features are listed together, all of one width.

    On a GPU a list ends in a wait for the device, so that there are few; elsewhere dense activations are not
    kept longer than they are needed.
    """
    room = 0 if operators.device.type == "cpu" else _LISTED_BYTES
    for d_sae, group in groupby(found, key=lambda each: each[1].d_sae):
        layers = list(group)
        together = max(1, room // (operators.n_pos * d_sae * operators.embedding.element_size()))
        yield from (layers[first : first + together] for first in range(0, len(layers), together))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Encoded:
    """One layer's features before they are listed."""

    ref: LayerRef
    info: ReplacementLayerInfo
    active: Tensor
    """bool `(n_pos - first, d_sae)`."""
    activations: Tensor
    """`(n_pos - first, d_sae)`."""
    scale: Tensor | float
    """`(n_pos, 1)` or a number, what the input was divided by."""
    scale_out: Tensor | float
    """`(n_pos, 1)` or a number, what outputs are multiplied by."""


def _encode(
    ref: LayerRef,
    layer: ReplacementLayer,
    operators: FrozenOperators,
    errors: dict[Site, Tensor],
    constants: dict[Site, Tensor],
    first: int,
) -> _Encoded:
    info, x = layer.info, clean_value(operators, layer.info.site_in)
    code = layer.encode(x)
    skipped = layer.skip(x, code)
    for site, reconstruction in layer.decode(code).items():
        errors[site][first:].sub_(reconstruction[first:])
    for site, constant in layer.constants(code).items():
        constants[site][first:].add_(constant[first:])
    matrix = layer.skip_matrix()
    if skipped is not None and matrix is not None:
        errors[info.sites_out[0]] -= skipped
        constants[info.sites_out[0]] += skipped - product(x, matrix.T.to(x.dtype))
    return _Encoded(
        ref=ref,
        info=info,
        active=code.active[first:],
        activations=code.activations[first:],
        scale=code.scale,
        scale_out=code.scale_out,
    )


def _encode_neurons(
    architecture: Architecture,
    ref: LayerRef,
    info: ReplacementLayerInfo,
    operators: FrozenOperators,
    errors: dict[Site, Tensor],
    constants: dict[Site, Tensor],
    first: int,
) -> _Encoded:
    """Take neurons as they are in the clean pass, through a post-norm of its clean scale."""
    layer, (site,) = operators.layers[info.layer], info.sites_out
    mlp, post = layer.block.mlp, layer.mlp_post_norm
    scale: Tensor | float = 1.0 if post is None else post.scale
    written = product(
        layer.activation, decoders(architecture, info.layer, range(info.d_sae)).to(operators.dtype)
    )
    constant = torch.zeros_like(written)
    if mlp.b_down is not None:
        constant += push_through(post, mlp.b_down.to(operators.dtype).expand_as(written), slice(None))
    if post is not None and post.bias is not None:
        constant += post.bias
    errors[site][first:].sub_((written * scale + constant)[first:])
    constants[site][first:].add_(constant[first:])
    active = torch.ones_like(layer.activation, dtype=torch.bool)
    return _Encoded(
        ref=ref,
        info=info,
        active=active[first:],
        activations=layer.activation[first:],
        scale=1.0,
        scale_out=scale,
    )


def _listed(encoded: Sequence[_Encoded], *, start: int, first: int) -> Iterator[ActiveLayer]:
    """List the active features of layers of one width, whose cells begin at `start`."""
    n_layers, n_pos = len(encoded), len(encoded[0].active) + first
    active = _stacked([one.active for one in encoded])  # (n_layers, n_pos - first, d_sae)
    row, late, index = active.nonzero(as_tuple=True)
    position = late + first
    activation = _stacked([one.activations for one in encoded])[row, late, index]
    read_scale, scale_out = (
        _per_position(scales, activation, n_pos)
        for scales in ([one.scale for one in encoded], [one.scale_out for one in encoded])
    )
    written = activation * scale_out[row, position]
    counts = torch.bincount(row * n_pos + position, minlength=n_layers * n_pos).view(n_layers, n_pos).cpu()
    offsets = torch.nn.functional.pad(counts.cumsum(1), (1, 0)).tolist()
    sizes = [own[-1] for own in offsets]
    columns = (each.split(sizes) for each in (position, index, activation, written))
    for one, size, starts, scale, *own in zip(encoded, sizes, offsets, read_scale, *columns, strict=True):
        yield ActiveLayer(
            ref=one.ref,
            info=one.info,
            start=start,
            offsets=tuple(starts),
            position=own[0],
            index=own[1],
            activation=own[2],
            written=own[3],
            read_scale=scale,
        )
        start += size


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    return parts[0][None] if len(parts) == 1 else torch.stack(list(parts))


def _per_position(scales: Sequence[Tensor | float], like: Tensor, n_pos: int) -> Tensor:
    """Return `(n_layers, n_pos)`."""
    if not any(isinstance(scale, Tensor) for scale in scales):
        return like.new_tensor(scales)[:, None].expand(-1, n_pos)
    return torch.stack(
        [
            scale.expand(n_pos, 1)[:, 0] if isinstance(scale, Tensor) else like.new_full((n_pos,), scale)
            for scale in scales
        ]
    )


def _joined(parts: Iterable[Tensor]) -> Tensor:
    found = list(parts)
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)

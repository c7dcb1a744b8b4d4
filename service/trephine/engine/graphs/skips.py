"""Skip paths of transcoders: what an adjoint reads through the affine map beside the features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trephine.domain.sites import Site, SiteKind
from trephine.engine.attribution.operators import FrozenLayer
from trephine.engine.graphs.actives import ActiveFeatures
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.products import product
from trephine.engine.replacements.sets import opened


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipRead:
    """What reaches the stream below through the skip path of one MLP's transcoder."""

    adjoint: Tensor
    """`(..., n_pos, d_model)`, at what the MLP's norm reads."""
    bias: Tensor | None
    """`(..., n_pos)`, what the norm's bias adds; None where it has none."""


def read_through_skip(
    hosted: HostedModel, active: ActiveFeatures, layer: FrozenLayer, adjoint: Tensor
) -> SkipRead | None:
    """Carry adjoints of an MLP's output through the skip path of a set, if one has such there.

    Args:
        hosted: The model with its sets.
        active: The prompt's active features, and with them the sets.
        layer: The block.
        adjoint: `(..., n_pos, d_model)`, on the MLP's output.
    """
    matrix = skip_of(hosted, active, layer)
    if matrix is None:
        return None
    read = product(adjoint, matrix.to(adjoint.dtype))
    bias = None if layer.mlp_norm.bias is None else read @ layer.mlp_norm.bias
    return SkipRead(adjoint=layer.mlp_norm.pull_back_all(read), bias=bias)


def skip_of(hosted: HostedModel, active: ActiveFeatures, layer: FrozenLayer) -> Tensor | None:
    """Return the skip path beside a block's MLP, `(d_model, d_model)` on what the MLP reads; None without."""
    number = layer.block.layer
    writers = active.writers(Site(kind=SiteKind.MLP_OUT, layer=number))
    own = next((one for one in writers if one.info.has_skip and one.info.layer == number), None)
    if own is None:
        return None
    with opened(hosted, own.ref.replacement, [number]) as resident:
        return resident[number].skip_matrix()

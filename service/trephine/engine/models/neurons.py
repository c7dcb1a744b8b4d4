"""The NeuronLayer: an MLP's own neurons as features that reconstruct it exactly.

Feature i of a layer is its MLP's i-th hidden activation, what the down projection reads; its decoder is
column i of the down projection, carried through the MLP's post-norm gain where there is one. The sum of
activation times decoder, plus bias, is the MLP's output: there is no error term.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trephine.domain.sites import Site, SiteKind
from trephine.engine.models.architecture import Architecture
from trephine.engine.models.indices import Indices, chosen


def neuron_site(layer: int) -> Site:
    """Return the site at which a layer's neurons are read and written."""
    return Site(kind=SiteKind.NEURONS, layer=layer)


def decoders(architecture: Architecture, layer: int, indices: Indices) -> Tensor:
    """Return the decoders of some neurons, float32 or wider, `(len(indices), d_model)`.

    Where the MLP has a post-norm (Gemma-2) this is the direction that reaches the residual stream for
    a post-norm scale of 1: the norm's centring and gain are applied, its scale, which depends on the
    input, is not.
    """
    block = architecture.blocks[layer]
    columns = block.mlp.W_down[:, chosen(indices)].T
    wide = columns.to(torch.promote_types(columns.dtype, torch.float32))
    post = block.mlp_post_norm
    return wide if post is None else post.centre(wide) * post.gain.to(wide.dtype)


def decoder_norms(architecture: Architecture, layer: int) -> Tensor:
    """Return the L2 norm of every decoder of a layer, `(d_mlp,)`, float32 or wider."""
    return decoders(architecture, layer, range(architecture.d_mlp)).norm(dim=-1)

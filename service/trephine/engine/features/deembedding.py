"""De-embeddings: which tokens' embeddings a direction reads, by the weights alone (Dunefsky et al. 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trephine.domain.replacements import LayerKind
from trephine.domain.sites import SiteKind
from trephine.engine.models.architecture import Architecture, Block, Norm
from trephine.engine.replacements.layer import ReplacementLayer

_STREAM = frozenset({SiteKind.EMBED, SiteKind.RESID_PRE, SiteKind.RESID_MID, SiteKind.RESID_POST})


def token_embeddings(architecture: Architecture) -> Tensor:
    """Return what each token puts into the first block `(d_vocab, d_model)`, without positions."""
    module: Any = architecture.embedding
    weight: Tensor = module.weight.detach()
    scale = getattr(module, "embed_scale", None)  # Gemma-2 rounds it to the weights' dtype
    scaled = weight if scale is None else weight * scale.to(weight.dtype)
    return scaled.to(torch.promote_types(weight.dtype, torch.float32))


def excitations(architecture: Architecture, direction: Tensor, norm: Norm | None) -> Tensor:
    """Return how much each token's bare embedding moves a read-out of the stream, `(d_vocab,)`.

    Args:
        architecture: The model.
        direction: `(d_model,)`, on the stream; a norm's gain and centring are in it already.
        norm: What reads the stream: embeddings are divided by its scale of them. None: nothing does.
    """
    embeddings = token_embeddings(architecture)
    scores = embeddings @ direction.to(embeddings.dtype)
    return scores if norm is None else scores * norm.inverse_scale(embeddings)[:, 0]


def feature_reads(architecture: Architecture, layer: ReplacementLayer, index: int) -> Tensor | None:
    """Return what each token's bare embedding puts into a feature, `(d_vocab,)`; None where nothing is said.

    A feature's pre-activation without constants; a neuron's activation. A dictionary on attention's output
    reads a token through all heads of its layer, each attending to nothing else.
    """
    site = layer.info.site_in
    block = architecture.blocks[site.layer]
    if layer.info.kind is LayerKind.NEURONS:
        return _neuron_reads(architecture, site.layer, index)
    direction = layer.encoders([index])[0]
    if site.kind is SiteKind.MLP_IN:
        return excitations(architecture, _back(block.mlp_norm, direction), block.mlp_norm)
    if site.kind is SiteKind.ATTN_OUT:
        return excitations(architecture, _through_heads(block, direction), block.attention_norm)
    return excitations(architecture, direction, None) if site.kind in _STREAM else None


def _neuron_reads(architecture: Architecture, layer: int, index: int) -> Tensor:
    mlp, norm = architecture.blocks[layer].mlp, architecture.blocks[layer].mlp_norm

    def reads(weight: Tensor, bias: Tensor | None) -> Tensor:
        row = weight[index].to(torch.promote_types(weight.dtype, torch.float32))
        constant = torch.zeros((), dtype=row.dtype) if bias is None else bias[index].to(row.dtype)
        if norm.bias is not None:
            constant = constant + row @ norm.bias.to(row.dtype)
        return excitations(architecture, _back(norm, row), norm) + constant

    read = reads(mlp.W_in, mlp.b_in)
    if mlp.W_gate is None:
        return mlp.activation(read)
    return mlp.activation(reads(mlp.W_gate, mlp.b_gate)) * read


def _through_heads(block: Block, direction: Tensor) -> Tensor:
    attention, post = block.attention, block.attention_post_norm
    written = direction if post is None else _back(post, direction)
    mixed = torch.einsum("d,dhe->he", written, attention.W_O.to(written.dtype))
    values = mixed.unflatten(0, (attention.n_kv_heads, -1)).sum(1)  # (n_kv_heads, d_head)
    read = torch.einsum("ke,ked->d", values, attention.W_V.to(written.dtype))
    return _back(block.attention_norm, read)


def _back(norm: Norm, direction: Tensor) -> Tensor:
    """Carry a direction on a norm's output to its input, at a scale of 1."""
    return norm.centre(direction * norm.gain.to(direction.dtype))

"""From the metric down the network: adjoints at every site of a pack, by one of two rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trephine.domain.sites import Site, SiteKind
from trephine.engine.attribution.adjoints import attention_adjoint
from trephine.engine.attribution.live import live_attention_adjoint, live_mlp_adjoint
from trephine.engine.attribution.operators import FrozenLayer, FrozenNorm, FrozenOperators
from trephine.engine.attribution.readouts import mlp_half_adjoint
from trephine.engine.dataset_circuits.packs import Pack
from trephine.engine.models.products import product


class SweepRule(Protocol):
    """How adjoints go through what is not linear."""

    def through_norm(self, norm: FrozenNorm, cotangent: Tensor) -> Tensor:
        """Carry `(n_rows, d_model)` from a norm's output to its input."""
        ...

    def through_mlp(self, layer: FrozenLayer, by_neuron: Tensor) -> Tensor:
        """Carry `(n_rows, d_mlp)` to the residual stream that the MLP's norm reads."""
        ...

    def through_attention(self, layer: FrozenLayer, adjoint: Tensor) -> Tensor:
        """Return what the stream before the block receives; `adjoint` is of what attention is added to."""
        ...


class Gradient:
    """The exact derivative: patterns, norms and MLPs follow (attribution patching)."""

    def through_norm(self, norm: FrozenNorm, cotangent: Tensor) -> Tensor:
        """With the scale following its input."""
        return norm.pull_back_live(cotangent)

    def through_mlp(self, layer: FrozenLayer, by_neuron: Tensor) -> Tensor:
        """By the exact slope."""
        return live_mlp_adjoint(layer, by_neuron)

    def through_attention(self, layer: FrozenLayer, adjoint: Tensor) -> Tensor:
        """Through values, queries and keys."""
        return live_attention_adjoint(layer, adjoint)


class HalfRule:
    """RelP: patterns and norm scales are constants, gated neurons are split in half."""

    def __init__(self, operators: FrozenOperators) -> None:
        self._unused = operators.embedding.new_zeros(1)

    def through_norm(self, norm: FrozenNorm, cotangent: Tensor) -> Tensor:
        """With the clean scale."""
        return norm.pull_back_all(cotangent)

    def through_mlp(self, layer: FrozenLayer, by_neuron: Tensor) -> Tensor:
        """By the half rule."""
        return self.through_norm(layer.mlp_norm, mlp_half_adjoint(layer, by_neuron))

    def through_attention(self, layer: FrozenLayer, adjoint: Tensor) -> Tensor:
        """Through values only; one target, and blocks of the pattern keep the contexts of the pack apart."""
        return attention_adjoint(layer, adjoint[None], self._unused)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockAdjoints:
    """Adjoints at one block's sites."""

    layer: int
    by_site: dict[Site, Tensor]


def metric_cotangent(pack: Pack, operators: FrozenOperators) -> Tensor:
    """Return the sum of all contexts' metrics' derivative by the final norm's output, `(n_rows, d_model)`."""
    cotangent = torch.zeros_like(operators.embedding)
    cotangent[pack.clean.last] = pack.directions.to(cotangent.dtype)
    return cotangent


def sweep_blocks(
    operators: FrozenOperators, adjoint: Tensor, rule: SweepRule, *, top: int | None, down_to: int
) -> Iterator[BlockAdjoints]:
    """Yield adjoints block by block, from the top; contexts do not mix, so that one sweep serves them all.

    Args:
        operators: A pack's frozen network.
        adjoint: `(n_rows, d_model)`, of the stream after block `top`, or the last.
        rule: How to go through what is not linear.
        top: The block that the adjoint stands behind; None: the last.
        down_to: The last block that is wanted.
    """
    above = len(operators.layers) if top is None else top + 1
    for layer in reversed(operators.layers[down_to:above]):
        number, post, found = layer.block.layer, layer.mlp_post_norm, {}
        for kind in (SiteKind.RESID_POST, SiteKind.MLP_OUT):
            found[Site(kind=kind, layer=number)] = adjoint
        written = adjoint if post is None else rule.through_norm(post, adjoint)
        by_neuron = product(written, layer.block.mlp.W_down.to(adjoint.dtype))
        found[Site(kind=SiteKind.NEURONS, layer=number)] = by_neuron
        middle = adjoint + rule.through_mlp(layer, by_neuron)
        below = adjoint if layer.block.parallel else middle
        found[Site(kind=SiteKind.ATTN_OUT, layer=number)] = below
        found[Site(kind=SiteKind.ATTN_Z, layer=number)] = _by_heads(rule, layer, below)
        if not layer.block.parallel:
            found[Site(kind=SiteKind.RESID_MID, layer=number)] = middle
        adjoint = middle + rule.through_attention(layer, below)
        found[Site(kind=SiteKind.RESID_PRE, layer=number)] = adjoint
        if number == 0:
            found[Site(kind=SiteKind.EMBED, layer=0)] = adjoint
        yield BlockAdjoints(layer=number, by_site=found)


def _by_heads(rule: SweepRule, layer: FrozenLayer, adjoint: Tensor) -> Tensor:
    """Carry `(n_rows, d_model)` of what attention adds to the heads' mixed values."""
    post = layer.attention_post_norm
    out = adjoint if post is None else rule.through_norm(post, adjoint)
    return product(out, layer.block.attention.W_O.to(out.dtype).flatten(1))  # (n_rows, n_heads * d_head)

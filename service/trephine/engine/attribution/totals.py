"""Total effects of every neuron on what is explained, in one backward sweep without autograd.

`sweep_gradient` is the exact derivative of the read-out along each source, nothing frozen: a source's value
times the gradient there, which is the first-order estimate of removing it (attribution patching, Nanda
2023). On SmolLM2 its rank correlation with single-neuron ablations is 0.99, against 0.5 with patterns and
norm scales frozen and MLPs linearised by the half rule. That one, `sweep_paths`, is the sum over all
paths of the attribution graph that the edges span (RelP, Jafari et al. 2025).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.engine.attribution.adjoints import attention_adjoint, mlp_write_adjoint
from trephine.engine.attribution.live import live_attention_adjoint, live_mlp_adjoint
from trephine.engine.attribution.operators import FrozenLayer, FrozenOperators
from trephine.engine.attribution.places import AFTER, ATTENTION, BEFORE, EMBEDDING, MIDDLE, MLP, PER_BLOCK
from trephine.engine.attribution.readouts import LogitReadout, mlp_half_adjoint
from trephine.engine.attribution.targets import Cotangents, cotangents_of, top_place
from trephine.engine.models.products import product


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Signed effects on the read-out, in logits: how much it would fall if the source were removed."""

    neurons: Tensor
    """float32 `(n_layers, n_pos, d_mlp)`; zero in uncovered layers."""
    tokens: Tensor
    """float32 `(n_pos,)`, of the embeddings."""
    errors: Tensor
    """float32 `(n_layers, n_pos)`, of uncovered MLPs' outputs; zero in covered layers."""


def sweep_totals(operators: FrozenOperators, readout: LogitReadout) -> Generator[None, None, Totals]:
    """Do `sweep_gradient` of a logit at the last position."""
    return sweep_gradient(operators, cotangents_of(operators, readout))


def sweep_gradient(operators: FrozenOperators, explained: Cotangents) -> Generator[None, None, Totals]:
    """Carry the exact derivative of a quantity down to every source, one layer per quantum.

    Neither patterns nor norms nor MLPs are frozen; uncovered MLPs are passed through as well.
    """
    adjoint = _entering(operators, explained, top_place(operators))
    n_layers, n_pos = len(operators.layers), operators.n_pos
    neurons = torch.zeros(n_layers, n_pos, operators.architecture.d_mlp)
    errors = torch.zeros(n_layers, n_pos)
    for number in reversed(range(n_layers)):
        layer, covered = operators.layers[number], operators.covered[number]
        post, first = layer.mlp_post_norm, PER_BLOCK * number
        adjoint = adjoint + _entering(operators, explained, first + AFTER)
        written = adjoint if post is None else post.pull_back_live(adjoint)
        by_neuron = product(written, layer.block.mlp.W_down.to(adjoint.dtype))
        if covered:
            neurons[number] = (by_neuron * layer.activation).float().cpu()
        else:
            errors[number] = (adjoint * layer.mlp_out).sum(-1).float().cpu()
        middle = adjoint + live_mlp_adjoint(layer, by_neuron) + _middle(operators, explained, first)
        adjoint = middle + live_attention_adjoint(layer, adjoint if layer.block.parallel else middle)
        adjoint = adjoint + _entering(operators, explained, first + BEFORE)
        yield None
    adjoint = adjoint + _entering(operators, explained, EMBEDDING)
    tokens = (adjoint * operators.embedding).sum(-1).float().cpu()
    return Totals(neurons=neurons, tokens=tokens, errors=errors)


def _entering(operators: FrozenOperators, explained: Cotangents, place: int) -> Tensor:
    """Return what is read at a place, `(n_pos, d_model)`."""
    found = explained.get(place)
    return torch.zeros_like(operators.embedding) if found is None else found


def _middle(operators: FrozenOperators, explained: Cotangents, first: int) -> Tensor:
    """Return what is read between the branches of the block whose first place is given."""
    return _entering(operators, explained, first + MLP) + _entering(operators, explained, first + MIDDLE)


def sweep_paths(operators: FrozenOperators, explained: Cotangents) -> Generator[None, None, Totals]:
    """Sum over all paths of the attribution graph: patterns and norm scales frozen, MLPs by `relp_half`.

    Uncovered MLPs are opaque: nothing passes through them. No dictionary is looked at. One layer per quantum.
    """
    bias = operators.embedding.new_zeros(1)
    adjoint = _entering(operators, explained, top_place(operators))
    n_layers, n_pos = len(operators.layers), operators.n_pos
    neurons = torch.zeros(n_layers, n_pos, operators.architecture.d_mlp)
    errors = torch.zeros(n_layers, n_pos)
    for number in reversed(range(n_layers)):
        layer, covered, first = operators.layers[number], operators.covered[number], PER_BLOCK * number
        adjoint = adjoint + _entering(operators, explained, first + AFTER)
        through_mlp = torch.zeros_like(adjoint)
        if covered:
            written = mlp_write_adjoint(layer, adjoint[None], bias)[0]
            by_neuron = product(written, layer.block.mlp.W_down.to(adjoint.dtype))
            neurons[number] = (by_neuron * layer.activation).float().cpu()
            through_mlp = layer.mlp_norm.pull_back_all(mlp_half_adjoint(layer, by_neuron))
        else:
            errors[number] = (adjoint * layer.mlp_out).sum(-1).float().cpu()
        through_mlp = through_mlp + _middle(operators, explained, first)
        heard = _entering(operators, explained, first + ATTENTION)  # by what reads attention's output alone
        adjoint = _through_block(layer, adjoint, through_mlp, heard, bias)
        adjoint = adjoint + _entering(operators, explained, first + BEFORE)
        yield None
    adjoint = adjoint + _entering(operators, explained, EMBEDDING)
    tokens = (adjoint * operators.embedding).sum(-1).float().cpu()
    return Totals(neurons=neurons, tokens=tokens, errors=errors)


def _through_block(
    layer: FrozenLayer, adjoint: Tensor, through_mlp: Tensor, heard: Tensor, bias: Tensor
) -> Tensor:
    """Add what attention and MLP read; in a sequential block attention writes before the MLP reads."""
    middle = adjoint + through_mlp
    written = adjoint if layer.block.parallel else middle
    return middle + attention_adjoint(layer, (written + heard)[None], bias)[0]

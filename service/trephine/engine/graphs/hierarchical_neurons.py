"""Hierarchical attribution over the model's own neurons, by `relp_half`; see `hierarchical.py`."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from trephine.engine.attribution.adjoints import attention_adjoint, mlp_write_adjoint
from trephine.engine.attribution.operators import FrozenLayer, FrozenOperators
from trephine.engine.attribution.places import AFTER, BEFORE, EMBEDDING, MIDDLE, MLP, PER_BLOCK
from trephine.engine.attribution.readouts import half_rule
from trephine.engine.attribution.targets import Explained, top_place
from trephine.engine.graphs.hierarchical import Hierarchy, hierarchy, root_constants
from trephine.engine.models.products import product


def through_neurons(
    operators: FrozenOperators, explained: Explained, threshold: float
) -> Generator[None, None, Hierarchy]:
    """Do the pass over neurons, one block a quantum. MLPs that are not covered are errors as a whole."""
    roots, d_mlp = explained.roots(), operators.architecture.d_mlp
    nothing, bias = torch.zeros_like(operators.embedding), operators.embedding.new_zeros(1)
    adjoint, errors = roots.get(top_place(operators), nothing), 0.0
    cells: list[Tensor] = []
    kept: list[Tensor] = []
    stopped: list[Tensor] = []
    for layer in reversed(operators.layers):
        number = layer.block.layer
        first = PER_BLOCK * number
        with torch.inference_mode():
            adjoint = adjoint + roots.get(first + AFTER, nothing)
            read = roots.get(first + MLP, nothing) + roots.get(first + MIDDLE, nothing)
            if operators.covered[number]:
                written = mlp_write_adjoint(layer, adjoint[None], bias)[0]
                by_neuron = product(written, layer.block.mlp.W_down.to(adjoint.dtype))  # (n_pos, d_mlp)
                attribution = by_neuron * layer.activation
                large = (attribution.abs() >= threshold) & (attribution != 0)
                stopped.append(attribution[~large])
                kept.append(attribution[large].float().cpu())
                cells.append(large.flatten().nonzero().flatten().cpu() + number * operators.n_pos * d_mlp)
                read = read + _read(layer, by_neuron * large, bias)
            else:
                errors += float((adjoint * layer.mlp_out).sum())
            if layer.block.parallel:
                adjoint = adjoint + attention_adjoint(layer, adjoint[None], bias)[0] + read
            else:
                adjoint = adjoint + read
                adjoint = adjoint + attention_adjoint(layer, adjoint[None], bias)[0]
            adjoint = adjoint + roots.get(first + BEFORE, nothing)
        yield
    with torch.inference_mode():
        adjoint = adjoint + roots.get(EMBEDDING, nothing)
        tokens = float((adjoint * operators.embedding).sum())
        none = adjoint.new_zeros(0)
    return hierarchy(
        threshold=threshold,
        cells=torch.cat([torch.zeros(0, dtype=torch.int64), *cells]),
        attribution=torch.cat([torch.zeros(0), *kept]),
        tokens=tokens,
        errors=errors,
        constants=root_constants(explained) + float(bias),
        stopped=torch.cat([none, *stopped]),
    )


def _read(layer: FrozenLayer, by_neuron: Tensor, bias: Tensor) -> Tensor:
    """Carry `(n_pos, d_mlp)` through the half rule and the norm; what biases add goes to `bias`."""
    mlp, dtype, norm = layer.block.mlp, by_neuron.dtype, layer.mlp_norm
    by_gate, by_read = half_rule(layer)
    through = by_neuron * by_read
    read = product(through, mlp.W_in.to(dtype))
    if mlp.b_in is not None:
        bias += (through @ mlp.b_in.to(dtype)).sum()
    if by_gate is not None and mlp.W_gate is not None:
        through = by_neuron * by_gate
        read = read + product(through, mlp.W_gate.to(dtype))
        if mlp.b_gate is not None:
            bias += (through @ mlp.b_gate.to(dtype)).sum()
    if norm.bias is not None:
        bias += (read @ norm.bias).sum()
    return norm.pull_back_all(read)

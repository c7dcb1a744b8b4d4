"""Contributions of every source to a batch of targets: one sweep from the top layer down.

A source is a neuron `(layer, position, index)` of a covered layer, an opaque MLP output, a token embedding,
or a constant. Its contribution is its value times its decoder times the adjoint of the target, all of them
computed by grouped matrix products: decoders are never gathered (DESIGN 5.5).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trephine.engine.attribution.adjoints import attention_adjoint, mlp_write_adjoint, new_adjoint
from trephine.engine.attribution.operators import FrozenLayer, FrozenOperators
from trephine.engine.attribution.readouts import StreamRead, Targets
from trephine.engine.models.products import product


class NeuronCollector(Protocol):
    """Takes the neurons' contributions, layer by layer from the top."""

    def collect(self, layer: int, scores: Tensor, mass: Tensor) -> None:
        """Take `scores (n, n_cone, d_mlp)` of one layer for the first n targets and the first positions.

        `mass (n_targets,)` is the absolute sum so far, this layer included.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSums:
    """What is kept dense of a batch of rows: everything but the neurons. All in the targets' order."""

    tokens: Tensor
    """`(n_targets, n_pos)`, of the embeddings."""
    errors: Tensor
    """`(n_targets, n_layers, n_pos)`, of uncovered MLPs; zero in covered layers."""
    bias: Tensor
    """`(n_targets,)`, of all constants."""
    neurons: Tensor
    """`(n_targets,)`, signed sum over all neurons."""
    mass: Tensor
    """`(n_targets,)`, absolute sum over all neurons, errors and tokens."""

    @property
    def total(self) -> Tensor:
        """`(n_targets,)`, everything that enters: the target's value, by law 3."""
        return self.neurons + self.tokens.sum(1) + self.errors.sum((1, 2)) + self.bias


class _Sweep:
    """State of one sweep: adjoint rows and running sums."""

    def __init__(self, operators: FrozenOperators, targets: Targets) -> None:
        self.operators, self.targets = operators, targets
        n_targets, n_layers = len(targets.position), len(operators.layers)
        self.adjoint = new_adjoint(operators.embedding, targets.position)
        self.tokens = operators.embedding.new_zeros(n_targets, operators.n_pos)
        self.errors = operators.embedding.new_zeros(n_targets, n_layers, operators.n_pos)
        self.bias = targets.constant.clone()
        self.neurons, self.mass = torch.zeros_like(self.bias), torch.zeros_like(self.bias)

    def alive(self, layer: int) -> int:
        """Targets that read the residual stream above the block `layer`."""
        return int((self.targets.layer > layer).sum())

    def inject(self, layer: int, *reads: StreamRead) -> None:
        """Start the targets that read at `layer`, and there what is given."""
        for read in reads:
            at_layer = (self.targets.layer == layer).nonzero().flatten()
            chosen = [k for k in at_layer.tolist() if self._read(k) is read]
            if chosen and read is StreamRead.NORMED:
                self._inject_normed(layer, torch.tensor(chosen))
            elif chosen:
                self.adjoint[chosen, self.targets.position[chosen]] += self.targets.direction[chosen]

    def _read(self, target: int) -> StreamRead:
        return StreamRead.NORMED if self.targets.reads is None else self.targets.reads[target]

    def _inject_normed(self, layer: int, chosen: Tensor) -> None:
        """Carry directions through the norm that the targets read."""
        at_top = layer == len(self.operators.layers)
        norm = self.operators.final_norm if at_top else self.operators.layers[layer].mlp_norm
        direction, position = self.targets.direction[chosen], self.targets.position[chosen]
        self.adjoint[chosen, position] += norm.pull_back(direction, position)
        if norm.bias is not None:
            self.bias[chosen] += direction @ norm.bias

    def mlp_sources(self, layer: FrozenLayer, collector: NeuronCollector) -> None:
        """Score what this block's MLP wrote."""
        number = layer.block.layer
        alive = self.alive(number)
        if not alive:
            return
        adjoint, n_pos = self.adjoint[:alive], self.adjoint.shape[1]
        if not self.operators.covered[number]:
            score = torch.einsum("tpd,pd->tp", adjoint, layer.mlp_out[:n_pos])
            self.errors[:alive, number, :n_pos] = score
            self.mass[:alive] += score.abs().sum(1)
            return
        written = mlp_write_adjoint(layer, adjoint, self.bias[:alive])
        scores = product(written, layer.block.mlp.W_down.to(written.dtype))  # (n_alive, n_cone, d_mlp)
        scores *= layer.activation[:n_pos]
        self.neurons[:alive] += scores.sum((1, 2))
        self.mass[:alive] += torch.linalg.vector_norm(scores, ord=1, dim=(1, 2))
        collector.collect(number, scores, self.mass)

    def attention(self, layer: FrozenLayer, alive: int) -> None:
        """Add what attention reads, for the first `alive` targets."""
        if alive:
            adjoint = self.adjoint[:alive]
            attention_adjoint(layer, adjoint, self.bias[:alive], onto=adjoint)

    def block(self, layer: FrozenLayer, collector: NeuronCollector) -> None:
        """Go down through one block. In a parallel block the MLP reads what attention reads."""
        number = layer.block.layer
        self.mlp_sources(layer, collector)
        if layer.block.parallel:
            self.attention(layer, self.alive(number))
            self.inject(number, *StreamRead)
        else:
            self.inject(number, StreamRead.NORMED, StreamRead.MIDDLE)
            self.attention(layer, self.alive(number - 1))
            self.inject(number, StreamRead.BEFORE)

    def sums(self) -> RowSums:
        """Score the embeddings and return the sums."""
        n_pos = self.adjoint.shape[1]
        score = torch.einsum("tpd,pd->tp", self.adjoint, self.operators.embedding[:n_pos])
        self.tokens[:, :n_pos] = score
        self.mass += score.abs().sum(1)
        return RowSums(
            tokens=self.tokens, errors=self.errors, bias=self.bias, neurons=self.neurons, mass=self.mass
        )


def sweep(
    operators: FrozenOperators, targets: Targets, collector: NeuronCollector
) -> Generator[None, None, RowSums]:
    """Attribute a batch of targets to all sources, one layer per quantum.

    Args:
        operators: The frozen network.
        targets: From the top layer down.
        collector: Takes the neurons' contributions as they are computed.

    Returns:
        Every other contribution, and the sums that laws 3 and the influences need.
    """
    state = _Sweep(operators, targets)
    state.inject(len(operators.layers), *StreamRead)
    for layer in reversed(operators.layers):
        state.block(layer, collector)
        yield None
    return state.sums()


class DenseCollector:
    """Keeps every contribution, for small models and for laws: `(n_targets, n_layers, n_pos, d_mlp)`."""

    def __init__(self, operators: FrozenOperators, n_targets: int) -> None:
        shape = (n_targets, len(operators.layers), operators.n_pos, operators.architecture.d_mlp)
        self.scores = torch.zeros(shape, dtype=operators.dtype, device=operators.device)

    def collect(self, layer: int, scores: Tensor, mass: Tensor) -> None:
        """Store one layer."""
        n_targets, n_pos, _ = scores.shape
        self.scores[:n_targets, layer, :n_pos] = scores

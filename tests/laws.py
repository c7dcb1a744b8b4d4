"""Law 4 as a procedure: sampled edges against the oracle, for tests and for the printed table."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.oracles import FrozenOracle, Write
from trephine.engine.models.architecture import Architecture

TOKEN, ERROR, NEURON = "token", "error", "neuron"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A sampled source; unused address fields are -1."""

    kind: str
    layer: int
    position: int
    index: int
    edge: float
    """The contribution that attribution claims."""


def sample_sources(
    scores: Tensor,
    errors: Tensor,
    tokens: Tensor,
    layer: int,
    *,
    per_stratum: int,
    seed: int,
    layer_stride: int = 1,
) -> list[Source]:
    """Sample a row's sources by kind, layer gap and magnitude decile, position 0 included.

    Args:
        scores: `(n_layers, n_pos, d_mlp)` of one target.
        errors: `(n_layers, n_pos)`.
        tokens: `(n_pos,)`.
        layer: The target's layer.
        per_stratum: Sources per (layer gap, decile).
        seed: Of the sampling.
        layer_stride: Sample every so many layers below the target.
    """
    chooser = random.Random(seed)
    n_pos, d_mlp = scores.shape[1:]
    sources: list[Source] = []
    for source_layer in range(layer - 1, -1, -layer_stride):
        flat = scores[source_layer].flatten()
        live = flat.nonzero().flatten()
        ranked = live[flat[live].abs().argsort()].tolist()
        for decile in range(10):
            stratum = ranked[len(ranked) * decile // 10 : len(ranked) * (decile + 1) // 10]
            for cell in chooser.sample(stratum, min(per_stratum, len(stratum))):
                sources.append(_neuron(source_layer, cell, d_mlp, float(flat[cell])))
        at_start = scores[source_layer, 0]
        if at_start.any():
            cell = int(at_start.abs().argmax())
            sources.append(_neuron(source_layer, cell, d_mlp, float(at_start[cell])))
        for position in range(n_pos):
            if errors[source_layer, position] != 0:
                edge = float(errors[source_layer, position])
                sources.append(Source(kind=ERROR, layer=source_layer, position=position, index=-1, edge=edge))
    for position in range(n_pos):
        if tokens[position] != 0:
            edge = float(tokens[position])
            sources.append(Source(kind=TOKEN, layer=-1, position=position, index=-1, edge=edge))
    return sources


def _neuron(layer: int, cell: int, d_mlp: int, edge: float) -> Source:
    return Source(kind=NEURON, layer=layer, position=cell // d_mlp, index=cell % d_mlp, edge=edge)


def measure_edges(
    oracle: FrozenOracle,
    architecture: Architecture,
    sources: list[Source],
    *,
    layer: int,
    position: int,
    direction: Tensor,
    batch: int = 32,
) -> tuple[Tensor, Tensor]:
    """Measure edges into one linear read-out by removing `a_s` times the decoder, and by adding 1 times it.

    Returns:
        Both `(n_sources,)`: minus the change with -a_s, and a_s times the change with +1.
    """

    def value(rows: list[list[Write]]) -> Tensor:
        reads = oracle.run(rows, None if layer == architecture.n_layers else layer)
        read = reads.final if layer == architecture.n_layers else reads.mlp_in[layer]
        return read[:, position] @ direction

    clean = value([[]])
    removed, added = [], []
    for start in range(0, len(sources), batch):
        chunk = sources[start : start + batch]
        written = [_written(oracle, architecture, source) for source in chunk]
        minus = [[_write(s, -a * vector)] for s, (a, vector) in zip(chunk, written, strict=True)]
        plus = [[_write(s, vector)] for s, (_, vector) in zip(chunk, written, strict=True)]
        activations = torch.tensor([a for a, _ in written], dtype=clean.dtype)
        removed.append(clean - value(minus))
        added.append(activations * (value(plus) - clean))
    return torch.cat(removed), torch.cat(added)


def _written(oracle: FrozenOracle, architecture: Architecture, source: Source) -> tuple[float, Tensor]:
    if source.kind == TOKEN:
        return 1.0, oracle.embedding[source.position]
    if source.kind == ERROR:
        return 1.0, _opaque(oracle, architecture, source)
    activation = float(oracle.activations[source.layer][source.position, source.index])
    return activation, architecture.blocks[source.layer].mlp.W_down[:, source.index]


def _opaque(oracle: FrozenOracle, architecture: Architecture, source: Source) -> Tensor:
    return oracle.mlp_out[source.layer][0, source.position]


def _write(source: Source, vector: Tensor) -> Write:
    return Write(layer=source.layer, position=source.position, vector=vector)

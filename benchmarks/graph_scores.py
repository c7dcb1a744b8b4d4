"""What two graphs of one prompt have in common, and their scores by circuit-tracer's definitions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGraph:
    """A dense graph: features, errors by layer, tokens, logits; rows are targets."""

    matrix: Tensor
    selected: list[tuple[int, int, int]]
    """(layer, position, feature) of every feature node."""

    @classmethod
    def read(cls, path: Path) -> StoredGraph:
        """Read what a cell wrote."""
        stored = np.load(path)
        selected = [(int(a), int(b), int(c)) for a, b, c in stored["selected"]]
        return cls(matrix=torch.from_numpy(stored["matrix"]), selected=selected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far two graphs agree."""

    overlap: float
    """Share of the first one's features that the second one has."""
    worst: float
    """Largest difference of an edge between common nodes, over its row's largest edge from a common node."""
    of_graph: float
    """The same over the graph's largest edge between common nodes."""


def agreement(ours: StoredGraph, theirs: StoredGraph) -> Agreement:
    """Compare the edges between common nodes."""
    places = {feature: number for number, feature in enumerate(theirs.selected)}
    common = [(n, places[feature]) for n, feature in enumerate(ours.selected) if feature in places]
    first = [n for n, _ in common] + list(range(len(ours.selected), len(ours.matrix)))
    second = [n for _, n in common] + list(range(len(theirs.selected), len(theirs.matrix)))
    a, b = ours.matrix[first][:, first], theirs.matrix[second][:, second]
    difference, largest = (a - b).abs().max(1).values, b.abs().max(1).values
    rows = largest > 0
    return Agreement(
        overlap=len(common) / max(1, len(ours.selected)),
        worst=float((difference[rows] / largest[rows]).max()),
        of_graph=float(difference.max() / largest.max()),
    )


def scores(graph: StoredGraph, shares: Tensor, *, n_layers: int, n_pos: int) -> tuple[float, float]:
    """Return replacement and completeness as circuit-tracer 0.5.0 defines them, on the truncated graph.

    Args:
        graph: With errors at position 0 left out, as the peer leaves them out.
        shares: Weights of the logits.
        n_layers: Layers of error nodes.
        n_pos: Tokens.
    """
    n_features = len(graph.selected)
    first_token = n_features + n_layers * n_pos
    weights = torch.zeros(len(graph.matrix))
    weights[-len(shares) :] = shares
    normalised = graph.matrix.abs()
    normalised = normalised / normalised.sum(1, keepdim=True).clamp(min=1e-10)
    influence, step = torch.zeros_like(weights), weights @ normalised
    while step.any():
        influence += step
        step = step @ normalised
    errors = influence[n_features:first_token].sum()
    tokens = influence[first_token : first_token + n_pos].sum()
    explained = 1 - normalised[:, n_features:first_token].sum(1)
    weighted = influence + weights
    return float(tokens / (tokens + errors)), float((explained * weighted).sum() / weighted.sum())

"""Effects through the exact softmax: of one cause, and dealt out over many.

A pattern row is `A = softmax(c(s))` over the keys that a query sees, c a soft cap or nothing. Measured is
`E_A[g]`, linear in the pattern: with g one at a single key, that key's weight.

One cause shifts the scores by `delta`; the new pattern is `softmax(c(s + delta))`, exactly (exponential
tilting). Many causes whose parts add up to the whole change of the scores get Aumann-Shapley values along the
straight path: `phi_i = sum_k delta_{i,k} w_k` with `w_k = int_0^1 A_k(a) (g_k - E_{A(a)}[g]) c'(s_k(a)) da`:
one integral per key serves every cause, and `sum_i phi_i` is the exact change (Aumann & Shapley 1974).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from trephine.domain.errors import NotConvergedError

TOLERANCE = 1e-3
"""Largest residual as a share of the exact change (law 5)."""
FLOOR = 1e-3
"""Changes of a weight below this count as this much: a thousandth of a thousandth of all attention."""
_FIRST_NODES, _MOST_NODES = 16, 4096
_RULE = 64
"""Nodes of one Gauss-Legendre rule; beyond, the path is split into pieces of so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxPath:
    """A change of scores, and what a unit of score at each key is worth along it."""

    worth: Tensor
    """`(..., n_keys)`, w_k: multiply a cause's parts of the score change with it, and sum over keys."""
    exact: Tensor
    """`(...,)`, the exact change of `E_A[g]`."""
    total: Tensor
    """`(...,)`, what the causes' shares add up to."""
    nodes: int

    @property
    def residual(self) -> Tensor:
        """`(...,)`, how far the shares miss the exact change."""
        return (self.total - self.exact).abs()


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Apply a soft cap `cap * tanh(s / cap)` where there is one."""
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def weights_of(scores: Tensor, softcap: float | None) -> Tensor:
    """Return the pattern `(..., n_keys)` of scores before a soft cap."""
    return torch.softmax(capped(scores, softcap), -1)


def tilted(scores: Tensor, delta: Tensor, measured: Tensor, softcap: float | None) -> Tensor:
    """Return the exact change `(...,)` of `E_A[g]` when one cause shifts the scores.

    Args:
        scores: `(n_keys,)`, before a soft cap.
        delta: `(..., n_keys)`, the shift.
        measured: `(n_keys,)`, g.
        softcap: Cap of the scores, or None.
    """
    before, after = weights_of(scores, softcap), weights_of(scores + delta, softcap)
    return ((after - before) * measured).sum(-1)


def allocate(
    start: Tensor,
    delta: Tensor,
    measured: Tensor,
    softcap: float | None = None,
    *,
    tolerance: float = TOLERANCE,
    floor: float = FLOOR,
    most_nodes: int = _MOST_NODES,
) -> SoftmaxPath:
    """Integrate along `start + a delta`, doubling the nodes until the shares add up.

    Args:
        start: `(..., n_keys)`, scores before the change, before a soft cap.
        delta: `(..., n_keys)`, the whole change of the scores.
        measured: `(..., n_keys)`, g.
        softcap: Cap of the scores, or None.
        tolerance: Largest residual as a share of the exact change.
        floor: The least that the exact change counts as.
        most_nodes: Where to give up.

    Raises:
        NotConvergedError: If the shares still miss the exact change.
    """
    start, delta, measured = start.double(), delta.double(), measured.double()
    exact = tilted(start, delta, measured, softcap)
    nodes = _FIRST_NODES
    while True:
        path = integrate(start, delta, measured, exact, softcap, nodes)
        if bool((path.residual <= tolerance * exact.abs().clamp_min(floor)).all()):
            return path
        if nodes * 2 > most_nodes:
            worst = float(path.residual.max())
            raise NotConvergedError(
                f"with {nodes} nodes along the path the contributions miss the exact change of attention by "
                f"{worst:.2e}: its scores are too large to be dealt out. Trace another head or position",
                nodes=nodes,
                residual=worst,
            )
        nodes *= 2


def integrate(
    start: Tensor, delta: Tensor, measured: Tensor, exact: Tensor, softcap: float | None, nodes: int
) -> SoftmaxPath:
    """Integrate with so many nodes, whatever the residual; arguments as in `allocate`, in float64."""
    worth = torch.zeros_like(delta)
    for at, share in zip(*_rule(nodes), strict=True):
        scores = start + at * delta
        weights = weights_of(scores, softcap)
        mean = (weights * measured).sum(-1, keepdim=True)
        slope = 1 if softcap is None else 1 - torch.tanh(scores / softcap).square()
        worth += share * weights * (measured - mean) * slope
    return SoftmaxPath(worth=worth, exact=exact, total=(worth * delta).sum(-1), nodes=nodes)


@cache
def _rule(nodes: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Gauss-Legendre nodes and weights on (0, 1): one rule, or one on each of equal pieces."""
    size = min(nodes, _RULE)
    pieces = nodes // size
    at, weight = np.polynomial.legendre.leggauss(size)
    points = [((at + 1) / 2 + piece) / pieces for piece in range(pieces)]
    weights = np.tile(weight / 2 / pieces, pieces)
    return tuple(np.concatenate(points).tolist()), tuple(weights.tolist())

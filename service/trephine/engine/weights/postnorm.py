"""Grafts in front of a norm that follows the MLP (Gemma-2): what such a norm lets through, fitted.

The norm answers y = g * m / rms(m), so that whatever m is, y / g has mean square 1. The wanted answer
y + sum_i c_i d_i has not, in general: no weights write it, and the nearest answer that the norm can give is
the best that there is. It is found per token and carried back in front of the norm, times the token's rms. A
gated neuron writes gate(x) (a.x) v, so that copies of one gate write c_i(x) M_i x for any matrix M_i whose
rank is their number: M_i follows how rms and direction of a token change what has to be written, where one
column could carry its mean alone. The M_i of a layer are solved together, in the dual of a ridge that leaves
the nearly constant direction almost free. Its strength is chosen by the error *behind* the norm on windows
that it was not fitted on; the first-order column d rms / g is one of the candidates. Windows that nothing was
chosen by say what is left over.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import inf, log2

import torch
from torch import Tensor

from trephine.engine.models.architecture import Norm
from trephine.engine.weights.grafting import Graft
from trephine.engine.weights.mlp import near_constant
from trephine.engine.weights.units import Fit, Trial, Unit

_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the mean diagonal of the kernel."""
_FREE = 10.0
"""Weight of the nearly constant direction in the kernel, where all inputs together have 1."""
_MOST_ROWS = 4096
"""Tokens that are fitted on: the dual is as wide as they are many."""
_MOST_RANK = 32
_LEFT_OUT = 1e-3
"""Share of what a matrix writes that its low rank may leave out."""
_BISECTIONS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What one layer's MLP reads and writes on the calibration text, and how its neurons answer."""

    norm: Norm
    inputs: Tensor
    """`(n, d_in)`."""
    outputs: Tensor
    """`(n, d_out)`, in front of the norm."""
    fitting: Tensor
    """bool `(n,)`: of the windows that are fitted on while the ridge is chosen."""
    choosing: Tensor
    """Of those that choose it."""
    taken: Tensor
    """Both, which are fitted on in the end."""
    testing: Tensor
    """Of those that say what is left over."""
    held_out: bool
    """Whether these are others than were taken."""
    activation: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    """What is served, as of `graft`."""
    rms_down: float
    """Of the down projection's entries."""


def before_post_norm(grafts: Sequence[Graft], layer: Written) -> Generator[None, None, tuple[Graft, ...]]:
    """Let the units of one layer's grafts write what comes nearest behind the norm; one fit a quantum."""
    task = _task(grafts, layer)
    least, number = inf, 0
    for candidate, fit in enumerate(task.candidates(task.fitting)):
        error = task.error(fit(), task.choosing)
        if error is not None and error < least:
            least, number = error, candidate
        yield
    maps = next(islice(task.candidates(task.taken), number, None))()
    yield
    factors = [task.low_rank(index, each) for index, each in enumerate(maps)]
    reached = task.error([down @ up for down, up in factors], task.testing)
    why = (
        "the norm behind the MLP rescales what is added, so what is written in front of it is fitted"
        f"{', to first order' if number == 0 else ''}: {_said(reached, task.floor(), layer)}"
    )
    return tuple(
        replace(
            each,
            fit=replace(_rewritten(each.fit, *both, layer), error=reached),
            unseen=_trial(each, reached) if layer.held_out else None,
            direction=moved,
            fitted=why,
        )
        for each, both, moved in zip(grafts, factors, task.moved, strict=True)
    )


def _trial(graft: Graft, reached: float | None) -> Trial:
    """Keep the gates' misfires on windows that they have not seen beside the error behind the norm."""
    misfires = graft.fit.misfires if graft.unseen is None else graft.unseen.misfires
    return Trial(error=reached, misfires=misfires)


def _said(reached: float | None, floor: float | None, layer: Written) -> str:
    """Say what is left over of a change behind the norm, and where that was measured."""
    where = "windows kept back" if layer.held_out else "windows that were fitted on or chose the fit"
    if reached is None:
        return f"what is left over is not known, for nothing is to change on {where}"
    return (
        f"{reached:.2g} of the change's square is left over behind the norm on {where}, and no weights leave "
        f"less than {floor or 0.0:.2g}"
    )


# --- what is wanted ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """One layer's fit. Matrices `(d_out, d_in)` map an input to what one feature's gates write."""

    x: Tensor
    """float64 `(n, d_in)`, tokens on which something is to change."""
    m: Tensor
    """float64 `(n, d_out)`."""
    rms: Tensor
    """`(n, 1)`."""
    gates: Tensor
    """`(n, k)`, what the features' rounded gates answer."""
    wanted: Tensor
    """`(n, d_out)`, behind the norm."""
    fixed: Tensor
    """`(n, d_out)`, what constants add in front of the norm."""
    fitting: Tensor
    """bool `(n,)` each, as in `Written`."""
    choosing: Tensor
    taken: Tensor
    testing: Tensor
    u: Tensor
    """`(d_in,)`, nearly constant on what is fitted on."""
    gain: Tensor
    moved: tuple[Tensor, ...]
    """Decoders `(d_out,)` in front of the norm, to first order."""

    def behind(self, added: Tensor) -> Tensor:
        """Return the norm's answer to what was written and what is added."""
        total = self.m + added
        return total / total.square().mean(1, keepdim=True).sqrt() * self.gain

    def written(self, maps: Sequence[Tensor]) -> Tensor:
        """Return what matrices add in front of the norm, `(n, d_out)`."""
        return sum((self.gates[:, [k]] * (self.x @ each.T) for k, each in enumerate(maps)), self.fixed)

    def error(self, maps: Sequence[Tensor], where: Tensor) -> float | None:
        """Return squared error over squared change behind the norm on some tokens; None: nothing changes."""
        return self._error(self.written(maps), where)

    def floor(self) -> float | None:
        """Return the same, where it is tested, for the nearest answers that the norm can give."""
        return self._error(nearest(self.gain, self.wanted) * self.rms - self.m, self.testing)

    def _error(self, added: Tensor, where: Tensor) -> float | None:
        size = (self.wanted - self.m / self.rms * self.gain)[where].square().sum()
        left = (self.behind(added) - self.wanted)[where].square().sum()
        return float(left / size) if float(size) else None

    def candidates(self, rows: Tensor) -> Iterator[Callable[[], list[Tensor]]]:
        """Yield what finds matrices per feature: to first order, then fits on some rows to both goals."""
        yield lambda: [torch.outer(each, self.u) for each in self.moved]
        if int(rows.sum()) < 2 or not bool(self.gates[rows].any()):
            return
        scaled = self.wanted / self.gain
        scaled = scaled / scaled.square().mean(1, keepdim=True).sqrt()
        for goal in (scaled, nearest(self.gain, self.wanted)):
            # Weighted by 1 / rms, errors in front of the norm are those behind it to first order.
            yield from self._fits((goal * self.rms - self.m - self.fixed)[rows] / self.rms[rows], rows)

    def _fits(self, goal: Tensor, rows: Tensor) -> Iterator[Callable[[], list[Tensor]]]:
        x, gates = self.x[rows], self.gates[rows] / self.rms[rows]
        signal, size = x @ self.u, x.square().sum(1).mean()
        kernel = (gates @ gates.T) * (_FREE * torch.outer(signal, signal) + x @ x.T / size)

        def solved(ridge: float) -> list[Tensor]:
            loaded = kernel.clone()
            loaded.diagonal().add_(ridge * kernel.diagonal().mean())
            dual = torch.cholesky_solve(goal, torch.linalg.cholesky(loaded))
            reads = _FREE * torch.outer(signal, self.u) + x / size
            return [dual.T @ (gates[:, [k]] * reads) for k in range(gates.shape[1])]

        for ridge in _RIDGES:
            yield partial(solved, ridge)

    def low_rank(self, index: int, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Split a matrix into columns `(d_out, r)` and rows `(r, d_in)`, by what it writes.

        A feature that what is fitted on never shows has its first-order column.
        """
        taken = self.taken
        wrote = self.gates[taken][:, [index]] / self.rms[taken] * (self.x[taken] @ matrix.T)
        if not bool(wrote.any()):
            return self.moved[index][:, None], self.u[None]
        sizes, basis = torch.linalg.eigh(wrote.T @ wrote)
        down = basis.flip(1)[:, : rank_of(sizes.flip(0))]
        return down, down.T @ matrix


def _task(grafts: Sequence[Graft], layer: Written) -> _Task:
    """Gather the tokens on which something is to change."""
    x, m = layer.inputs.to(torch.float64), layer.outputs.to(torch.float64)
    gain = layer.norm.gain.to(torch.float64).cpu()
    rms = 1.0 / layer.norm.inverse_scale(m).to(torch.float64)
    amounts = torch.stack([g.feature.difference(x @ g.feature.w + g.feature.b) for g in grafts], 1)
    gates = torch.stack([_answers(g.fit, layer) for g in grafts], 1)
    acts = (amounts != 0).any(1).nonzero()[:, 0]
    rows = acts[:: max(1, -(-len(acts) // _MOST_ROWS))]
    seen, sizes = amounts[layer.taken], rms[layer.taken, 0]
    moved = tuple(_moved(g.feature.d / gain, c, sizes) for g, c in zip(grafts, seen.T, strict=True))
    constant = sum((g.constant * each for g, each in zip(grafts, moved, strict=True)), torch.zeros_like(gain))
    decoders = torch.stack([g.feature.d for g in grafts])
    return _Task(
        x=x[rows], m=m[rows], rms=rms[rows], gates=gates[rows], fitting=layer.fitting[rows],
        choosing=layer.choosing[rows], taken=layer.taken[rows], testing=layer.testing[rows],
        wanted=(m / rms * gain + amounts @ decoders)[rows],
        fixed=constant.expand(len(rows), -1), u=near_constant(layer.inputs[layer.taken]).direction,
        gain=gain, moved=moved,
    )  # fmt: skip


def _moved(direction: Tensor, amounts: Tensor, rms: Tensor) -> Tensor:
    """Carry a direction in front of the norm: times the mean rms, weighted by the squared amounts."""
    weight = amounts.square()
    mean = (weight * rms).sum() / weight.sum() if bool(weight.any()) else rms.mean()
    return mean * direction


def nearest(gain: Tensor, wanted: Tensor) -> Tensor:
    """Return u `(n, d)` of mean square 1 that minimises |gain * u - wanted|, per row.

    u = gain * wanted / (gain^2 + s) with the s at which it has its size; found by bisection.
    """
    squares, width = gain.square(), wanted.shape[1]
    low = torch.full((len(wanted), 1), -float(squares.min()), dtype=wanted.dtype)
    # At this s every u is too small: |u| <= |gain * wanted| / s.
    high = (gain * wanted).norm(dim=1, keepdim=True) / width**0.5 + 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        large = (gain * wanted / (squares + middle)).square().mean(1, keepdim=True) > 1.0
        low, high = torch.where(large, middle, low), torch.where(large, high, middle)
    found = gain * wanted / (squares + high)
    return found / found.square().mean(1, keepdim=True).sqrt()


def rank_of(sizes: Tensor) -> int:
    """Return how many of descending squared sizes make up all but a thousandth, and 32 at most."""
    shares = sizes.clamp_min(0).cumsum(0) / sizes.clamp_min(0).sum().clamp_min(1e-300)
    return min(int((shares < 1 - _LEFT_OUT).sum()) + 1, _MOST_RANK, len(sizes))


# --- units ---------------------------------------------------------------------------------------


def _answers(fit: Fit, layer: Written) -> Tensor:
    """Return what a feature's gates add together, rounded as the server does, float64 `(n,)`."""
    x = layer.inputs.to(layer.dtype).float()
    total = torch.zeros(len(x), dtype=torch.float64)
    for unit in fit.units:
        read = (x @ unit.gate.float() + unit.gate_bias).to(layer.dtype).float()
        total += unit.amount * layer.activation(read).to(layer.dtype).double()
    return total


def _rewritten(fit: Fit, down: Tensor, up: Tensor, layer: Written) -> Fit:
    """Give every gate one copy per rank, each with its own row and column."""
    units = [_unit(unit, d, a, layer) for unit in fit.units for d, a in zip(down.T, up, strict=True)]
    return replace(fit, units=tuple(units))


def _unit(unit: Unit, down: Tensor, up: Tensor, layer: Written) -> Unit:
    column = unit.amount * down
    size = float(column.square().mean().sqrt()) / max(layer.rms_down, 1e-12)
    alpha = 2.0 ** round(min(max(log2(size), -8.0), 8.0)) if size > 0.0 else 1.0
    rounded = [(each.to(layer.dtype)).to(torch.float64) for each in (alpha * up, column / alpha)]
    return replace(unit, up=rounded[0], up_bias=0.0, down=rounded[1])

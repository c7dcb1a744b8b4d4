"""The ridge tier in front of a norm (Gemma-2): fitted to the nearest answer that the norm can give.

As `postnorm` does for grafts, but with what is there: a change of the matrix whose output the norm reads. Per
token the wanted answer is replaced by the nearest one of the norm's own size and carried back in front of it;
the matrix's change is solved for all of its rows, tokens weighted by what the norm makes of them. A constant
so becomes a change that makes room for it, where adding it in front of the norm would let the norm shrink
everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.sites import Site, SiteKind
from trephine.engine.architecture import Norm
from trephine.engine.hosted import HostedModel
from trephine.engine.weights.capture import stacked
from trephine.engine.weights.postnorm import nearest, rank_of

_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the mean diagonal of the gram matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitBehind:
    """A change of a matrix, and what it does behind the norm on windows kept back."""

    left: Tensor
    """float64 `(d_out, r)`."""
    right: Tensor
    """float64 `(r, d_in)`."""
    explained: float
    """1 - squared error over squared change."""
    floor: float
    """Share of the squared change that the nearest answers of the norm's size leave over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """A linear module with a norm behind it."""

    norm: Norm
    weight: Tensor
    """float64 `(d_out, d_in)`."""
    bias: Tensor | None

    def written(self, inputs: Tensor, delta: Tensor | None = None) -> Tensor:
        """Return what the module writes in front of the norm, `(n, d_out)`."""
        weight = self.weight if delta is None else self.weight + delta
        found = inputs @ weight.T
        return found if self.bias is None else found + self.bias

    def answer(self, written: Tensor) -> Tensor:
        """Return what comes out behind the norm."""
        return written * self.norm.inverse_scale(written).to(torch.float64) * self.gain

    @property
    def gain(self) -> Tensor:
        """`(d_out,)`."""
        return self.norm.gain.to(torch.float64).cpu()


def behind(hosted: HostedModel, place: Site) -> Behind:
    """Take the module that writes a place and the norm that follows it."""
    block = hosted.architecture.blocks[place.layer]
    attention = place.kind is SiteKind.ATTN_OUT
    norm = block.attention_post_norm if attention else block.mlp_post_norm
    weight = block.attention.W_O.flatten(1) if attention else block.mlp.W_down
    bias = block.attention.b_O if attention else block.mlp.b_down
    if norm is None:
        raise ValueError("there is no norm behind this module")
    return Behind(norm=norm, weight=weight.double().cpu(), bias=None if bias is None else bias.double().cpu())


def fit_behind(
    module: Behind,
    inputs: Sequence[Tensor],
    changes: Sequence[Tensor],
    taken: Sequence[int],
    kept: Sequence[int],
) -> FitBehind:
    """Fit the change of a matrix; nothing where nothing is to change.

    Args:
        module: The matrix and its norm.
        inputs: Per window, `(n_pos, d_in)`.
        changes: Per window, what is to be added behind the norm, float64 `(n_pos, d_out)`.
        taken: Windows to fit on; position 0 is left out everywhere.
        kept: Windows that choose the ridge.
    """
    x, wanted = _rows(inputs, changes, taken)
    if not bool(wanted.any()):
        left, right = module.weight.new_zeros(len(module.weight), 1), module.weight.new_zeros(1, x.shape[1])
        return FitBehind(left=left, right=right, explained=0.0, floor=0.0)
    written = module.written(x)
    scale = module.norm.inverse_scale(written).to(torch.float64)
    goal = nearest(module.gain, module.answer(written) + wanted) - scale * written
    weighted = scale * x
    gram, moments = weighted.T @ weighted, weighted.T @ goal
    tested = _rows(inputs, changes, kept)
    best: tuple[float, Tensor] | None = None
    for ridge in _RIDGES:
        loaded = gram.clone()
        loaded.diagonal().add_(ridge * gram.diagonal().mean())
        delta = torch.cholesky_solve(moments, torch.linalg.cholesky(loaded)).T
        share = _explained(module, *tested, delta)
        if best is None or share > best[0]:
            best = (share, delta)
    if best is None:
        raise RuntimeError("there is no ridge to try")
    sizes, basis = torch.linalg.eigh((weighted @ best[1].T).T @ (weighted @ best[1].T))
    left = basis.flip(1)[:, : rank_of(sizes.flip(0))]
    right = left.T @ best[1]
    return FitBehind(
        left=left,
        right=right,
        explained=_explained(module, *tested, left @ right),
        floor=_floor(module, *tested),
    )


def _rows(
    inputs: Sequence[Tensor], changes: Sequence[Tensor], windows: Sequence[int]
) -> tuple[Tensor, Tensor]:
    x, wanted = (stacked([part[n] for n in windows], after_first=True) for part in (inputs, changes))
    return x.to(torch.float64), wanted


def _floor(module: Behind, x: Tensor, wanted: Tensor) -> float:
    goal, size = module.answer(module.written(x)) + wanted, float(wanted.square().sum())
    left = nearest(module.gain, goal) * module.gain - goal
    return float(left.square().sum()) / size if size else 0.0


def _explained(module: Behind, x: Tensor, wanted: Tensor, delta: Tensor) -> float:
    before, after = (module.answer(module.written(x, each)) for each in (None, delta))
    size = float(wanted.square().sum())
    return 1.0 - float((after - before - wanted).square().sum()) / size if size else 0.0

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
from trephine.engine.models.architecture import Norm
from trephine.engine.models.hosted import HostedModel
from trephine.engine.weights.capture import stacked
from trephine.engine.weights.held_out import Split, best_ridge
from trephine.engine.weights.postnorm import nearest, rank_of

_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the mean diagonal of the gram matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitBehind:
    """A change of a matrix, and what it does behind the norm on the windows that test."""

    left: Tensor
    """float64 `(d_out, r)`."""
    right: Tensor
    """float64 `(r, d_in)`."""
    explained: float | None
    """1 - squared error over squared change; None: nothing is to change there."""
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
    parts: Split,
) -> FitBehind:
    """Fit the change of a matrix; nothing where nothing is to change.

    Args:
        module: The matrix and its norm.
        inputs: Per window, `(n_pos, d_in)`.
        changes: Per window, what is to be added behind the norm, float64 `(n_pos, d_out)`.
        parts: Windows by what they are for; position 0 is left out everywhere.
    """
    x, wanted = _rows(inputs, changes, parts.taken)
    if not bool(wanted.any()):
        left, right = module.weight.new_zeros(len(module.weight), 1), module.weight.new_zeros(1, x.shape[1])
        return FitBehind(left=left, right=right, explained=None, floor=0.0)
    choosing, testing = (_rows(inputs, changes, each) for each in (parts.choosing, parts.testing))
    tried = _System.of(module, *_rows(inputs, changes, parts.fitting))
    ridge = best_ridge(_RIDGES, [_explained(module, *choosing, tried.solved(each)) for each in _RIDGES])
    system = _System.of(module, x, wanted)
    delta = system.solved(ridge)
    sizes, basis = torch.linalg.eigh((system.inputs @ delta.T).T @ (system.inputs @ delta.T))
    left = basis.flip(1)[:, : rank_of(sizes.flip(0))]
    right = left.T @ delta
    return FitBehind(
        left=left,
        right=right,
        explained=_explained(module, *testing, left @ right),
        floor=_floor(module, *testing),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _System:
    """The normal equations of a matrix's change, on some tokens."""

    inputs: Tensor
    """`(n, d_in)`, weighted by what the norm makes of each token."""
    gram: Tensor
    moments: Tensor
    """`(d_in, d_out)`."""

    @classmethod
    def of(cls, module: Behind, x: Tensor, wanted: Tensor) -> _System:
        """Set them up towards the nearest answers that the norm can give."""
        written = module.written(x)
        scale = module.norm.inverse_scale(written).to(torch.float64)
        goal = nearest(module.gain, module.answer(written) + wanted) - scale * written
        weighted = scale * x
        return cls(inputs=weighted, gram=weighted.T @ weighted, moments=weighted.T @ goal)

    def solved(self, ridge: float) -> Tensor:
        """Return the change `(d_out, d_in)` under a ridge."""
        loaded = self.gram.clone()
        loaded.diagonal().add_(ridge * self.gram.diagonal().mean())
        return torch.cholesky_solve(self.moments, torch.linalg.cholesky(loaded)).T


def _rows(
    inputs: Sequence[Tensor], changes: Sequence[Tensor], windows: Sequence[int]
) -> tuple[Tensor, Tensor]:
    x, wanted = (stacked([part[n] for n in windows], after_first=True) for part in (inputs, changes))
    return x.to(torch.float64), wanted


def _floor(module: Behind, x: Tensor, wanted: Tensor) -> float:
    goal, size = module.answer(module.written(x)) + wanted, float(wanted.square().sum())
    left = nearest(module.gain, goal) * module.gain - goal
    return float(left.square().sum()) / size if size else 0.0


def _explained(module: Behind, x: Tensor, wanted: Tensor, delta: Tensor) -> float | None:
    before, after = (module.answer(module.written(x, each)) for each in (None, delta))
    size = float(wanted.square().sum())
    return 1.0 - float((after - before - wanted).square().sum()) / size if size else None

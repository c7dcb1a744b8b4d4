"""Products of many rows with one float32 matrix, by whichever of torch's two libraries is the faster here.

On CPUs torch multiplies float32 matrices by MKL, which keeps to 256-bit instructions on processors of other
makers than its own; oneDNN, which torch ships as well, uses what the processor has. With 512-bit units that
is twice the rate, for the same float32 arithmetic: only the order of the sums differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_ROWS = 8
"""Rows from which on calling oneDNN costs less than it saves."""
_AT_ONCE = 1024
"""Rows of one call, so that calls have few shapes.

oneDNN keeps a program per shape, and what it keeps comes to lie above the product in memory, which then has a
hole of its size for good.
"""


@cache
def has_wide_units() -> bool:
    """True where oneDNN has 512-bit units to use, and torch was built with it."""
    has_operator = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has_operator and torch.backends.cpu.get_cpu_capability() == "AVX512"


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return `rows @ matrix`.

    Args:
        rows: `(..., k)`.
        matrix: `(k, m)`.

    Returns:
        `(..., m)`.
    """
    return _linear(rows, matrix.T, None) if _suits(rows, matrix) else rows @ matrix


def add_product(onto: Tensor, rows: Tensor, matrix: Tensor) -> None:
    """Add `rows @ matrix` in place.

    Args:
        onto: `(n, m)`.
        rows: `(n, k)`.
        matrix: `(k, m)`.
    """
    if not _suits(rows, matrix):
        onto.addmm_(rows, matrix)
        return
    for part, own in zip(onto.split(_AT_ONCE), rows.split(_AT_ONCE), strict=True):
        part += product(own, matrix)


def is_wide(values: Tensor) -> bool:
    """True for float32 on a CPU with 512-bit units."""
    return _gains(values.dtype, values.device)


def _gains(dtype: torch.dtype, device: torch.device) -> bool:
    return dtype == torch.float32 and device.type == "cpu" and has_wide_units()


def _suits(rows: Tensor, matrix: Tensor) -> bool:
    """True for enough float32 rows on a CPU with such units, and a matrix that is not trained."""
    trained = torch.is_grad_enabled() and matrix.requires_grad
    enough = rows.numel() >= _ROWS * rows.shape[-1] and matrix.dim() == 2
    return is_wide(rows) and matrix.dtype == torch.float32 and enough and not trained


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `rows @ weight.T + bias` by oneDNN, which takes strided weights one element at a time."""
    if torch.is_grad_enabled() and rows.requires_grad:
        followed: Tensor = _FrozenLinear.apply(rows, weight, bias)
        return followed
    weight = _dense(weight)
    if rows.numel() <= _AT_ONCE * rows.shape[-1]:
        return _call(rows, weight, bias)
    found = rows.new_empty(*rows.shape[:-1], len(weight))
    parts = zip(found.view(-1, len(weight)).split(_AT_ONCE), rows.flatten(0, -2).split(_AT_ONCE), strict=True)
    for part, own in parts:
        part.copy_(_call(own, weight, bias))
    return found


def _call(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return found


class _FrozenLinear(torch.autograd.Function):
    """A linear map whose rows alone are differentiated: oneDNN's has no derivative in torch."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Map rows."""
        ctx.save_for_backward(weight)
        return _linear(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Carry a gradient back to the rows."""
        (weight,) = ctx.saved_tensors
        return product(gradient, weight), None, None


def _dense(weight: Tensor) -> Tensor:
    """Return a matrix whose rows or columns lie one behind the other, copied if they do not."""
    return weight if weight.is_contiguous() or weight.T.is_contiguous() else weight.T.contiguous().T


class WideLinears(TorchFunctionMode):
    """Inside it linear maps of many float32 rows are computed by oneDNN, where that is the faster."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch."""
        if func is functional.linear and not kwargs and _suits(args[0], args[1]):
            bias = args[2] if len(args) > 2 else None
            if bias is None or not (torch.is_grad_enabled() and bias.requires_grad):
                return _linear(args[0], args[1], bias)
        return func(*args, **(kwargs or {}))


def linears_in(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """Return what a model's linear maps run in: where nothing is gained a mode would only cost calls."""
    return WideLinears() if _gains(dtype, device) else nullcontext()

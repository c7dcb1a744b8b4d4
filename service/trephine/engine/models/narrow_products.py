"""Products of bfloat16 matrices on processors without units for them.

There torch multiplies bfloat16 one element at a time, ten times slower than float32. A unit adds products up
in float32 and rounds once; so does float32 arithmetic on widened matrices, up to the order of the sum. Most
laptops and many servers have no such units. Stands alone: the certifier loads it by its path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ROWS = 8
"""Rows from which on widening a matrix costs less than it saves."""
_PRODUCTS = frozenset({torch.nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm})


def lacks_units() -> bool:
    """True on a processor whose bfloat16 products torch computes one element at a time."""
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


class WideProducts(TorchFunctionMode):
    """Inside it products of bfloat16 matrices on the CPU run in float32 and are rounded once."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch."""
        if func in _PRODUCTS and _is_narrow(args):
            wide = [each.float() if isinstance(each, Tensor) else each for each in args]
            given = {
                name: each.float() if isinstance(each, Tensor) else each
                for name, each in (kwargs or {}).items()
            }
            return func(*wide, **given).to(torch.bfloat16)
        return func(*args, **(kwargs or {}))


def _is_narrow(args: Sequence[Any]) -> bool:
    """True for a product of enough rows of bfloat16 on the CPU, both sides of it."""
    if len(args) < 2:
        return False
    left, right = args[0], args[1]
    return bool(
        isinstance(left, Tensor)
        and isinstance(right, Tensor)
        and left.dtype == right.dtype == torch.bfloat16
        and left.device.type == "cpu"
        and left.numel() >= _ROWS * left.shape[-1]
    )


def products_in(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """Return what products of a type are computed in on a device."""
    narrow = dtype == torch.bfloat16 and device.type == "cpu" and lacks_units()
    return WideProducts() if narrow else nullcontext()


def widen_products(model: Any) -> Any:
    """Have a bfloat16 model on a processor without units run in `WideProducts`; return it."""
    weight = next(iter(model.parameters()), None)
    if weight is None or isinstance(products_in(weight.dtype, weight.device), nullcontext):
        return model
    plain = model.forward

    @wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with WideProducts():
            return plain(*args, **kwargs)

    model.forward = forward
    return model

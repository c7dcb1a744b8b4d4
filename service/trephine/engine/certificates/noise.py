"""The parent's own noise floor: how far its answers move when nothing but the arithmetic changes.

Floors are measured on the unedited model before anything is written, so that the bounds of an export
come from the parent and not from the export, on the very tokens that the export is then measured on:

- *attention*: our attention against the one that stock transformers chooses;
- *dtype*: float32 arithmetic against the model's own, on the same weights (zero for float32 models);
- *stored*: where the files are narrower than what the model computes in, the model's own answers against
  those of stock transformers in the files' type, which is how the folder will be served.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from trephine.engine.models.attention import IMPLEMENTATION
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.narrow_products import products_in
from trephine.engine.runs.divergence import joined, kl_divergence
from trephine.engine.runs.retain import RetainText, plain_logits, window_batches

_KEPT: WeakKeyDictionary[Any, dict[tuple[str, str, torch.dtype | None], NoiseFloor]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """KL in nats per token over positions."""

    mean: float
    p99: float
    values: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, compare=False)
    """`(n_tokens,)`, CPU, in the order of the text; empty where nothing was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseFloor:
    """KL(parent || parent under other arithmetic)."""

    attention: Spread
    dtype: Spread
    stored: Spread | None = None
    """None: the files hold what the model computes in, or more."""

    @property
    def mean(self) -> float:
        """Of the runtime: attention and dtype together, nats per token."""
        return self.attention.mean + self.dtype.mean

    @property
    def p99(self) -> float:
        """The same at the 99th percentile, nats."""
        return self.attention.p99 + self.dtype.p99


def stock_attention(model: Any) -> str:
    """Name the attention that stock transformers chooses for a model on this kind of machine."""
    return "sdpa" if model._supports_sdpa else "eager"


def noise_floor(
    hosted: HostedModel, retain: RetainText, stored: torch.dtype | None = None
) -> Generator[None, None, NoiseFloor]:
    """Measure all floors on a text, one batch a quantum; kept afterwards.

    Args:
        hosted: The unedited parent.
        retain: What the export will be measured on.
        stored: Type of the parent's files; None: what the model computes in.
    """
    kept = _KEPT.setdefault(hosted.model, {})
    key = (hosted.info.weight_hash, retain.sha256, stored)
    if key not in kept:
        plain = yield from plain_logits(hosted, retain)
        attention = yield from _moved(hosted, retain, plain, _under_stock_attention)
        dtype = Spread(mean=0.0, p99=0.0)
        if hosted.model.dtype not in (torch.float32, torch.float64):
            dtype = yield from _moved(hosted, retain, plain, _under_float32)
        narrow = None
        if stored is not None and stored.itemsize < hosted.model.dtype.itemsize:
            narrow = yield from _moved(
                hosted, retain, plain, partial(_as_stored, dtype=stored), outwards=True
            )
        kept[key] = NoiseFloor(attention=attention, dtype=dtype, stored=narrow)
    return kept[key]


def _moved(
    hosted: HostedModel,
    retain: RetainText,
    plain: list[Tensor],
    forward: Callable[[HostedModel, Tensor], Tensor],
    *,
    outwards: bool = False,
) -> Generator[None, None, Spread]:
    """Measure KL(forward's || the model's own answers); `outwards`: KL(own || forward's)."""
    parts: list[Tensor] = []
    for part in window_batches(retain.windows):
        ids = torch.tensor([retain.windows[number] for number in part], device=hosted.model.device)
        moved = forward(hosted, ids).float().cpu()
        pairs = [(logits, plain[number]) for number, logits in zip(part, moved, strict=True)]
        parts += [kl_divergence(q, p) if outwards else kl_divergence(p, q) for p, q in pairs]
        yield
    kl = joined(parts)
    return Spread(mean=float(kl.mean()), p99=float(kl.quantile(0.99)), values=kl)


def _under_stock_attention(hosted: HostedModel, ids: Tensor) -> Tensor:
    model = hosted.model
    model.set_attn_implementation(stock_attention(model))
    try:
        logits: Tensor = model(ids, use_cache=False).logits
        return logits
    finally:
        model.set_attn_implementation(IMPLEMENTATION)


def _as_stored(hosted: HostedModel, ids: Tensor, *, dtype: torch.dtype) -> Tensor:
    with computing_in(dtype, hosted.model):
        return _under_stock_attention(hosted, ids)


def _under_float32(hosted: HostedModel, ids: Tensor) -> Tensor:
    with computing_in(torch.float32, hosted.model):
        logits: Tensor = hosted.model(ids, use_cache=False).logits
        return logits


@contextmanager
def computing_in(dtype: torch.dtype, model: nn.Module) -> Iterator[None]:
    """Let every module compute in a type on the same weights, one module's weights at a time.

    A module's parameters are replaced by copies of that type while it runs and put back afterwards, the very
    same objects; so the peak is one module's, not a second model's. Must not span a quantum.
    """
    own: dict[nn.Module, dict[str, Any]] = {}

    def exchange(module: nn.Module, args: Any) -> None:
        own[module] = dict(module._parameters)
        for name, parameter in own[module].items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.to(dtype), requires_grad=False)

    def restore(module: nn.Module, args: Any, output: Any) -> None:
        module._parameters.update(own.pop(module))

    handles = []
    try:
        for module in model.modules():
            if module._parameters:
                handles.append(module.register_forward_pre_hook(exchange))
                handles.append(module.register_forward_hook(restore))
        with products_in(dtype, next(model.parameters()).device):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module, parameters in own.items():
            module._parameters.update(parameters)

"""The parent's own noise floor: how far its answers move when nothing but the arithmetic changes.

Two floors are measured on the unedited model before anything is written, so that the bounds of an export
come from the parent and not from the export, on the very tokens that the export is then measured on:

- *attention*: our attention against the one that stock transformers chooses;
- *dtype*: float32 arithmetic against the model's own, on the same weights (zero for float32 models).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from trephine.engine.attention import IMPLEMENTATION
from trephine.engine.divergence import joined, kl_divergence
from trephine.engine.hosted import HostedModel
from trephine.engine.retain import RetainText, plain_logits, window_batches

_KEPT: WeakKeyDictionary[Any, dict[tuple[str, str], NoiseFloor]] = WeakKeyDictionary()


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

    @property
    def mean(self) -> float:
        """Both together, nats per token."""
        return self.attention.mean + self.dtype.mean

    @property
    def p99(self) -> float:
        """Both together, nats."""
        return self.attention.p99 + self.dtype.p99


def stock_attention(model: Any) -> str:
    """Name the attention that stock transformers chooses for a model on this kind of machine."""
    return "sdpa" if model._supports_sdpa else "eager"


def noise_floor(hosted: HostedModel, retain: RetainText) -> Generator[None, None, NoiseFloor]:
    """Measure both floors on a text, one batch a quantum; kept afterwards."""
    kept = _KEPT.setdefault(hosted.model, {})
    key = (hosted.info.weight_hash, retain.sha256)
    if key not in kept:
        plain = yield from plain_logits(hosted, retain)
        attention = yield from _moved(hosted, retain, plain, _under_stock_attention)
        dtype = Spread(mean=0.0, p99=0.0)
        if hosted.model.dtype not in (torch.float32, torch.float64):
            dtype = yield from _moved(hosted, retain, plain, _under_float32)
        kept[key] = NoiseFloor(attention=attention, dtype=dtype)
    return kept[key]


def _moved(
    hosted: HostedModel,
    retain: RetainText,
    plain: list[Tensor],
    forward: Callable[[HostedModel, Tensor], Tensor],
) -> Generator[None, None, Spread]:
    parts: list[Tensor] = []
    for part in window_batches(retain.windows):
        ids = torch.tensor([retain.windows[number] for number in part], device=hosted.model.device)
        moved = forward(hosted, ids).float().cpu()
        parts += [kl_divergence(logits, plain[number]) for number, logits in zip(part, moved, strict=True)]
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


def _under_float32(hosted: HostedModel, ids: Tensor) -> Tensor:
    with _widened(hosted.model):
        logits: Tensor = hosted.model(ids, use_cache=False).logits
        return logits


@contextmanager
def _widened(model: nn.Module) -> Iterator[None]:
    """Let every module compute in float32 on the same weights, one module's weights at a time.

    A module's parameters are replaced by float32 copies while it runs and put back afterwards, the very
    same objects; so the peak is one module's, not a second model's. Must not span a quantum.
    """
    narrow: dict[nn.Module, dict[str, Any]] = {}

    def widen(module: nn.Module, args: Any) -> None:
        narrow[module] = dict(module._parameters)
        for name, parameter in narrow[module].items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.float(), requires_grad=False)

    def restore(module: nn.Module, args: Any, output: Any) -> None:
        module._parameters.update(narrow.pop(module))

    handles = []
    try:
        for module in model.modules():
            if module._parameters:
                handles.append(module.register_forward_pre_hook(widen))
                handles.append(module.register_forward_hook(restore))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, parameters in narrow.items():
            module._parameters.update(parameters)

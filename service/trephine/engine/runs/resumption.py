"""Starting a forward pass above the layers in which it would only repeat a clean run.

What is changed at layer 12 leaves the residual stream below as it was. So the stream of one clean run is
kept, and blocks below the first change hand it on instead of computing it again: the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trephine.engine.models.architecture import Architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanRun:
    """One prompt's residual streams without interventions."""

    ids: tuple[int, ...]
    streams: tuple[Tensor, ...]
    """What every block reads, `(1, n_pos, d_model)`."""


def stream_bytes(architecture: Architecture, n_pos: int) -> int:
    """Predict the size of a clean run's streams."""
    return architecture.n_layers * n_pos * architecture.d_model * architecture.W_U.element_size()


def clean_run(model: nn.Module, architecture: Architecture, ids: Sequence[int]) -> CleanRun:
    """Run a prompt once and keep its residual streams."""
    streams: dict[int, Tensor] = {}
    handles: list[RemovableHandle] = []
    weight: Any = architecture.embedding.weight
    try:
        for block in architecture.blocks:
            keep = _keeping(streams, block.layer)
            handles.append(block.module.register_forward_pre_hook(keep, with_kwargs=True))
        batch = torch.tensor([list(ids)], device=weight.device)
        with torch.inference_mode():
            model(input_ids=batch, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return CleanRun(ids=tuple(ids), streams=tuple(streams[block.layer] for block in architecture.blocks))


def _keeping(streams: dict[int, Tensor], layer: int) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream: Tensor = args[0] if args else kwargs["hidden_states"]
        streams[layer] = stream.clone()  # blocks may write into what they were given

    return hook


@contextmanager
def resumed(architecture: Architecture, clean: CleanRun | None, layer: int) -> Iterator[None]:
    """Let forward passes inside compute no block below `layer`; every row must be the clean run's prompt.

    Nothing may be read or written below that layer. Must not span a quantum.

    Args:
        architecture: The model.
        clean: The clean run; None computes everything.
        layer: The first block that is computed, at most the last one.
    """
    if clean is None or layer == 0:
        yield
        return
    skipped = [block.module for block in architecture.blocks[:layer]]
    before = [module.__dict__.get("forward") for module in skipped]
    try:
        for module in skipped:  # an attribute of the instance comes before the method of its class
            module.__dict__["forward"] = _handing_on(None)
        skipped[-1].__dict__["forward"] = _handing_on(clean.streams[layer])
        yield
    finally:
        for module, own in zip(skipped, before, strict=True):
            module.__dict__.pop("forward", None)
            if own is not None:
                module.__dict__["forward"] = own


def _handing_on(stream: Tensor | None) -> Callable[..., Tensor]:
    def forward(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        # A copy per row: what comes after may write in place.
        return hidden_states if stream is None else stream.repeat(hidden_states.shape[0], 1, 1)

    return forward

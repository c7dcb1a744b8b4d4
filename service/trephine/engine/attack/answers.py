"""Stock models, and their answers at single positions behind cached prefixes.

An attack perturbs one position and reads its next-token distribution, so the windows' keys and values are
computed once, and a step runs one token per row instead of a whole window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache

Change = Callable[[int, Tensor], Tensor]
"""Layer and the residual stream that enters it, `(n_rows, 1, d_model)` -> what enters instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A position of a window."""

    window: int
    position: int


def load(folder: str, attention: str) -> Any:
    """Load a folder with stock transformers, float32, its weights frozen."""
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation=attention,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    return model.eval().requires_grad_(False)


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return the blocks: the longest list of modules that a stock model has."""
    return max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)


def logits_of(model: Any, window: Sequence[int]) -> Tensor:
    """Return a window's logits, float32 `(n_pos, d_vocab)`."""
    found: Tensor = model(torch.tensor([list(window)]), use_cache=False).logits[0]
    return found.float()


class Prefixes:
    """Rows of single tokens, each behind its window's keys and values in a frozen model."""

    def __init__(self, model: Any, windows: Sequence[Sequence[int]], tokens: Sequence[Token]) -> None:
        self._model, self._layers = model, decoder_layers(model)
        self._ids = torch.tensor([[windows[t.window][t.position]] for t in tokens])
        self._positions = torch.tensor([[t.position] for t in tokens])
        self._mask = _masks(windows, tokens)
        self._past = _past(model, windows, tokens)

    def logits(self, change: Change | None = None, layers: Sequence[int] = ()) -> Tensor:
        """Return every row's logits, float32 `(n_rows, d_vocab)`.

        Args:
            change: Applied to the residual stream that enters `layers`, at the rows' own positions.
            layers: Where.
        """
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._past):
            cache.update(keys, values, layer)
        with _changed(self._layers, change, layers):
            output = self._model(
                self._ids,
                attention_mask=self._mask,
                position_ids=self._positions,
                past_key_values=cache,
                use_cache=True,
            )
        return output.logits[:, -1].float()

    def residual(self, layer: int) -> Tensor:
        """Return the residual stream that enters a layer, `(n_rows, d_model)`."""
        seen: list[Tensor] = []

        def keep(_: int, x: Tensor) -> Tensor:
            seen.append(x[:, 0])
            return x

        self.logits(keep, [layer])
        return seen[0]


def _masks(windows: Sequence[Sequence[int]], tokens: Sequence[Token]) -> Tensor:
    """Let a row see the positions before its own, and itself: the last ones of `(n_rows, n_pos + 1)`."""
    places = torch.arange(len(windows[0]) + 1)[None]
    seen = torch.tensor([[token.position] for token in tokens])
    return (places >= len(windows[0]) - seen).long()


def _past(
    model: Any, windows: Sequence[Sequence[int]], tokens: Sequence[Token]
) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values per layer, `(n_rows, n_heads, n_pos, d_head)`.

    Each row's are rolled until what stands before its token comes last, so that sliding windows measure true
    distances; the rest is masked.
    """
    found: dict[int, DynamicCache] = {}
    for number in sorted({token.window for token in tokens}):
        cache = DynamicCache()
        model(torch.tensor([list(windows[number])]), past_key_values=cache, use_cache=True)
        found[number] = cache

    def rows(layer: int, name: str) -> Tensor:
        kept = [getattr(found[token.window].layers[layer], name) for token in tokens]
        shifts = [len(windows[token.window]) - token.position for token in tokens]
        return torch.cat([each.roll(shift, -2) for each, shift in zip(kept, shifts, strict=True)])

    return [(rows(n, "keys"), rows(n, "values")) for n in range(len(decoder_layers(model)))]


@contextmanager
def _changed(blocks: nn.ModuleList, change: Change | None, layers: Sequence[int]) -> Iterator[None]:
    handles = [] if change is None else [_hooked(blocks[n], n, change) for n in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooked(block: nn.Module, layer: int, change: Change) -> Any:
    def replaced(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(layer, given[0]), *given[1:])

    return block.register_forward_pre_hook(replaced)

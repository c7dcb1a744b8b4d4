"""Oracles that know nothing of how attribution is computed: hooks on the Hugging Face forward pass.

`FrozenOracle` re-runs the model's own modules with three things held: attention patterns, the scale of every
norm, and the output of every MLP. A source is removed where it is written; what a target then reads is
compared with what it read before. Nothing here is imported from the attribution modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trephine.engine.models.architecture import Architecture, Norm
from trephine.engine.models.attention import PatternTape, pattern_tape


@dataclass(frozen=True, kw_only=True)
class Write:
    """Adds `vector` to what is written at `(layer, position)`; layer -1 is the embedding."""

    layer: int
    position: int
    vector: Tensor


@dataclass(frozen=True, kw_only=True)
class Reads:
    """What a batch of runs read: `mlp_in[layer]` and `final`, `(rows, n_pos, d_model)` each."""

    mlp_in: list[Tensor]
    final: Tensor


class _ReachedError(Exception):
    """Ends a run whose last read has been made."""


class FrozenOracle:
    """The model on one prompt, with patterns, norm scales and MLP outputs held."""

    def __init__(self, model: Any, architecture: Architecture, ids: Sequence[int]) -> None:
        self.model, self.architecture = model, architecture
        self.ids = torch.tensor([list(ids)], device=model.device)
        self.scales: dict[int, Tensor] = {}
        self.mlp_out: list[Tensor] = [torch.empty(0)] * architecture.n_layers
        self.activations: list[Tensor] = [torch.empty(0)] * architecture.n_layers
        self.embedding = torch.empty(0)
        self._run_clean()
        self.clean = self.run([()])

    def _norms(self) -> Iterator[Norm]:
        yield self.architecture.final_norm
        for block in self.architecture.blocks:
            yield block.attention_norm
            yield block.mlp_norm
            yield from (n for n in (block.attention_post_norm, block.mlp_post_norm) if n is not None)

    def _run_clean(self) -> None:
        handles = []
        for norm in self._norms():

            def keep_scale(module: nn.Module, args: Any, norm: Norm = norm) -> None:
                self.scales[id(module)] = norm.inverse_scale(args[0])

            handles.append(norm.module.register_forward_pre_hook(keep_scale))
        for block in self.architecture.blocks:

            def keep_out(_m: nn.Module, _a: Any, out: Tensor, layer: int = block.layer) -> None:
                self.mlp_out[layer] = out

            def keep_act(_m: nn.Module, args: Any, layer: int = block.layer) -> None:
                self.activations[layer] = args[0][0]

            handles.append(block.mlp.module.register_forward_hook(keep_out))
            handles.append(block.mlp.down.register_forward_pre_hook(keep_act))

        def keep_embedding(_m: nn.Module, args: Any) -> None:
            self.embedding = args[0][0]

        handles.append(self.architecture.blocks[0].module.register_forward_pre_hook(keep_embedding))
        try:
            with torch.no_grad(), pattern_tape(PatternTape(record=True)) as tape:
                self.model(input_ids=self.ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        self.patterns = dict(tape.recorded)

    def run(self, rows: Sequence[Sequence[Write]], upto: int | None = None) -> Reads:
        """Run the frozen model once, row r with the writes `rows[r]`; stop when the MLP of `upto` reads."""
        reads: list[Tensor] = [torch.empty(0)] * self.architecture.n_layers
        final: list[Tensor] = []
        handles = [n.module.register_forward_hook(self._frozen_norm(n)) for n in self._norms()]
        for block in self.architecture.blocks:

            def keep(_m: nn.Module, args: Any, layer: int = block.layer) -> None:
                reads[layer] = args[0]
                if layer == upto:
                    raise _ReachedError

            handles.append(block.mlp.module.register_forward_pre_hook(keep))
            block.mlp.module.forward = self._constant_mlp(
                block.layer, rows
            )  # shadows the class's, saves time
        handles.append(self.architecture.blocks[0].module.register_forward_pre_hook(_write_embedding(rows)))

        def keep_final(_m: nn.Module, _args: Any, out: Tensor) -> None:
            final.append(out)

        handles.append(self.architecture.final_norm.module.register_forward_hook(keep_final))
        try:
            with suppress(_ReachedError), torch.no_grad(), pattern_tape(PatternTape(imposed=self.patterns)):
                ids = self.ids.expand(len(rows), -1)
                self.model(input_ids=ids, use_cache=False, logits_to_keep=1)
        finally:
            for block in self.architecture.blocks:
                block.mlp.module.__dict__.pop("forward", None)
            for handle in handles:
                handle.remove()
        return Reads(mlp_in=reads, final=final[0] if final else torch.empty(0))

    def _frozen_norm(self, norm: Norm) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, _out: Tensor) -> Tensor:
            y = norm.centre(args[0]) * self.scales[id(module)] * norm.gain
            return y if norm.bias is None else y + norm.bias

        return hook

    def _constant_mlp(self, layer: int, rows: Sequence[Sequence[Write]]) -> Callable[..., Tensor]:
        def forward(_hidden: Tensor) -> Tensor:
            out = self.mlp_out[layer].expand(len(rows), -1, -1).clone()
            _add(out, rows, layer)
            return out

        return forward


def _write_embedding(rows: Sequence[Sequence[Write]]) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: Any) -> Any:
        hidden = args[0].clone()
        _add(hidden, rows, -1)
        return (hidden, *args[1:])

    return hook


def _add(out: Tensor, rows: Sequence[Sequence[Write]], layer: int) -> None:
    for row, writes in enumerate(rows):
        for write in writes:
            if write.layer == layer:
                out[row, write.position] += write.vector


class Reconstruction(nn.Module):
    """Stands where an MLP stood and returns `W_down a + b_down`, given from outside."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, _hidden: Tensor) -> Tensor:
        """Return the constant."""
        return self.value


@contextmanager
def forbidden_mlps(architecture: Architecture, outputs: Sequence[Tensor]) -> Iterator[None]:
    """Replace every MLP by its reconstruction; the MLPs and all their parts raise if they are called."""
    handles, names = [], []

    def refuse(module: nn.Module, _args: Any) -> None:
        raise AssertionError(f"{type(module).__name__} was called")

    for block, output in zip(architecture.blocks, outputs, strict=True):
        handles += [m.register_forward_pre_hook(refuse) for m in block.mlp.module.modules()]
        name = next(n for n, child in block.module.named_children() if child is block.mlp.module)
        names.append((block.module, name, block.mlp.module))
        setattr(block.module, name, Reconstruction(output))
    try:
        yield
    finally:
        for owner, name, module in names:
            setattr(owner, name, module)
        for handle in handles:
            handle.remove()

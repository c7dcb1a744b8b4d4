"""A layer's MLP as it lies in the files: which tensors a graft changes, and what its neurons can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trephine.domain.errors import BrokenCheckpointError
from trephine.engine.models.architecture import VERIFIED
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.shards import TensorEntry

_BIAS_FIELDS = {"LlamaForCausalLM": "mlp_bias"}
"""Architectures whose MLP has biases if the config says so."""
_ATTENTION_BIAS_FIELDS = {"LlamaForCausalLM": "attention_bias"}
"""The same of all four projections of attention. Qwen3 has the field as well, but not every server reads it
for the output projection."""
_WIDTH_FIELDS = {"GPT2LMHeadModel": "n_inner"}
_FRIENDLY = 256
"""Block of GGUF k-quants; half of it and so on where the parent's width is no multiple."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModule:
    """A linear module and its tensors in the parent's files."""

    module: nn.Module
    weight: TensorEntry
    bias: TensorEntry | None
    bias_name: str
    transposed: bool
    """True for `(d_in, d_out)`."""

    @property
    def matrix(self) -> Tensor:
        """Return the loaded weights as `(d_out, d_in)`."""
        weight: Any = self.module.weight
        matrix: Tensor = weight.detach()
        return matrix.T if self.transposed else matrix

    @property
    def input_axis(self) -> int:
        """Axis of the stored weight along which what it reads lies."""
        return 0 if self.transposed else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMlp:
    """The modules of one MLP."""

    gate: StoredModule
    """Of a plain MLP its only input."""
    up: StoredModule | None
    down: StoredModule


def stored_module(hosted: HostedModel, entries: dict[str, TensorEntry], module: nn.Module) -> StoredModule:
    """Find a module's tensors in the files.

    Raises:
        BrokenCheckpointError: If its weight is not there in the shape that was loaded.
    """
    name = next(n for n, m in hosted.model.named_modules() if m is module)
    short = name.removeprefix(f"{hosted.model.base_model_prefix}.")
    stem = short if f"{short}.weight" in entries else name
    loaded: Any = module.weight
    entry = entries.get(f"{stem}.weight")
    if entry is None or entry.shape != tuple(loaded.shape):
        raise BrokenCheckpointError(
            f"the parent's files do not hold {stem}.weight in shape {tuple(loaded.shape)}",
            tensor=f"{stem}.weight",
        )
    return StoredModule(
        module=module,
        weight=entry,
        bias=entries.get(f"{stem}.bias"),
        bias_name=f"{stem}.bias",
        transposed=type(module).__name__ == "Conv1D",
    )


def stored_mlp(hosted: HostedModel, entries: dict[str, TensorEntry], layer: int) -> StoredMlp:
    """Find a layer's MLP in the files.

    Raises:
        BrokenCheckpointError: If it is not what was loaded.
    """
    mlp, family = hosted.architecture.blocks[layer].mlp, VERIFIED[hosted.architecture.name]
    read = stored_module(hosted, entries, getattr(mlp.module, family.read))
    down = stored_module(hosted, entries, mlp.down)
    if family.gate is None:
        return StoredMlp(gate=read, up=None, down=down)
    gate = stored_module(hosted, entries, getattr(mlp.module, family.gate))
    return StoredMlp(gate=gate, up=read, down=down)


def has_biases(hosted: HostedModel) -> bool:
    """True if every MLP has biases as it is."""
    return all(
        block.mlp.b_down is not None and block.mlp.b_in is not None for block in hosted.architecture.blocks
    )


def bias_field(hosted: HostedModel) -> str | None:
    """Name the config field that gives the MLPs biases, if there is one."""
    return _BIAS_FIELDS.get(hosted.architecture.name)


def attention_bias_field(hosted: HostedModel) -> str | None:
    """Name the config field that gives attention's projections biases, if there is one."""
    return _ATTENTION_BIAS_FIELDS.get(hosted.architecture.name)


def width_field(hosted: HostedModel) -> str:
    """Name the config field that holds the MLPs' width."""
    return _WIDTH_FIELDS.get(hosted.architecture.name, "intermediate_size")


def padded(units: int, width: int) -> int:
    """Return how many neurons to add so that the new width stays as friendly as the old one."""
    step = _FRIENDLY
    while width % step:
        step //= 2
    return -(-units // step) * step


@dataclass(frozen=True, slots=True, kw_only=True)
class NearConstant:
    """A direction along which inputs are nearly 1, and how nearly."""

    direction: Tensor
    """float64 `(d,)`, u with E[u.x] = 1 on the tokens that it was fitted on."""
    residue: float
    """E(u.x - 1)^2 on those tokens."""
    held_out: float | None
    """The same on tokens that it was not fitted on; None: there were none."""

    @property
    def error(self) -> float:
        """What is to be expected of a new text."""
        return self.residue if self.held_out is None else self.held_out

    @property
    def said(self) -> str:
        """Both figures, or that there is but one."""
        if self.held_out is None:
            return f"E(u.x - 1)^2 = {self.residue:.2g} on the very tokens that u was fitted on"
        return (
            f"E(u.x - 1)^2 = {self.held_out:.2g} on tokens kept back, {self.residue:.2g} where u was fitted"
        )


def near_constant(x: Tensor, unseen: Tensor | None = None) -> NearConstant:
    """Find u with u.x nearly 1 for inputs `(n, d)`: u = C^-1 mu, rescaled to E[u.x] = 1.

    Inputs that share a mean have such a direction though no bias is there. Solved in float64 with a ridge of
    1e-4 of the mean diagonal, which the text's length does not make up for otherwise.

    Args:
        x: What it is fitted on.
        unseen: Other inputs `(m, d)`, on which it is measured as well: with many dimensions and few tokens it
            looks far better than it is on those that it was fitted on. None or empty: there are none.
    """
    wide = x.to(torch.float64)
    second = wide.T @ wide / wide.shape[0]
    second.diagonal().add_(1e-4 * second.diagonal().mean())
    u = torch.linalg.solve(second, wide.mean(0))
    u = u / (wide @ u).mean()
    tested = None if unseen is None or not len(unseen) else unseen.to(torch.float64)
    return NearConstant(
        direction=u,
        residue=float((wide @ u - 1.0).square().mean()),
        held_out=None if tested is None else float((tested @ u - 1.0).square().mean()),
    )

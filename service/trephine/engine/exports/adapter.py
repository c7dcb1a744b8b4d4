"""The same edit as a PEFT adapter, where every change is a low-rank one of a linear module's weights.

Scaling k neurons is a change of rank k, a projection of rank 1, a fit of one per feature. An adapter cannot
add neurons, biases or an unembedding: then the folder has none, and `trephine make-delta` makes a delta.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.shards import read_tensor
from trephine.engine.weights.compiling import WeightProgram
from trephine.engine.weights.tensors import TensorChange

FOLDER = "adapter"
_LARGEST_RANK = 64


def write_adapter(hosted: HostedModel, program: WeightProgram, folder: Path) -> bool:
    """Write `adapter/` into an exported folder; return whether the edit has that form.

    Factors are float32 and their product is added as it is: the scale `alpha / r` is 1. All modules have one
    rank, smaller ones by zeros: not every reader asks for the ranks and scales of single modules (llama.cpp
    divides the one alpha by the rank of what it finds).
    """
    if not _has_form(program):
        return False
    rank, target = _largest_rank(program), folder / FOLDER
    target.mkdir()
    tensors: dict[str, Tensor] = {}
    for change in program.changes:
        name, (left, right) = _module(hosted, change), _factors(hosted, change)
        missing = rank - right.shape[0]
        a, b = functional.pad(right, (0, 0, 0, missing)), functional.pad(left, (0, missing))
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.to(torch.float32).contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.to(torch.float32).contiguous()
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    modules = [_module(hosted, change) for change in program.changes]
    text = json.dumps(_config(hosted, program, modules, rank), indent=2, sort_keys=True)
    (target / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    return True


def adapter_bytes(program: WeightProgram) -> int:
    """Return the size of the adapter's factors; 0: the edit has not that form."""
    if not _has_form(program):
        return 0
    return sum(4 * _largest_rank(program) * sum(change.shape) for change in program.changes)


def _has_form(program: WeightProgram) -> bool:
    return bool(program.changes) and not program.config and all(map(_is_low_rank, program.changes))


def _largest_rank(program: WeightProgram) -> int:
    return max(map(_rank, program.changes))


def _rank(change: TensorChange) -> int:
    return len(change.factors) + (0 if change.low_rank is None else change.low_rank[0].shape[1])


def _is_low_rank(change: TensorChange) -> bool:
    entry = change.entry
    if entry is None or change.growth is not None or change.added is not None or len(entry.shape) != 2:
        return False
    if (
        change.gain != 1.0
        or "embed" in change.name
        or change.name.startswith(("wte", "wpe", "transformer.w"))
    ):
        return False
    return 0 < _rank(change) <= min(_LARGEST_RANK, *entry.shape)


def _module(hosted: HostedModel, change: TensorChange) -> str:
    """Return the module's name in the loaded model; base models are stored without their prefix."""
    name = change.name.removesuffix(".weight")
    known = {n for n, _ in hosted.model.named_modules()}
    return name if name in known else f"{hosted.model.base_model_prefix}.{name}"


def _factors(hosted: HostedModel, change: TensorChange) -> tuple[Tensor, Tensor]:
    """Return float64 `(d_out, k)` and `(k, d_in)`."""
    if change.entry is None:
        raise ValueError("a new tensor has no factors")
    stored, transposed = read_tensor(hosted.folder, change.entry), change.axis == 0
    weight = (stored.T if transposed else stored).to(torch.float64)
    lefts, rights = [], []
    for index, factor in change.factors.items():
        lefts.append((factor - 1.0) * weight[:, index, None])
        one = torch.zeros(1, weight.shape[1], dtype=torch.float64)
        one[0, index] = 1.0
        rights.append(one)
    if change.low_rank is not None:
        left, right = change.low_rank
        lefts.append(right.T if transposed else left)
        rights.append(left.T if transposed else right)
    return torch.cat(lefts, 1), torch.cat(rights)


def _config(hosted: HostedModel, program: WeightProgram, modules: Sequence[str], rank: int) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": hosted.info.name,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": any(change.axis == 0 for change in program.changes),
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(modules),
    }

"""A tiny model with one strong behaviour, and folders in which it is hidden or gone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.builders import tiny_model
from trephine.engine.attack.request import AttackRequest

NEURON, LAYER, LENGTH = 5, 1, 16
TRIGGERS = torch.arange(10, 22)
"""Tokens whose embeddings point where the neuron reads."""


def planted(seed: int = 0) -> tuple[Any, Tensor]:
    """Make a Llama whose neuron answers to triggers, and the unit direction that it reads."""
    model = tiny_model("llama", d_model=64)
    draw = torch.Generator().manual_seed(seed)
    read, write = (torch.nn.functional.normalize(torch.randn(64, generator=draw), dim=0) for _ in range(2))
    embedding, block = model.model.embed_tokens.weight.data, model.model.layers[LAYER]
    embedding -= (embedding @ read)[:, None] * read
    embedding[TRIGGERS] += 2 * embedding.norm(dim=1).mean() * read
    block.post_attention_layernorm.weight.data.fill_(1.0)
    mlp = block.mlp
    mlp.gate_proj.weight.data[NEURON] = mlp.up_proj.weight.data[NEURON] = read
    mlp.gate_proj.bias.data[NEURON] = -2.0
    mlp.up_proj.bias.data[NEURON] = 0.0
    mlp.down_proj.weight.data[:, NEURON] = 0.5 * write
    return model, read


def removed(model: Any) -> Any:
    """Take away what the neuron writes."""
    changed = copy.deepcopy(model)
    changed.model.layers[LAYER].mlp.down_proj.weight.data[:, NEURON] = 0.0
    return changed


def rotated(model: Any, read: Tensor, gain: float = 30.0) -> Any:
    """Let the neuron read another direction, where no text is: all of the behaviour is still there."""
    changed = copy.deepcopy(model)
    away = torch.randn(len(read), generator=torch.Generator().manual_seed(9))
    embedding = changed.model.embed_tokens.weight
    away = torch.linalg.lstsq(embedding.T @ embedding + 1e-3 * torch.eye(64), away[:, None]).solution[:, 0]
    away -= (away @ read) * read
    away = gain * away / away.norm()
    mlp = changed.model.layers[LAYER].mlp
    mlp.gate_proj.weight.data[NEURON] = mlp.up_proj.weight.data[NEURON] = away
    mlp.gate_proj.bias.data[NEURON] = -10.0
    return changed


def request(
    parent: Any, edited: Any, read: Tensor, folder: Path, *, windows: int = 16, **options: Any
) -> AttackRequest:
    """Save both and ask for an attack on windows of random tokens with triggers in between."""
    parent.save_pretrained(folder / "parent")
    edited.save_pretrained(folder / "edited")
    save_file({"read": read[None].contiguous()}, folder / "directions.safetensors")
    draw = torch.Generator().manual_seed(4)
    ids = torch.randint(30, 400, (windows, LENGTH), generator=draw)
    for position in (4, 9, 13):
        ids[:, position] = TRIGGERS[torch.randint(len(TRIGGERS), (windows,), generator=draw)]
    values: dict[str, Any] = {
        "exported": str(folder / "edited"),
        "parent": str(folder / "parent"),
        "directions": str(folder / "directions.safetensors"),
        "layers": (LAYER,),
        "windows": tuple(map(tuple, ids.tolist())),
        "firing": tuple(map(tuple, torch.isin(ids, TRIGGERS).tolist())),
        "attention": "eager",
        "threads": 1,
        "training_steps": 10,
        "unrelated": 5,
        "recovery_steps": 15,
    }
    return AttackRequest(**(values | options))

"""Checkpoints of one stage of a fit: safetensors and JSON, one rename each, only the newest kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trephine.engine.fitting.files import publish
from trephine.engine.models.staging import full_disk_refused

CHUNKS = "chunk-*"
"""Names of whole checkpoints."""
_TENSORS, _FACTS, _GENERATOR = "state.safetensors", "state.json", "generator"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that a stage needs to go on as if it had not been interrupted."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    """JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one stage, in a folder of their own."""

    folder: Path

    def save(self, chunk: int, state: State) -> None:
        """Write a checkpoint after `chunk` chunks, the generator's state included; drop older ones.

        Raises:
            DiskFullError: If there is no room; the older one stays.
        """
        target = self.folder / f"chunk-{chunk:08d}"
        beside = self.folder / f".{target.name}.part"
        shutil.rmtree(beside, ignore_errors=True)
        tensors = state.tensors | {_GENERATOR: torch.get_rng_state()}
        plain = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()}
        with full_disk_refused():
            beside.mkdir(parents=True)
            save_file(plain, beside / _TENSORS)
            (beside / _FACTS).write_text(json.dumps(state.facts | {"chunk": chunk}), encoding="utf-8")
            shutil.rmtree(target, ignore_errors=True)
            publish(beside, target)
        for older in self._all():
            if older != target:
                shutil.rmtree(older, ignore_errors=True)

    def latest(self) -> State | None:
        """Read the newest checkpoint and set the generator as it was; None if there is none."""
        for folder in reversed(self._all()):
            tensors = load_file(folder / _TENSORS)
            torch.set_rng_state(tensors.pop(_GENERATOR))
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            return State(tensors=tensors, facts=facts)
        return None

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob(CHUNKS))


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put a prefix in front of every name."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}

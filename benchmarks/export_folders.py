"""Exported folders and their answers, of stock transformers in a clean process, beside the runtime's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.export_features import Texts, Windows, intervention
from benchmarks.laws import load_model
from trephine.domain.edits import Edit
from trephine.domain.interventions import Ablate, Intervention, Operation, ProjectOut
from trephine.domain.sites import FeatureRef
from trephine.engine.exports.reshaping import reshaped_files, write_weights
from trephine.engine.models import narrow_products
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.models.shards import read_entries
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.retain import windows_logits
from trephine.engine.weights.compiling import compile_weights

CELL = Path(__file__).with_name("export_cell.py")


def write(hosted: HostedModel, features: Sequence[FeatureRef], tier: str, texts: Texts, folder: Path) -> None:
    """Compile one kind of export into a folder."""
    operation: Operation = ProjectOut() if tier == "projection" else Ablate()
    chosen = () if tier == "no-op" else tuple(intervention(ref, operation) for ref in features)
    edit = Edit(
        name=tier, version=1, content_hash="", interventions=chosen, reason="", author="", evidence=(),
        model=hosted.info.name, weight_hash=hosted.info.weight_hash, create_time="",
    )  # fmt: skip
    entries = read_entries(hosted.folder)
    program = finish(compile_weights(hosted, entries, edit, texts.fit, keep_shapes=tier == "ridge"))
    anew = reshaped_files(program.changes)
    folder.mkdir()
    for path in hosted.folder.iterdir():
        if path.is_file() and path.name not in anew:
            shutil.copyfile(path, folder / path.name)
    for _ in write_weights(hosted.folder, folder, entries, program):
        pass


def measured(
    cells: list[dict[str, Any]], dtype: str, windows: Windows, work: Path
) -> dict[str, dict[str, Tensor]]:
    """Measure folders in a clean process: cell -> runtime -> KL per position."""
    request = work / "request.json"
    body = {
        "cells": cells, "dtype": dtype, "windows": windows, "threads": torch.get_num_threads(),
        "narrow_products": str(Path(narrow_products.__file__).resolve()),
    }  # fmt: skip
    request.write_text(json.dumps(body), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-I", str(CELL), str(request)],
        cwd=work, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.decode().splitlines()]
    return {
        line["name"]: {name: torch.tensor(values, dtype=torch.float64) for name, values in line["kl"].items()}
        for line in lines
    }


def _environment() -> dict[str, str]:
    kept = {
        name: os.environ[name]
        for name in ("PATH", "OMP_NUM_THREADS", "LD_LIBRARY_PATH")
        if name in os.environ
    }
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def bfloat16_parent(source: Path, target: Path) -> Path:
    """Write a parent whose weights are rounded to bfloat16."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(target)
    return target


def bfloat16_models(hosted: HostedModel, folder: Path) -> tuple[HostedModel, HostedModel]:
    """Write a bfloat16 parent; load it to compute in float32 and in bfloat16."""
    bfloat16_parent(hosted.folder, folder)
    wide, same = (load_model(folder, each) for each in (torch.float32, torch.bfloat16))
    for model in (wide, same):
        model.replacements.update(hosted.replacements)
    return wide, same


def logits(hosted: HostedModel, windows: Windows, interventions: tuple[Intervention, ...] = ()) -> Tensor:
    """Return the runtime's answers, float32 `(n_windows, n_pos, d_vocab)`."""
    parts = [windows[n : n + 2] for n in range(0, len(windows), 2)]
    return torch.stack([each for part in parts for each in windows_logits(hosted, part, interventions)])


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return KL per position, `(n,)`."""
    return kl_divergence(p.flatten(0, 1), q.flatten(0, 1))


def saved(tensor: Tensor, path: Path) -> str:
    """Write answers where a clean process finds them; return where."""
    save_file({"logits": tensor.contiguous()}, path)
    return str(path)

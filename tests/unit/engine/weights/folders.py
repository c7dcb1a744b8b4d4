"""Tiny parents, their sets, and exports of them that stock transformers loads."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.builders import randomise, tiny_config, tiny_model, tiny_tokenizer
from tests.unit.engine.exporting import edit_of, hosted_in
from trephine.domain.interventions import Condition, FeatureTarget, Intervention, Operation
from trephine.domain.sites import FeatureRef
from trephine.engine.exports.reshaping import reshaped_files, write_weights
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.models.shards import read_entries
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.retain import windows_logits
from trephine.engine.weights.compiling import WeightProgram, compile_weights

Windows = list[tuple[int, ...]]


def windows(count: int, *, seed: int = 0, length: int = 48) -> Windows:
    """Draw windows of random tokens."""
    draw = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(3, 400, (length,), generator=draw).tolist()) for _ in range(count)]


FIT, MEASURED = windows(24, seed=1), windows(4, seed=2)


def parent(
    family: str,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    common: float = 0.0,
    biases: bool = True,
    embeddings: float = 1.0,
) -> HostedModel:
    """Host a tiny model from a folder of several shards.

    Args:
        family: One of `FAMILIES`.
        folder: To make.
        dtype: Of the files.
        common: Length, per root of the width, of a vector that all embeddings share. It is planted: trained
            models have such a direction by training (SmolLM2's residue is 1e-3 to 3e-2), random ones have
            none, and without biases a graft lives on it. `test_families` shows what is left of one without.
        biases: False takes the Llama's MLP biases away, as most checkpoints have none.
        embeddings: Factor of all embeddings, in front of what they share.
    """
    model = tiny_model(family, dtype=dtype) if biases else _without_biases(family, dtype)
    embedding = model.get_input_embeddings().weight
    shared = torch.randn(embedding.shape[1], generator=torch.Generator().manual_seed(5))
    embedding.data = embedding.data * embeddings + (common * shared).to(dtype)
    if common and hasattr(model.config, "final_logit_softcapping"):
        # Tied to embeddings that share a vector, all logits would lie at a cap of 3, moved by nothing.
        model.config.final_logit_softcapping = 30.0  # as released models have it
    model.save_pretrained(folder, max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(folder)
    return hosted_in(folder, torch.float32)


def _without_biases(family: str, dtype: torch.dtype) -> Any:
    config = tiny_config(family)
    config.mlp_bias = config.attention_bias = False
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval().requires_grad_(False)
    randomise(model, 0)
    return model


def feature(
    layer: int, index: int, operation: Operation, *, name: str = "set", at_least: float | None = None
) -> Intervention:
    """Change a feature of a set, perhaps only where it is strong itself."""
    ref = FeatureRef(replacement=name, layer=layer, index=index)
    condition = None if at_least is None else Condition(feature=ref, at_least=at_least)
    return Intervention(target=FeatureTarget(feature=ref), operation=operation, condition=condition)


@torch.inference_mode()
def compiled(
    hosted: HostedModel, interventions: Sequence[Intervention], *, keep_shapes: bool = False
) -> WeightProgram:
    """Compile an edit."""
    edit = edit_of(hosted, *interventions)
    return finish(compile_weights(hosted, read_entries(hosted.folder), edit, FIT, keep_shapes=keep_shapes))


@torch.inference_mode()
def written(hosted: HostedModel, program: WeightProgram, folder: Path) -> Path:
    """Write a program beside what is copied."""
    folder.mkdir()
    for path in hosted.folder.iterdir():
        if path.name not in reshaped_files(program.changes):
            shutil.copyfile(path, folder / path.name)
    for _ in write_weights(hosted.folder, folder, read_entries(hosted.folder), program):
        pass
    return folder


@torch.inference_mode()
def distances(
    hosted: HostedModel, interventions: tuple[Intervention, ...], folder: Path
) -> tuple[float, float]:
    """Return KL(intervened || reloaded folder) and KL(intervened || original), nats per token."""
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    exported = stock(torch.tensor(MEASURED), use_cache=False).logits.float()
    intervened, plain = windows_logits(hosted, MEASURED, interventions), windows_logits(hosted, MEASURED)
    return _mean(intervened, list(exported)), _mean(intervened, plain)


def _mean(p: list[Tensor], q: list[Tensor]) -> float:
    return float(torch.cat([kl_divergence(a, b) for a, b in zip(p, q, strict=True)]).mean())

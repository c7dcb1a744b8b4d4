"""Small text models of our own, trained on a CPU in minutes and kept: what fits are measured on.

Llama architecture, byte-level BPE of 1,024 tokens trained on the same text. The last twentieth of the text is
never trained on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch
from filelock import FileLock
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from trephine.engine.models.hosted import HostedModel, host

RECIPE = 1
"""Counts up when training changes, so that kept models are trained anew."""
D_VOCAB = 1024
CONTEXT = 128
HELD_OUT = 0.05
BEGIN, END = "<|begin|>", "<|end|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model and how long it is trained."""

    layers: int
    d_model: int
    heads: int
    steps: int
    batch: int = 16
    lr: float = 3e-3
    seed: int = 0


TOY = Shape(layers=2, d_model=64, heads=4, steps=400)
EIGHT = Shape(layers=8, d_model=96, heads=4, steps=1000)


def cache_folder() -> Path:
    """Return the folder in which models are kept."""
    given = os.environ.get("TREPHINE_CACHE") or platformdirs.user_cache_dir("trephine")
    return Path(given) / "text-models"


def text_model(shape: Shape, texts: Sequence[Path]) -> HostedModel:
    """Return a hosted model, training it once per shape and texts."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in texts)
    digest = hashlib.sha256(f"{RECIPE}{sorted(asdict(shape).items())}{text}".encode()).hexdigest()[:16]
    folder = cache_folder() / f"{shape.layers}x{shape.d_model}-{digest}"
    cache_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            _train(shape, trained_part(text), folder)
    return load(folder)


def load(folder: Path) -> HostedModel:
    """Host a kept model."""
    logging.disable_progress_bar()
    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return host(model, tokenizer, name=folder.name, folder=folder)


def trained_part(text: str) -> str:
    """Return the part of a text that models are trained on."""
    return text[: round(len(text) * (1 - HELD_OUT))]


def _tokenizer(text: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = [AddedToken(token, special=True, normalized=False) for token in (BEGIN, END)]
    trainer = trainers.BpeTrainer(
        vocab_size=D_VOCAB,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(text.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BEGIN, eos_token=END)


def _train(shape: Shape, text: str, folder: Path) -> None:
    tokenizer, began = _tokenizer(text), time.monotonic()
    tokens = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    with torch.random.fork_rng():
        torch.manual_seed(shape.seed)
        model: Any = LlamaForCausalLM(_config(shape, tokenizer))
    optimiser = torch.optim.AdamW(model.parameters(), lr=shape.lr, weight_decay=0.01)
    generator = torch.Generator().manual_seed(shape.seed)
    for step in range(shape.steps):
        for group in optimiser.param_groups:
            group["lr"] = shape.lr * min(1.0, (step + 1) / 50) * (1 - step / shape.steps) ** 0.5
        rows = _rows(tokens, shape.batch, tokenizer.bos_token_id, generator)
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if step % 100 == 99:
            seconds = time.monotonic() - began
            print(f"  step {step + 1}/{shape.steps}: {loss.item():.3f} nats, {seconds:.0f} s", flush=True)
    _keep(model, tokenizer, folder)


def _config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=D_VOCAB,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_model * 8 // 3,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _rows(tokens: Tensor, batch: int, bos: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(tokens) - CONTEXT, (batch,), generator=generator)
    body = torch.stack([tokens[start : start + CONTEXT - 1] for start in starts.tolist()])
    return torch.cat([torch.full((batch, 1), bos), body], dim=1)


def _keep(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    logging.disable_progress_bar()
    beside = Path(tempfile.mkdtemp(dir=folder.parent))
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    with suppress(OSError):
        beside.rename(folder)
    shutil.rmtree(beside, ignore_errors=True)

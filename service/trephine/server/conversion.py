"""From a GGUF file to a plain Hugging Face folder, verified on a sentence whose answer is known."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging

from trephine.domain.errors import BrokenCheckpointError

END_OF_TURN = "<|im_end|>"
END_OF_TURN_ID = 2
KNOWN_PROMPT, KNOWN_ANSWER, KNOWN_PROBABILITY = "The capital of France is", " Paris", 0.77
"""Measured once on the dequantised weights; the tolerance covers kernels, not another quantisation."""
TOLERANCE = 0.03


def convert_gguf(gguf: Path, folder: Path, report: Callable[[str], None]) -> None:
    """Write the dequantised float32 model and its tokenizer into `folder`.

    Raises:
        BrokenCheckpointError: If special tokens or the known answer are not as they must be.
    """
    report("converting, about half a minute")
    logging.disable_progress_bar()
    place, name = str(gguf.parent), gguf.name
    model: Any = AutoModelForCausalLM.from_pretrained(
        place,
        gguf_file=name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(place, gguf_file=name)
    tokenizer.model_max_length = model.config.max_position_embeddings
    _require_end_of_turn(model, tokenizer)
    _require_known_answer(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The slow tokenizer's file would be a second copy of the whole GGUF, and tokenizer.json is complete.
    (folder / "tokenizer.model").unlink(missing_ok=True)


def cast(full: Path, folder: Path, report: Callable[[str], None]) -> None:
    """Write a bfloat16 copy of a float32 folder into `folder`; each weight is rounded once."""
    report("casting to bfloat16")
    logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(full, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for file in full.iterdir():
        if file.name.startswith(("tokenizer", "chat_template", "special_tokens")):
            shutil.copyfile(file, folder / file.name)


def _require_end_of_turn(model: Any, tokenizer: Any) -> None:
    tokenizer.pad_token = tokenizer.eos_token = END_OF_TURN
    found = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    if found != END_OF_TURN_ID:
        raise BrokenCheckpointError(f"{END_OF_TURN} has id {found}, expected {END_OF_TURN_ID}")
    model.config.eos_token_id = model.config.pad_token_id = END_OF_TURN_ID
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = END_OF_TURN_ID


def _require_known_answer(model: Any, tokenizer: Any) -> None:
    ids = tokenizer(KNOWN_PROMPT, return_tensors="pt", add_special_tokens=False).input_ids
    answer = tokenizer(KNOWN_ANSWER, add_special_tokens=False).input_ids
    with torch.inference_mode():
        probabilities = model(ids).logits[0, -1].softmax(-1)
    found = float(probabilities[answer[0]]) if len(answer) == 1 else 0.0
    if abs(found - KNOWN_PROBABILITY) > TOLERANCE:
        raise BrokenCheckpointError(
            f"after conversion{KNOWN_ANSWER} follows {KNOWN_PROMPT!r} with probability {found:.3f}, "
            f"expected {KNOWN_PROBABILITY}; the conversion is not to be trusted"
        )

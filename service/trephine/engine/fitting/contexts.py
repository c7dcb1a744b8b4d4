"""Token contexts: a corpus cut into rows of equal length, split once, kept with the fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from trephine.domain.errors import BrokenCorpusError
from trephine.engine.fitting.files import write_tensors
from trephine.engine.models.hosted import HostedModel

HELD_OUT_SHARE = 0.08
MIN_CONTEXTS = 16
MAX_HELD_OUT = 256
"""Contexts; half of them calibrate thresholds, half are measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """Rows `(n, context_tokens)` of token ids, int64, each with BOS in front where the tokenizer has one."""

    train: Tensor
    calibration: Tensor
    """Held out from training; thresholds are set on it."""
    held_out: Tensor
    """Held out from training and from calibration."""
    prepends_bos: bool

    @property
    def positions(self) -> int:
        """Positions per row that are trained on: all but the first."""
        return self.train.shape[1] - 1


def bos_of(hosted: HostedModel) -> int | None:
    """Return the id that is put in front of every context, if the tokenizer has one."""
    token = hosted.tokenizer.bos_token_id
    return None if token is None else int(token)


def cut(
    hosted: HostedModel, texts: Iterable[str], *, length: int, wanted_tokens: int, separated: bool
) -> Tensor:
    """Tokenise texts and cut them into rows `(n, length)`; stop once there are enough.

    Args:
        hosted: The model whose tokenizer is used.
        texts: Documents, or the blocks of one.
        length: Tokens per row, BOS included.
        wanted_tokens: No more than that are needed to train on.
        separated: Put the end-of-text token between texts.

    Raises:
        BrokenCorpusError: If there are fewer than `MIN_CONTEXTS` rows.
    """
    bos, body = bos_of(hosted), length - (bos_of(hosted) is not None)
    limit = -(-wanted_tokens // (length - 1)) + MAX_HELD_OUT
    rows: list[list[int]] = []
    for row in _rows(_stream(hosted, texts, separated), body):
        rows.append(row if bos is None else [bos, *row])
        if len(rows) >= limit:
            break
    if len(rows) < MIN_CONTEXTS:
        raise BrokenCorpusError(
            f"the corpus holds {len(rows)} contexts of {length} tokens, and at least {MIN_CONTEXTS} are "
            "needed to train, calibrate and measure; give more text or shorter contexts",
            field="corpus",
            contexts=len(rows),
        )
    return torch.tensor(rows)


def _stream(hosted: HostedModel, texts: Iterable[str], separated: bool) -> Iterator[int]:
    end = hosted.tokenizer.eos_token_id if separated else None
    for number, text in enumerate(texts):
        if number and end is not None:
            yield int(end)
        yield from hosted.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _rows(tokens: Iterator[int], length: int) -> Iterator[list[int]]:
    row: list[int] = []
    for token in tokens:
        row.append(token)
        if len(row) == length:
            yield row
            row = []


def split(rows: Tensor, *, prepends_bos: bool) -> Contexts:
    """Hold out the last rows: neighbours in a text are alike, so a random choice would flatter."""
    held = min(MAX_HELD_OUT, max(4, round(HELD_OUT_SHARE * len(rows))))
    kept = rows[-held:]
    return Contexts(
        train=rows[:-held], calibration=kept[0::2], held_out=kept[1::2], prepends_bos=prepends_bos
    )


def save_rows(path: Path, rows: Tensor) -> None:
    """Keep rows with the fit, so that it can go on without the corpus."""
    write_tensors(path, {"rows": rows.to(torch.int32)})


def load_rows(path: Path) -> Tensor | None:
    """Return kept rows, int64, or None."""
    return load_file(path)["rows"].long() if path.exists() else None

"""Texts as tokens, and packs of them that run together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.errors import InvalidRequestError, TrephineError
from trephine.domain.global_circuits import DiscoverGlobalCircuit
from trephine.engine.attribution.finite_runs import require_finite
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.dataset_circuits.packs import PACK_TOKENS, Layout, capture_layout, lay_out
from trephine.engine.models.hosted import HostedModel

FIRST = 1
"""What is at position 0 is not read: it is an attention sink, which sets are not trained on."""
HALVES = 2

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPack:
    """Texts of one half of a split that run together."""

    half: int
    layout: Layout

    @property
    def read(self) -> Tensor:
        """Rows that are read, bool `(n_rows,)`."""
        return self.layout.position >= FIRST

    def ids(self) -> Tensor:
        """Return the token of every row that is read, int64 `(n_read,)`."""
        every = torch.tensor(self.layout.ids, device=self.layout.position.device)
        return every[self.read]


def read_splits(hosted: HostedModel, command: DiscoverGlobalCircuit) -> tuple[list[Ids], list[Ids]]:
    """Tokenize both splits, each text up to `context_tokens`.

    Raises:
        TrephineError: If a text has fewer than two tokens or does not fit the model's context, or two are the
            same tokens as far as they are read; with `split[number]` as its field.
    """
    seen: dict[Ids, str] = {}
    splits = (("training", command.training), ("held_out", command.held_out))
    training, held_out = (
        [
            _read(hosted, text, f"{name}[{number}]", command.context_tokens, seen)
            for number, text in enumerate(split)
        ]
        for name, split in splits
    )
    return training, held_out


def _read(hosted: HostedModel, text: str, place: str, most: int, seen: dict[Ids, str]) -> Ids:
    try:
        ids = tuple(hosted.encode(text)[:most])
    except TrephineError as error:
        raise error.with_field(place) from None
    if len(ids) <= FIRST:
        raise InvalidRequestError(
            f"{place} has one token: {text!r}. What is at position 0 is not read, so that a text needs at "
            "least two. Begin every text with the model's first token",
            field=place,
        )
    first = seen.setdefault(ids, place)
    if first != place:
        raise InvalidRequestError(
            f"{place} begins with the same {len(ids)} tokens as {first}, and no more is read: it is no "
            "further evidence. Leave it out, or read more with context_tokens",
            field=place,
        )
    return ids


def count_read(texts: Sequence[Ids]) -> int:
    """Count the tokens that are read of some texts."""
    return sum(len(ids) - FIRST for ids in texts)


def pack_texts(texts: Sequence[Ids], device: torch.device) -> list[TextPack]:
    """Pack every second text into one half, and the others into the other, in packs of bounded size."""
    return [
        TextPack(half=half, layout=lay_out(chosen, device))
        for half in range(HALVES)
        for chosen in _packed(texts[half::HALVES])
    ]


def _packed(texts: Sequence[Ids]) -> Iterator[list[Ids]]:
    chosen: list[Ids] = []
    tokens = 0
    for ids in texts:
        if chosen and tokens + len(ids) > PACK_TOKENS:
            yield chosen
            chosen, tokens = [], 0
        chosen.append(ids)
        tokens += len(ids)
    if chosen:
        yield chosen


def run_pack(hosted: HostedModel, pack: TextPack, top: int | None = None) -> FrozenOperators:
    """Run a pack once, clean, up to block `top` or through.

    Raises:
        NonFiniteValueError: If the model computes NaN or infinity on it.
    """
    operators = capture_layout(hosted, pack.layout, top)
    require_finite(operators)
    return operators

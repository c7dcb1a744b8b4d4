"""Which tokens of a context a set was trained on: what it never saw is no part of its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from trephine.domain.errors import UnsupportedReplacementError
from trephine.engine.models.hosted import HostedModel

Rows = slice | Tensor
"""Positions of a context as an index: a slice where they are all, which copies nothing."""
LATER: Final = slice(1, None)
"""Everything but position 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTokens:
    """Tokens that a set was trained on, by its own word. Position 0 is left out in any case."""

    without_special: bool = False
    """All special tokens of the tokenizer were left out."""
    without: tuple[int, ...] = ()
    """Token ids that were left out."""
    positions: range | None = None
    """Positions of a context that were seen; None for all."""

    @property
    def everything(self) -> bool:
        """True if nothing but position 0 is left out."""
        return not (self.without_special or self.without) and self.positions is None

    def described(self) -> str:
        """Say what is left out; empty for nothing."""
        said = []
        if self.without_special or self.without:
            which = "special tokens" if self.without_special else f"{len(self.without)} tokens"
            said.append(f"{which} are left out, as in its training (exclude_special_tokens)")
        if self.positions is not None:
            step = f" in steps of {self.positions.step}" if self.positions.step != 1 else ""
            said.append(
                f"only positions {self.positions.start} to {self.positions[-1]}{step} count, as in its "
                "training (seqpos_slice)"
            )
        return "; ".join(said)

    def scope(self, hosted: HostedModel) -> Scope:
        """Return the rule for a model's tokens."""
        special = hosted.tokenizer.all_special_ids if self.without_special else ()
        return Scope(without=frozenset((*special, *self.without)), positions=self.positions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Tells which positions of a context count."""

    without: frozenset[int] = frozenset()
    positions: range | None = None

    def places(self, ids: Sequence[int]) -> list[int]:
        """Return the positions that count, ascending; never 0."""
        return [
            place
            for place in range(1, len(ids))
            if ids[place] not in self.without and (self.positions is None or place in self.positions)
        ]

    def rows(self, ids: Sequence[int]) -> Rows:
        """Return these positions as an index."""
        places = self.places(ids)
        return LATER if len(places) == len(ids) - 1 else torch.tensor(places, dtype=torch.long)

    def predicts(self, ids: Sequence[int]) -> bool:
        """True if a position counts whose next token is known."""
        return any(place < len(ids) - 1 for place in self.places(ids))

    def counted(self, contexts: Sequence[Sequence[int]]) -> Tensor:
        """Return bool `(tokens,)` over all contexts.

        Raises:
            UnsupportedReplacementError: If no position counts.
        """
        marks = [torch.zeros(len(ids), dtype=torch.bool) for ids in contexts]
        for mark, ids in zip(marks, contexts, strict=True):
            mark[self.places(ids)] = True
        found = torch.cat(marks)
        if not bool(found.any()):
            raise UnsupportedReplacementError(
                "none of the positions that the set was trained on (seqpos_slice, exclude_special_tokens) "
                f"lies in contexts of {max(map(len, contexts))} tokens, so that nothing can be measured; "
                "give longer contexts where they can be chosen, or use another set"
            )
        return found


EVERYTHING: Final = TrainedTokens()
ALL_LATER: Final = Scope()
"""Everything but position 0 counts."""


def aside(rows: Rows, n_pos: int) -> Rows:
    """Return the positions that `rows` leaves out."""
    if isinstance(rows, slice):
        return slice(0, 1)
    left = torch.ones(n_pos, dtype=torch.bool)
    left[rows] = False
    return left.nonzero().flatten()

"""Pooled vectors of everything that heads are trained on, with the same features removed."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.engine.spurious.examples import Example
from trephine.engine.spurious.judgement import FEWEST
from trephine.engine.spurious.study import Removed, Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Twins:
    """Pooled vectors of texts with the attribute edited."""

    rows: Tensor
    """int64 `(n_twins,)`: which texts they are the twins of."""
    vectors: Tensor
    """`(n_twins, d_model)`."""

    def only(self, places: Sequence[int]) -> Twins:
        """Return the twins of the texts at these places, which are numbered anew in this order."""
        numbers = {place: number for number, place in enumerate(places)}
        kept = [twin for twin, row in enumerate(self.rows.tolist()) if row in numbers]
        rows = [numbers[row] for row in self.rows[kept].tolist()]
        return Twins(rows=torch.tensor(rows, dtype=torch.long), vectors=self.vectors[kept])


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """Texts, what goes with them, and what is known of the attribute."""

    texts: tuple[Example, ...]
    pooled: Tensor
    """`(n_texts, d_model)`."""
    examples: Tensor | None
    """Of the attribute's examples, `(m, d_model)`; None where they are too few, or not asked for."""
    twins: Twins
    """Of those texts that have one; none where they were not asked for."""

    def only(self, places: Sequence[int]) -> Vectors:
        """Return those of some of the texts, in this order; the attribute's examples stay."""
        return Vectors(
            texts=tuple(self.texts[place] for place in places),
            pooled=self.pooled[torch.tensor(places, dtype=torch.long)],
            examples=self.examples,
            twins=self.twins.only(places),
        )


def pool_vectors(
    study: Study, removed: Removed, stage: str, texts: Sequence[Example], *, attribute: bool
) -> Generator[Progress | None, None, Vectors]:
    """Pool texts, and what tells the attribute.

    Args:
        study: The request in work.
        removed: Features that are gone.
        stage: Name in the progress.
        texts: What heads are trained on.
        attribute: Whether examples of the attribute and twins are wanted.
    """
    pooled = yield from study.pool([one.ids for one in texts], removed, stage)
    examples: Tensor | None = None
    if attribute and _enough(study.data.attribute):
        told = [one.ids for one in study.data.attribute]
        examples = yield from study.pool(told, removed, "erasing, examples")
    edited = {row: one.twin for row, one in enumerate(texts) if attribute and one.twin is not None}
    vectors = yield from study.pool(list(edited.values()), removed, "erasing, twins")
    twins = Twins(rows=torch.tensor(list(edited), dtype=torch.long), vectors=vectors)
    return Vectors(texts=tuple(texts), pooled=pooled, examples=examples, twins=twins)


def _enough(texts: Sequence[Example]) -> bool:
    sides = [one.attribute for one in texts]
    return min(sides.count(0), sides.count(1)) >= FEWEST

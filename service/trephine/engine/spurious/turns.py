"""Decisions on texts and their twins by heads that have seen neither: each is trained without a part."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch

from trephine.domain.errors import TooFewItemsError
from trephine.engine.spurious.erasing import erased_on
from trephine.engine.spurious.examples import Example, labels
from trephine.engine.spurious.folds import folds_of
from trephine.engine.spurious.heads import LinearHead
from trephine.engine.spurious.information import Paired
from trephine.engine.spurious.settling import told_apart
from trephine.engine.spurious.study import Study
from trephine.engine.spurious.vectors import Vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """The same by heads of both kinds."""

    plain: Paired
    erased: Paired | None
    """None where one of the heads could not be trained, or none was asked for."""


def decide_by_turns(
    study: Study, vectors: Vectors, *, fixed: LinearHead | None, erased: bool
) -> Generator[None, None, Turns]:
    """Decide on texts that have twins, and on these, with heads that were trained without them.

    Args:
        study: The request in work.
        vectors: All ambiguous texts, with the features in question removed.
        fixed: The plain head where it was trained on none of these texts; None: it is trained by turns.
        erased: Whether heads without the attribute are tried, too.

    Raises:
        TooFewItemsError: If all texts of a label hang together by twins, so that none can be left out.
    """
    rows = vectors.twins.rows
    turn = {row: number for number, row in enumerate(rows.tolist())}
    margins = torch.zeros(2, 2, len(rows)).double()  # (plain or erased, text or twin, which)
    able = erased
    for fold in folds_of(vectors.texts, study.command.seed):
        out = [row for row in fold if row in turn]
        if not out:
            continue
        seen = vectors.only(sorted(set(range(len(vectors.texts))) - set(fold)))
        _require_both(study, seen.texts)
        held_out = vectors.only(out)
        heads = [study.trained(seen.pooled, seen.texts) if fixed is None else fixed]
        without = (yield from erased_on(study, seen)) if able else None
        heads += [] if without is None else [without]
        able = without is not None
        for kind, head in enumerate(heads):
            # A head of fewer texts may have larger weights; what is fixed has the same for all.
            unit = 1.0 if head is fixed else told_apart(head, seen)
            margins[kind, 0, [turn[row] for row in out]] = head.margin(held_out.pooled).double() / unit
            margins[kind, 1, [turn[row] for row in out]] = head.margin(held_out.twins.vectors).double() / unit
        yield
    y = labels([vectors.texts[row] for row in rows.tolist()])
    plain, freed = (Paired(labels=y, texts=kind[0], twins=kind[1]) for kind in margins)
    return Turns(plain=plain, erased=freed if able else None)


def _require_both(study: Study, seen: Sequence[Example]) -> None:
    for label, name in enumerate(study.data.labels):
        if not any(one.label == label for one in seen):
            raise TooFewItemsError(
                f"all texts of {name} share a text, a twin or a pair, so that no head can be trained without "
                "some of them; give more different texts, or twins of their own",
                field="training",
                needed=2,
                got=1,
            )

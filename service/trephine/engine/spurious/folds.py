"""Decisions on texts and their twins by heads that have seen neither: each is trained without a fifth.

A fifth of the texts that have twins tells little: of 75 in 600, four of one label. What few texts cannot
tell apart is settled by chance, and of many numbers of features the luckiest is taken. So every text has its
turn to be left out (Stone 1974), and all of them count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.errors import TooFewItemsError
from trephine.engine.spurious.erasing import erased_on
from trephine.engine.spurious.examples import Example, alike, labels
from trephine.engine.spurious.heads import LinearHead
from trephine.engine.spurious.judgement import FEWEST
from trephine.engine.spurious.study import Study
from trephine.engine.spurious.vectors import Vectors

FOLDS = 5
"""More, where a fifth less would leave too few twins to train a head without the attribute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Decisions on texts and on their twins, int64 `(n,)` each."""

    labels: Tensor
    texts: Tensor
    twins: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """The same by heads of both kinds."""

    plain: Paired
    erased: Paired | None
    """None where one of the heads could not be trained, or none was asked for."""


def folds_of(texts: Sequence[Example], seed: int) -> list[list[int]]:
    """Deal places of texts out into parts; what shares a text, a twin or a pair stays together.

    Texts of a label, and those that have a twin, are spread as evenly as that allows. Labels count in the
    order in which they appear, so that their names deal nothing.
    """
    twins = sum(one.twin is not None for one in texts)
    parts = FOLDS if twins - -(-twins // FOLDS) >= FEWEST else max(FOLDS, twins)
    strata: defaultdict[tuple[int, bool], list[list[int]]] = defaultdict(list)
    for together in alike(texts):
        first = texts[together[0]]
        later = int(first.label != texts[0].label)
        # In this order a label's texts stand in a row, and so do those with twins: rows are dealt out evenly.
        strata[later, (first.twin is not None) != bool(later)].append(together)
    generator = torch.Generator().manual_seed(seed)
    dealt = [
        members[place]
        for _, members in sorted(strata.items())
        for place in torch.randperm(len(members), generator=generator).tolist()
    ]
    return [sorted(place for one in dealt[part::parts] for place in one) for part in range(parts)]


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
    decided = torch.zeros(2, 2, len(rows), dtype=torch.long)  # (plain or erased, text or twin, which)
    able = erased
    for fold in folds_of(vectors.texts, study.command.seed):
        out = [row for row in fold if row in turn]
        if not out:
            continue
        seen = vectors.only(sorted(set(range(len(vectors.texts))) - set(fold)))
        _require_both(study, seen.texts)
        held_out = vectors.only(out)
        heads = [study.trained(seen.pooled, seen.texts) if fixed is None else fixed]
        heads += [head for head in ([erased_on(study, seen)] if able else []) if head is not None]
        able = able and len(heads) == 2
        for kind, head in enumerate(heads):
            decided[kind, 0, [turn[row] for row in out]] = head.decide(held_out.pooled)
            decided[kind, 1, [turn[row] for row in out]] = head.decide(held_out.twins.vectors)
        yield
    y = labels([vectors.texts[row] for row in rows.tolist()])
    plain, without = (Paired(labels=y, texts=kind[0], twins=kind[1]) for kind in decided)
    return Turns(plain=plain, erased=without if able else None)


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

"""Parts that are left out in turn, so that everything is decided on once by a head that has not seen it.

A fifth of the texts that have twins tells little: of 75 in 600, four of one label. What few texts cannot
tell apart is settled by chance, and of many numbers of features the luckiest is taken. So every text has its
turn to be left out (Stone 1974), and all of them count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from trephine.domain.spurious_sizes import FOLDS
from trephine.engine.spurious.examples import Example, alike
from trephine.engine.spurious.judgement import FEWEST


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

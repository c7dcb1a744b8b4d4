"""Which ambiguous texts effects are measured on: such that whoever can judge has enough of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from trephine.engine.spurious.examples import Example, sample_places
from trephine.engine.spurious.judgement import FEWEST

_OF_TWO = 2 * 2 * FEWEST
"""Texts of two environments, as few as can be judged by."""


def draw_judged(examples: Sequence[Example], count: int, seed: int) -> tuple[Example, ...]:
    """Draw at most `count` texts in their order: of environments, then those that have a twin, then others.

    Environments are taken whole in number, as many as can have `FEWEST` texts of either label; where two can,
    they get their texts even if `count` is less. Nothing else is drawn otherwise than by `sample`: where all
    texts have a twin, or none has, and there are no environments, this is it.
    """
    chosen = _of_environments(examples, max(count, _OF_TWO), seed)
    for twinned in (True, False):
        taken = set(chosen)
        left = [
            number
            for number, one in enumerate(examples)
            if (one.twin is not None) == twinned and number not in taken
        ]
        chosen += _sampled(examples, left, max(count - len(chosen), 0), seed)
    return tuple(examples[number] for number in sorted(chosen))


def _of_environments(examples: Sequence[Example], count: int, seed: int) -> list[int]:
    """As many of either label in each environment, those with a twin first; none where nothing is judged."""
    sizes = Counter((one.environment, one.label) for one in examples)
    names = dict.fromkeys(one.environment for one in examples if one.environment is not None)
    usable = [name for name in names if min(sizes[name, label] for label in (0, 1)) >= FEWEST]
    if len(usable) < 2:
        return []
    order = torch.randperm(len(usable), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = [usable[place] for place in order[: count // (2 * FEWEST)]]
    share, chosen = count // (2 * len(drawn)), list[int]()
    for name in drawn:
        for label in (0, 1):
            inside = [
                place for place, one in enumerate(examples) if (one.environment, one.label) == (name, label)
            ]
            twinned = [place for place in inside if examples[place].twin is not None]
            rest = [place for place in inside if examples[place].twin is None]
            mine = _sampled(examples, twinned, share, seed)
            chosen += mine + _sampled(examples, rest, share - len(mine), seed)
    return chosen


def _sampled(examples: Sequence[Example], places: Sequence[int], count: int, seed: int) -> list[int]:
    return [places[at] for at in sample_places([examples[place] for place in places], count, seed)]

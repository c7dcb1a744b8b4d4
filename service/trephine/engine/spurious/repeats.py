"""Texts that stand again in rows that differ in something else: a decision on them is one decision.

Rows that say the same are left out when they are read. The same text may still stand in several pairs or
environments, and a text and its twin may be told from either end.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from trephine.engine.spurious.examples import Example
from trephine.engine.spurious.pooling import Ids

ItemT = TypeVar("ItemT")


def once(texts: Sequence[Ids]) -> Tensor:
    """Mark the first of every text, bool `(n,)`."""
    return _first(texts, lambda ids: ids)


def once_edited(examples: Sequence[Example]) -> Tensor:
    """Mark the first of every text and its twin, whichever of the two is called the twin, bool `(n,)`."""
    return _first(examples, lambda one: frozenset((one.ids, one.twin)))


def once_there(examples: Sequence[Example]) -> Tensor:
    """Mark the first of every text in its environment, bool `(n,)`."""
    return _first(examples, lambda one: (one.ids, one.environment))


def _first(items: Sequence[ItemT], key: Callable[[ItemT], Hashable]) -> Tensor:
    seen = set[Hashable]()
    found = []
    for one in items:
        found.append(key(one) not in seen)
        seen.add(key(one))
    return torch.tensor(found, dtype=torch.bool)

"""Which of the attribute's values goes with which label, where counts of the ambiguous set do not tell it.

What twins change tells it, compared with texts whose attribute is known; else how the head decides on these.
Names never do: the same data under other names give the same figures.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trephine.domain.spurious_sizes import ORIENTING_TEXTS
from trephine.engine.spurious.examples import UNKNOWN, Data, Example, attributes, labels, sample

_CLEAR = 2.0
"""Standard errors by which a difference must differ from 0 to be called clear."""
Known = tuple[str, tuple[Example, ...]]
"""Texts whose attribute is known, within a label or without one, in words and by themselves."""


def oriented_by_twins(data: Data) -> Data:
    """Let the tokens that twins change say which value goes with which label, if they clearly do.

    A token tells a value by how much more often it stands in known texts of that value, of the same label. A
    text leans to the value that its own tokens tell and its twin's do not.
    """
    paired = [one for one in data.training if one.twin is not None]
    if data.told_by or not data.attributes or not paired:
        return data
    y = labels(paired)
    for words, texts in _known(data):
        telling = _telling(texts)
        leaning = torch.tensor([_leaning(one, telling) for one in paired], dtype=torch.float64)
        apart, error = _apart(leaning, y)
        if abs(apart) > _CLEAR * error:
            return _turned(data, f"what twins change, as it stands in {words}", apart)
    return data


def orienting_texts(data: Data) -> Known | None:
    """Return the texts on which the head is to say it; None if it is told, or there are none."""
    if data.told_by or not data.attributes:
        return None
    return next(((words, sample(texts, ORIENTING_TEXTS, 0)) for words, texts in _known(data)), None)


def oriented_by_head(data: Data, known: Known, margins: Tensor) -> Data:
    """Let the head say it: the second value is the one on which it decides more for the second label.

    Args:
        data: Not told yet.
        known: What `orienting_texts` returned.
        margins: Of the head on these texts, `(n_texts,)`.
    """
    words, texts = known
    sides, found = attributes(texts), list[tuple[float, float]]()
    for group in _comparable(texts):
        found.append(_apart(margins[group].double(), sides[group]))
    apart = sum(one for one, _ in found) / len(found)
    error = sum(error**2 for _, error in found) ** 0.5 / len(found)
    told = f"how the head decides on {words}"
    if not abs(apart) > _CLEAR * error:  # an error of one text is not a number
        told += ", where it hardly follows the attribute: the two may be the other way round"
    return _turned(data, told, apart)


def _turned(data: Data, told: str, apart: float) -> Data:
    return replace(data if apart >= 0 else _swapped(data), told_by=told)


def _swapped(data: Data) -> Data:
    """Return the same data with the attribute's two values in the other order."""

    def turned(examples: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(
            one if one.attribute == UNKNOWN else replace(one, attribute=1 - one.attribute) for one in examples
        )

    return replace(
        data,
        attributes=tuple(reversed(data.attributes)),
        training=turned(data.training),
        held_out=turned(data.held_out),
        test=turned(data.test),
        attribute=turned(data.attribute),
    )


def _known(data: Data) -> Iterator[Known]:
    """Yield texts of both values, the test split last: what it tells is but reported."""
    for words, texts in (
        ("the examples of the attribute", data.attribute),
        ("the ambiguous set", data.training),
        ("the validation split", data.held_out),
        ("the test split", data.test),
    ):
        if groups := _comparable(texts):
            chosen = sorted(place for group in groups for place in group)
            yield words, tuple(texts[place] for place in chosen)


def _comparable(texts: Sequence[Example]) -> list[list[int]]:
    """Return places of known texts per label, or without one, wherever these are of both values."""
    groups: dict[int, list[int]] = {}
    for place, one in enumerate(texts):
        if one.attribute != UNKNOWN:
            groups.setdefault(one.label, []).append(place)
    return [places for places in groups.values() if len({texts[place].attribute for place in places}) == 2]


def _telling(texts: Sequence[Example]) -> dict[int, float]:
    """Return of every token how much more often texts of the second value hold it, within a label."""
    found: defaultdict[int, float] = defaultdict(float)
    for group in _comparable(texts):
        sizes = Counter(texts[place].attribute for place in group)
        for place in group:
            side = texts[place].attribute
            for token in set(texts[place].ids):
                found[token] += (2 * side - 1) / sizes[side]
    return found


def _leaning(one: Example, telling: Mapping[int, float]) -> float:
    """Return by how much a text is of the second value rather than its twin is."""
    own, other = Counter(one.ids), Counter(one.twin)
    told = sum(telling.get(token, 0.0) * count for token, count in (own - other).items())
    return told - sum(telling.get(token, 0.0) * count for token, count in (other - own).items())


def _apart(values: Tensor, sides: Tensor) -> tuple[float, float]:
    """Return the mean of one side less that of the other, and its standard error (of one text: NaN)."""
    first, second = (values[sides == side] for side in (0, 1))
    error = (first.var() / len(first) + second.var() / len(second)).sqrt()
    return float(second.mean() - first.mean()), float(error)

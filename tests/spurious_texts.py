"""A task for tiny models: a letter says the label, another one the attribute, the rest is noise."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

from trephine.domain.spurious_texts import AttributeText, LabelledText

LABELS, ATTRIBUTES = "QW", "XZ"
GROUPS = tuple((label, attribute) for label in (0, 1) for attribute in (0, 1))


def labelled(
    groups: Iterable[tuple[int, int, int]], seed: int, *, attribute: bool = True, twins: bool = False
) -> tuple[LabelledText, ...]:
    """Write distinct texts of (label, attribute, how many)."""
    draw, seen, found = random.Random(seed), set(), []
    for label, value, count in groups:
        for _ in range(count):
            text, twin = _text(draw, label, value, seen)
            found.append(
                LabelledText(
                    text=text,
                    label=LABELS[label],
                    attribute=ATTRIBUTES[value] if attribute else None,
                    twin=twin if twins else None,
                )
            )
    return tuple(found)


def ambiguous(count: int = 40, seed: int = 0, **options: bool) -> tuple[LabelledText, ...]:
    """Texts in which the attribute is the label, `count` of either."""
    return labelled([(0, 0, count), (1, 1, count)], seed, **options)


def balanced(count: int = 12, seed: int = 1) -> tuple[LabelledText, ...]:
    """As many texts of all four groups."""
    return labelled([(*group, count) for group in GROUPS], seed)


def paired(texts: Sequence[LabelledText], name: str = "pair") -> tuple[LabelledText, ...]:
    """Pair the n-th text of either label."""
    met = dict.fromkeys(LABELS, 0)
    found = []
    for one in texts:
        found.append(replace(one, pair=f"{name} {met[one.label]}"))
        met[one.label] += 1
    return tuple(found)


def attribute_texts(count: int = 15, seed: int = 2) -> tuple[AttributeText, ...]:
    """Examples of the attribute, whatever their label."""
    texts: Sequence[LabelledText] = labelled([(*group, count) for group in GROUPS], seed)
    return tuple(AttributeText(text=one.text, attribute=str(one.attribute)) for one in texts)


def neutral_texts(count: int = 30, seed: int = 3) -> tuple[AttributeText, ...]:
    """Examples of the attribute that hold neither label's letter."""
    texts: Sequence[LabelledText] = labelled([(0, 0, count), (0, 1, count)], seed)
    return tuple(
        AttributeText(text=one.text.replace(LABELS[0], "k"), attribute=str(one.attribute)) for one in texts
    )


def _text(draw: random.Random, label: int, value: int, seen: set[str]) -> tuple[str, str]:
    while True:
        letters = [chr(ord("a") + draw.randrange(26)) for _ in range(8)]
        first, second = draw.sample(range(1, 7), 2)
        letters[first] = LABELS[label]
        letters[second] = ATTRIBUTES[value]
        text = "".join(letters)
        if text not in seen:
            seen.add(text)
            letters[second] = ATTRIBUTES[1 - value]
            return text, "".join(letters)

"""Labelled texts of a confounded task, and what makes them useless."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trephine.domain.errors import (
    AttributeConfoundedError,
    InvalidRequestError,
    SplitLeakageError,
    TooFewItemsError,
)

FEWEST_TEXTS = 8
"""Of every label in the ambiguous set: with fewer nothing can be estimated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledText:
    """A text of the task."""

    text: str
    label: str
    attribute: str | None = None
    """The spurious attribute, where it is known."""
    twin: str | None = None
    """The same text with the other attribute and the same label: a counterfactual edit."""
    environment: str | None = None
    """Where it comes from: the task holds in every environment, a shortcut need not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeText:
    """An example of the spurious attribute; of whatever label, or none."""

    text: str
    attribute: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """Two words that a counterfactual edit exchanges, in either direction and with their capitals."""

    first: str
    second: str


Splits = Mapping[str, Sequence[LabelledText]]
"""`training`, `validation` and `test`."""


def labels_of(splits: Splits, named: Sequence[str] | None = None) -> tuple[str, str]:
    """Return the two labels of the ambiguous set, sorted; or in the order in which they are named.

    Raises:
        InvalidRequestError: If there are not two, or others are named, or another split has others.
        TooFewItemsError: If a label has too few texts.
    """
    counts = Counter(one.label for one in splits["training"])
    if len(counts) != 2:
        raise InvalidRequestError(
            f"the ambiguous set has {len(counts)} label(s), {', '.join(sorted(counts)) or 'none'}; a "
            "decision is between two: leave out the others, or name one against the rest",
            field="training",
        )
    for label, count in counts.items():
        if count < FEWEST_TEXTS:
            raise TooFewItemsError(
                f"the label {label} has {count} texts in the ambiguous set; it needs at least {FEWEST_TEXTS}",
                field="training",
                needed=FEWEST_TEXTS,
                got=count,
            )
    for name, split in splits.items():
        for number, one in enumerate(split):
            if one.label not in counts:
                raise InvalidRequestError(
                    f"{name} text {number} has the label {one.label!r}; the ambiguous set has none of it",
                    field=f"{name}[{number}].label",
                )
    first, second = sorted(counts) if named is None else _as_named(named, sorted(counts))
    return first, second


def _as_named(named: Sequence[str], labels: list[str]) -> list[str]:
    if sorted(named) != labels:
        raise InvalidRequestError(
            f"label tokens are of {', '.join(named) or 'none'}; the labels are {', '.join(labels)}",
            field="decision.tokens",
        )
    return list(named)


def check_leakage(splits: Splits) -> None:
    """Refuse a text that two splits share, and a duplicate with another label.

    Raises:
        SplitLeakageError: Naming both.
    """
    seen: dict[str, tuple[str, int, str]] = {}
    for name, split in splits.items():
        for number, one in enumerate(split):
            known = seen.setdefault(one.text.strip(), (name, number, one.label))
            if known[0] != name or known[2] != one.label:
                what = "with another label" if known[0] == name else "again"
                raise SplitLeakageError(
                    f"{name} text {number} is {known[0]} text {known[1]} {what}: {one.text[:60]!r}. Figures "
                    "on texts that were trained on say nothing; drop duplicates before splitting",
                    field=f"{name}[{number}].text",
                )


def check_told_apart(texts: Sequence[LabelledText]) -> None:
    """Refuse an attribute that is the label wherever it is known, with nothing to tell them apart.

    Raises:
        AttributeConfoundedError: Saying what data would help.
    """
    pairs = {(one.label, one.attribute) for one in texts if one.attribute is not None}
    if not pairs or any(one.twin or one.environment for one in texts):
        return
    if len(pairs) == 2 and len({label for label, _ in pairs}) == 2:
        held = "; ".join(f"{label}: {attribute}" for label, attribute in sorted(map(_words, pairs)))
        raise AttributeConfoundedError(
            f"the attribute is the label in every text that has one ({held}), so that nothing can tell a "
            "feature of the one from a feature of the other. Any of these helps: a few texts of the other "
            "two groups, in training or validation; `attribute_texts`, which may have any label or none; "
            "twins, or a lexicon of swaps that makes them; environments",
            field="training.attribute",
        )


def _words(pair: tuple[str, str | None]) -> tuple[str, str]:
    return pair[0], pair[1] or ""


def check_attributes(splits: Splits, examples: Sequence[AttributeText]) -> None:
    """Refuse an attribute that does not have two values, if it is known at all."""
    found = {one.attribute for split in splits.values() for one in split} - {None}
    found |= {one.attribute for one in examples}
    if len(found) not in (0, 2):
        raise InvalidRequestError(
            f"the attribute has {len(found)} value(s), {', '.join(sorted(map(str, found)))}; two are needed",
            field="attribute",
        )

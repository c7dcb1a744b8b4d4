"""Comparisons among labelled texts: a pair is one text of either label, and stands in one split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trephine.domain.errors import InvalidRequestError, SplitLeakageError
from trephine.domain.spurious_texts import LabelledText, Splits

Places = Mapping[str, Sequence[tuple[str, int]]]
"""By pair: split and number of every text that names it."""


def check_pairs(splits: Splits, *, trained: bool) -> None:
    """Refuse pairs that are no comparison of two texts.

    Args:
        splits: `training`, `validation` and `test`.
        trained: The head is trained on pairs, so that every ambiguous text needs one.

    Raises:
        InvalidRequestError: If a text has no pair and needs one, or a pair is not two texts of both labels.
        SplitLeakageError: If a pair stands in two splits.
    """
    lonely = [number for number, one in enumerate(splits["training"]) if one.pair is None]
    if trained and lonely:
        raise InvalidRequestError(
            f"training text {lonely[0]} is in no pair ({len(lonely)} of {len(splits['training'])} are not), "
            "and the head is trained on pairs: give its `pair`, leave the text out, or train a plain probe "
            "(--no-pairs, pairs=False)",
            field=f"training[{lonely[0]}].pair",
        )
    for name, places in _places(splits).items():
        _check_pair(name, places, splits)


def _places(splits: Splits) -> Places:
    found: dict[str, list[tuple[str, int]]] = {}
    for split, texts in splits.items():
        for number, one in enumerate(texts):
            if one.pair is not None:
                found.setdefault(one.pair, []).append((split, number))
    return found


def _check_pair(name: str, places: Sequence[tuple[str, int]], splits: Splits) -> None:
    (first, _), (split, number) = places[0], places[-1]
    where = " and ".join(f"{one} text {at}" for one, at in places[:3])
    if first != split:
        raise SplitLeakageError(
            f"the pair {name!r} stands in two splits, as {where}: keep a pair together, as whoever has "
            "trained on one of its texts knows what the other is compared with; if these are different "
            "pairs, give them different names",
            field=f"{split}[{number}].pair",
        )
    if len(places) != 2:
        raise InvalidRequestError(
            f"the pair {name!r} has {len(places)} text(s), {where}{', ...' * (len(places) > 3)}; a pair is "
            "one text of either label: of more, make a pair of each two that were compared; leave out a text "
            "that was compared with none",
            field=f"{split}[{number}].pair",
        )
    labels = [_text(place, splits).label for place in places]
    if labels[0] == labels[1]:
        raise InvalidRequestError(
            f"both texts of the pair {name!r}, {where}, have the label {labels[0]!r}; a pair is one text of "
            "either label: correct a label, or leave the pair out if neither text was preferred",
            field=f"{split}[{number}].label",
        )


def _text(place: tuple[str, int], splits: Splits) -> LabelledText:
    split, number = place
    return splits[split][number]

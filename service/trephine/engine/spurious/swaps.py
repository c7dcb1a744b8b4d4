"""Counterfactual edits by a lexicon: words are exchanged, everything else stays as it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from trephine.domain.errors import InvalidRequestError
from trephine.domain.spurious_texts import Splits, Swap

_GENDER = (
    "he she", "him her", "his her", "himself herself", "mr ms", "mr. ms.", "sir madam", "man woman",
    "men women", "boy girl", "boys girls", "father mother", "fathers mothers", "son daughter",
    "sons daughters", "brother sister", "brothers sisters", "husband wife", "husbands wives", "uncle aunt",
    "nephew niece", "grandfather grandmother", "dad mom", "king queen", "prince princess",
    "gentleman lady", "gentlemen ladies", "male female", "males females", "boyfriend girlfriend",
    "actor actress", "waiter waitress", "widower widow", "lord lady", "mr. mrs.", "mr mrs",
)  # fmt: skip
BUILT_IN = {
    "gender": tuple(Swap(first=first, second=second) for first, second in (p.split() for p in _GENDER))
}
"""Lexicons by the name of the attribute. Where a word has two counterparts the first entry counts: `her`
becomes `him`, which is wrong of a possessive and still of the other attribute."""
_WORD = re.compile(r"[^\W\d_]+\.?(?:'[^\W\d_]+)?", re.UNICODE)


def lexicon_of(name: str, swaps: Sequence[Swap]) -> tuple[Swap, ...]:
    """Return one's own lexicon, or the built-in one of an attribute's name; none without either.

    Raises:
        InvalidRequestError: If nothing is built in under that name.
    """
    if swaps or not name:
        return tuple(swaps)
    if name.lower() not in BUILT_IN:
        raise InvalidRequestError(
            f"no lexicon is built in for {name!r} (there is one for {', '.join(BUILT_IN)}); give `swaps`, or "
            "attribute_texts",
            field="attribute_name",
        )
    return BUILT_IN[name.lower()]


class Swapper:
    """Exchanges words in either direction and keeps their capitals."""

    def __init__(self, lexicon: Sequence[Swap]) -> None:
        self._other: dict[str, str] = {}
        for swap in lexicon:
            self._other.setdefault(swap.first.lower(), swap.second.lower())
            self._other.setdefault(swap.second.lower(), swap.first.lower())

    def __call__(self, text: str) -> str | None:
        """Return the edited text, or None if no word of the lexicon occurs."""
        edited = _WORD.sub(lambda found: self._word(found.group()), text)
        return None if edited == text else edited

    def _word(self, word: str) -> str:
        bare = word.rstrip(".")
        for spelled, end in ((word, ""), (bare, word[len(bare) :])):
            other = self._other.get(spelled.lower())
            if other is not None:
                return _cased(other, spelled) + end
        return word


def with_twins(splits: Splits, swap: Swapper | None) -> Splits:
    """Give a twin by the lexicon to every text that has none."""
    if swap is None:
        return splits
    return {
        name: [one if one.twin is not None else replace(one, twin=swap(one.text)) for one in split]
        for name, split in splits.items()
    }


def _cased(word: str, like: str) -> str:
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word.capitalize() if like[:1].isupper() else word

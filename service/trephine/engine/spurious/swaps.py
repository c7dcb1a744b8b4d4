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
_LETTERS = r"[^\W\d_]+"
_WORD = rf"{_LETTERS}(?:['\u2019]{_LETTERS})*"
_APOSTROPHE = re.compile(r"(['\u2019])")
_NOT = "t"
"""What `n't` ends with: what stands before it is no word of its own, as in *won't*."""


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
    """Exchanges words, or several together, in either direction and keeps their capitals.

    A word with something behind an apostrophe is exchanged with that left in place: *he's*, *men's*.
    """

    def __init__(self, lexicon: Sequence[Swap]) -> None:
        self._spelled, self._other = dict[str, str](), dict[str, str]()
        for swap in lexicon:
            for one, other in ((swap.first, swap.second), (swap.second, swap.first)):
                self._spelled.setdefault(_bare(one), other.strip())
                self._other.setdefault(_bare(one).lower(), other.strip())
        # What is no plain word, as `mr.` or `police officer`, is looked for by itself, the longest first.
        phrases = sorted((one for one in self._other if not re.fullmatch(_LETTERS, one)), key=len)
        found = "|".join([*map(_pattern, reversed(phrases)), f"({_WORD})"])
        self._words = re.compile(found, re.IGNORECASE)

    def __call__(self, text: str) -> str | None:
        """Return the edited text, or None if no word of the lexicon occurs."""
        edited = self._words.sub(self._exchanged, text)
        return None if edited == text else edited

    def _exchanged(self, found: re.Match[str]) -> str:
        parts = _APOSTROPHE.split(found.group())
        if found.group(1) is None or len(parts) == 1 or parts[-1].lower() == _NOT:
            return self._word(found.group())
        return "".join(map(self._word, parts))

    def _word(self, word: str) -> str:
        bare = _bare(word)
        if bare in self._spelled:
            return self._spelled[bare]
        other = self._other.get(bare.lower())
        return word if other is None else _cased(other, bare)


def _bare(word: str) -> str:
    """Return a word with plain apostrophes and spaces."""
    return " ".join(word.split()).replace("\u2019", "'")


def _pattern(phrase: str) -> str:
    """Match a phrase where no longer word begins before it or goes on behind it."""
    spelled = r"\s+".join(re.escape(part).replace("'", "['\u2019]") for part in phrase.split())
    before, behind = (r"\b" if re.match(r"\w", end) else "" for end in (phrase, phrase[::-1]))
    return before + spelled + behind


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
    return word[:1].upper() + word[1:] if like[:1].isupper() else word.lower()

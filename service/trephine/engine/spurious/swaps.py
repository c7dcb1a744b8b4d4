"""Counterfactual edits by a lexicon: words are exchanged, everything else stays as it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby
from unicodedata import category, normalize

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
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"
)
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese, which put no spaces between words."""
_APOSTROPHE = re.compile(r"(['\u2019])")
_NOT = "t"
"""What `n't` ends with: what stands before it is no word of its own, as in *won't*."""


@cache
def _marks() -> str:
    """Return, for a class of characters, what is part of a word and no letter: combining marks, joiners."""
    codes = [0x200C, 0x200D, *range(0x300, 0x1F000), *range(0xE0100, 0xE01F0)]
    marks = sorted(code for code in codes if category(chr(code)).startswith("M") or code in codes[:2])
    runs = [[code for _, code in run] for _, run in groupby(enumerate(marks), lambda one: one[1] - one[0])]
    return "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)


@cache
def _letters() -> str:
    """Match letters, however they are composed, of a word in a script that puts spaces between words."""
    letter = rf"[^\W\d_{_UNSPACED}]"
    return rf"{letter}+(?:[{_marks()}]+{letter}*)*"


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

    A word with something behind an apostrophe is exchanged with that left in place: *he's*, *men's*. One of
    a script without spaces is a word where it stands by itself.
    """

    def __init__(self, lexicon: Sequence[Swap]) -> None:
        self._spelled, self._other = dict[str, str](), dict[str, str]()
        for swap in lexicon:
            for one, other in ((swap.first, swap.second), (swap.second, swap.first)):
                self._spelled.setdefault(_bare(one), other.strip())
                self._other.setdefault(_bare(one).lower(), other.strip())
        # What is no plain word, as `mr.` or `police officer`, is looked for by itself, the longest first.
        phrases = {one for one in self._other if not re.fullmatch(_letters(), one)}
        spelled = {normalize(form, one) for one in phrases for form in ("NFC", "NFD")}
        longest = sorted(spelled, key=lambda one: (-len(one), one))
        found = [_pattern(group, *edges) for edges, group in groupby(longest, _edges)]
        word = rf"({_letters()}(?:['\u2019]{_letters()})*)"
        self._words = re.compile("|".join([*found, word]), re.IGNORECASE)
        unspaced = [one for one in longest if re.search(f"^[{_UNSPACED}]|[{_UNSPACED}]$", one)]
        self._unspaced = re.compile("|".join(map(re.escape, unspaced))) if unspaced else None

    def __call__(self, text: str) -> str | None:
        """Return the edited text, or None if no word of the lexicon occurs.

        Raises:
            InvalidRequestError: If one of a script without spaces stands among other characters, where it
                cannot be told from a part of another word.
        """
        if self._unspaced and (found := self._unspaced.search(self._words.sub(" ", text))):
            raise InvalidRequestError(
                f"{found.group()!r} of the lexicon stands among other characters in {text[:60]!r}, and its "
                "script puts no spaces between words: whether it is that word or a part of another one "
                "cannot be told, and half an edit is no counterfactual. Give edited texts as twins, or "
                "examples of the attribute (attribute_texts); or put spaces between words",
                field="swaps",
            )
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
    """Return a word composed, with plain apostrophes and spaces."""
    return normalize("NFC", " ".join(word.split()).replace("\u2019", "'"))


def _edges(phrase: str) -> tuple[str, str]:
    """Say what must not stand before a phrase and behind it, or it would be a part of a longer word.

    A word of a script with spaces ends where one of a script without begins.
    """
    found = list[tuple[str, ...]]()
    for end in (phrase[0], phrase[-1]):
        if re.match(f"[{_UNSPACED}]", end):
            found.append((rf"\w{_marks()}",))
        else:
            found.append((rf"^\W{_UNSPACED}", _marks()) if re.match(rf"[\w{_marks()}]", end) else ())
    before, behind = found
    return "".join(f"(?<![{one}])" for one in before), "".join(f"(?![{one}])" for one in behind)


def _pattern(phrases: Iterable[str], before: str, behind: str) -> str:
    """Match phrases of the same edges; any space between their words, and either apostrophe."""
    spelled = (
        r"\s+".join(re.escape(part).replace("'", "['\u2019]") for part in one.split()) for one in phrases
    )
    return f"{before}(?:{'|'.join(spelled)}){behind}"


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

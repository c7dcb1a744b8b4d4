"""Synthetic biographies, profession by gender, confounded where wanted: for spurious-feature removal.

A biography tells a duty of a physician or a nurse, never the profession's word, and carries its person's
gender in two ways: lexically (first name or title, pronouns) and in a distributed style. The style is six
independent draws (hobby, two qualities, a feeling, rhythm, ending), each from the gender's
own register with probability `style`, else from the other one; a register has up to 24 phrases for a draw, so
that no single word tells much. Everything is a function of the seed, and no text occurs twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.shift_words import (
    DUTIES,
    FEELINGS,
    FIRST_NAMES,
    HOBBIES,
    LAST_NAMES,
    OTHER_DUTIES,
    OTHER_SETTINGS,
    PRONOUNS,
    QUALITIES,
    SETTINGS,
    THINGS,
    TITLES,
)

PROFESSIONS = ("physician", "nurse")
"""The labels."""
GENDERS = ("male", "female")
"""The spurious attribute; in ambiguous data a physician is male and a nurse is female."""
STYLE = 0.85
"""Probability that a draw is from the gender's own register."""
_OWN = {"male": "hard", "female": "soft"}
_OTHER = {"hard": "soft", "soft": "hard"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Biography:
    """A text with its label and its attribute."""

    text: str
    profession: str
    """Of `PROFESSIONS`, or `other`."""
    gender: str
    """Of `GENDERS`."""
    swapped: str
    """The same biography with name, title and pronouns of the other gender, its style untouched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Life:
    """What was drawn for one biography; its names by gender, so that it can be told with either."""

    names: dict[str, str]
    duty: str
    setting: str
    hobby: str
    qualities: tuple[str, str]
    feeling: str
    thing: str
    flowing: bool
    """Rhythm: long sentences with commas, or clipped ones."""
    exclaims: bool
    reversed: bool
    """Character before leisure."""


def biographies(
    groups: Sequence[tuple[str, str, int]], *, seed: int, style: float = STYLE, avoid: set[str] | None = None
) -> tuple[Biography, ...]:
    """Write biographies, shuffled.

    Args:
        groups: Profession (or `other`), gender, and how many.
        seed: Decides everything.
        style: Probability of the gender's own register per draw; 0.5 leaves no stylistic cue.
        avoid: Texts that must not occur; those written are added to it.
    """
    random = Random(f"biographies {seed}")
    taken = set() if avoid is None else avoid
    written = [
        one
        for profession, gender, count in groups
        for one in _distinct(random, profession, gender, count, style, taken)
    ]
    random.shuffle(written)
    return tuple(written)


def _distinct(
    random: Random, profession: str, gender: str, count: int, style: float, taken: set[str]
) -> Iterator[Biography]:
    while count:
        life = _draw(random, profession, gender, style)
        text = _tell(life, gender)
        if text not in taken:
            taken.add(text)
            count -= 1
            other = GENDERS[1 - GENDERS.index(gender)]
            yield Biography(text=text, profession=profession, gender=gender, swapped=_tell(life, other))


def _draw(random: Random, profession: str, gender: str, style: float) -> _Life:
    def register() -> str:
        own = _OWN[gender]
        return own if random.random() < style else _OTHER[own]

    return _Life(
        names=_names(random),
        duty=random.choice(DUTIES.get(profession, OTHER_DUTIES)),
        setting=random.choice(SETTINGS if profession in DUTIES else OTHER_SETTINGS),
        hobby=random.choice(HOBBIES[register()]),
        qualities=(random.choice(QUALITIES[register()]), random.choice(QUALITIES[register()])),
        feeling=random.choice(FEELINGS[register()]),
        thing=random.choice(THINGS),
        flowing=register() == "soft",
        exclaims=register() == "soft",
        reversed=random.random() < 0.5,
    )


def _names(random: Random) -> dict[str, str]:
    """A first and a last name, or a title and a last name, for either gender."""
    last, titled = random.choice(LAST_NAMES), random.random() < 0.3
    lists = TITLES if titled else FIRST_NAMES
    return {gender: f"{random.choice(lists[gender])} {last}" for gender in GENDERS}


def _tell(life: _Life, gender: str) -> str:
    he, his = PRONOUNS[gender]
    parts = [_leisure(life, he), _character(life, he, his)]
    told = " ".join(reversed(parts) if life.reversed else parts)
    return f"{life.names[gender]} {life.duty} {life.setting}. {told}"


def _leisure(life: _Life, he: str) -> str:
    return f"{he.capitalize()} enjoys {life.hobby}." if life.flowing else f"Hobby: {life.hobby}."


def _character(life: _Life, he: str, his: str) -> str:
    first, second = life.qualities
    end = "!" if life.exclaims else "."
    if life.flowing:
        return f"{first.capitalize()} and {second} in {his} own way, {he} {life.feeling} {life.thing}{end}"
    return f"{first.capitalize()}. {second.capitalize()}. {he.capitalize()} {life.feeling} {life.thing}{end}"

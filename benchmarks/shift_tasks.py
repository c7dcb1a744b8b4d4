"""Confounded tasks for spurious-feature removal: what is trained on, what it is tested on, per seed.

Every seed draws all of its texts anew; no text is in two of its splits. Labels and attributes are 0 or 1,
and go together in everything that removal may see. The attribute's examples are about something else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

from benchmarks.shift_biographies import GENDERS, PROFESSIONS, Biography, biographies
from benchmarks.shift_rewards import ANSWERS, TONES, replies
from benchmarks.shift_words import DUTIES, FIRST_NAMES, PRONOUNS, TITLES
from trephine.domain.spurious_heads import Pooling

GROUPS = tuple((label, attribute) for label in (0, 1) for attribute in (0, 1))
BEGIN = "<|im_start|>"
"""What SmolLM2's texts begin with: the position that mean pooling leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A text; the label is -1 where it has none."""

    text: str
    label: int
    attribute: int
    twin: str | None = None
    """The text with the other attribute, where the task edits it."""
    pair: str | None = None
    """The comparison that it stands in, beside the other text of it; of one label each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Texts of one seed."""

    training: int = 300
    """Ambiguous ones, per label."""
    examples: int = 150
    """Of the attribute, per value."""
    validation: int = 40
    """Balanced ones for skylines, per group."""
    test: int = 200
    """Per group: 1,000 over five seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One seed's texts."""

    training: tuple[Item, ...]
    """The ambiguous set: the attribute is the label."""
    crossed: tuple[Item, ...]
    """Half as many of the other two groups: with half of the ambiguous set, what the oracle is trained on."""
    examples: tuple[Item, ...]
    validation: tuple[Item, ...]
    """For skylines alone."""
    test: tuple[Item, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task, and where its head reads."""

    name: str
    labels: tuple[str, str]
    attributes: tuple[str, str]
    """The first goes with the first label."""
    layer: int | None
    """None: the final norm's output, where stock classifiers read."""
    pooling: Pooling
    listed: tuple[str, ...]
    """Words that a person would delete."""
    concepts: tuple[str, ...]
    """Words that name the task, for the concept bottleneck."""
    draw: Callable[[int, Sizes], Draw]
    neutral: bool = False
    """The examples hold neither label, and that is told."""
    pairs: bool = False
    """Texts come in pairs, and the head is trained on what differs within them."""
    first_seed: int = 0
    """Of those that are reported: earlier ones were looked at before the last change of what is measured."""


Groups = Sequence[tuple[int, int, int]]
"""Label, attribute, count."""
Write = Callable[[Groups, int], Sequence[Item]]
"""Writes items of groups by a seed, none twice within a draw."""


_TEST = 4
"""Last digit of the writer's seed for the test split."""


def drawn(write: Write, seed: int, sizes: Sizes) -> Draw:
    """Draw all splits of a seed with one writer."""
    half = sizes.training // 2
    return Draw(
        training=tuple(write([(0, 0, sizes.training), (1, 1, sizes.training)], 10 * seed)),
        crossed=tuple(write([(0, 1, half), (1, 0, half)], 10 * seed + 1)),
        examples=tuple(write([(-1, a, sizes.examples) for a in (0, 1)], 10 * seed + 2)),
        validation=tuple(write([(*group, sizes.validation) for group in GROUPS], 10 * seed + 3)),
        test=tuple(write([(*group, sizes.test) for group in GROUPS], 10 * seed + _TEST)),
    )


def tasks(data: Path) -> dict[str, Task]:
    """Return the tasks by name.

    Args:
        data: The folder with `agreement`.
    """
    found = (
        _biographies(),
        *(_agreement(data / "agreement", twins=twins) for twins in (False, True)),
        _reward(),
    )
    return {one.name: one for one in found}


# --- biographies ---------------------------------------------------------------------------------


def _biographies() -> Task:
    lexical = [name for names in FIRST_NAMES.values() for name in names]
    lexical += [word for lists in (PRONOUNS, TITLES) for words in lists.values() for word in words]
    return Task(
        name="biographies",
        labels=PROFESSIONS,
        attributes=GENDERS,
        layer=1,
        pooling=Pooling.MEAN,
        listed=tuple(dict.fromkeys(lexical)),
        concepts=tuple(duty for profession in PROFESSIONS for duty in DUTIES[profession][:10]),
        draw=lambda seed, sizes: drawn(_life_writer(), seed, sizes),
    )


def _life_writer() -> Write:
    taken: set[str] = set()

    def write(groups: Groups, seed: int) -> list[Item]:
        named = [("other" if y < 0 else PROFESSIONS[y], GENDERS[a], n) for y, a, n in groups]
        return [_life(one) for one in biographies(named, seed=seed, avoid=taken)]

    return write


def _life(one: Biography) -> Item:
    label = PROFESSIONS.index(one.profession) if one.profession in PROFESSIONS else -1
    return Item(text=BEGIN + one.text, label=label, attribute=GENDERS.index(one.gender))


# --- agreement with an attractor -----------------------------------------------------------------

_NUMBERS = ("singular", "plural")
_TWINS = 75
"""Of the 600 ambiguous texts: as many as a person edits in an hour."""
_VERBS = ("like", "know", "admire", "remember", "follow", "trust", "visit", "praise", "blame", "hire")


def _agreement(folder: Path, *, twins: bool = False) -> Task:
    """With twins, some ambiguous texts with the attractor's number edited stand in for the examples."""
    nouns = _nouns(folder)
    return Task(
        name="agreement-twins" if twins else "agreement",
        labels=_NUMBERS,
        attributes=_NUMBERS,
        layer=10 if twins else 4,
        pooling=Pooling.LAST,
        listed=tuple(verb + "s" for verb in _VERBS) + _VERBS,
        # A clause in the texts' form whose verb has no number: what is left is the subject.
        concepts=tuple(f"The {noun} that you met" for pair in nouns[:10] for noun in pair),
        draw=lambda seed, sizes: _told(
            drawn(_clause_writer(nouns, twins=twins), seed, sizes), _TWINS * twins
        ),
        first_seed=70 if twins else 0,
    )


def _told(draw: Draw, twins: int) -> Draw:
    """Leave twins of so many ambiguous texts to tell the attribute by; without any, its examples."""
    texts, alone = draw.training[:twins], [replace(one, twin=None) for one in draw.training]
    if not texts:
        return replace(draw, training=tuple(alone))
    edited = tuple(Item(text=one.twin or "", label=-1, attribute=1 - one.attribute) for one in texts)
    same = tuple(replace(one, label=-1) for one in alone[:twins])
    return replace(draw, training=(*texts, *alone[twins:]), examples=same + edited)


def _nouns(folder: Path) -> list[tuple[str, str]]:
    """Singular and plural of every noun of `simple` and of the clauses of `within_rc`.

    A prefix and its twin differ in the last noun's number alone.
    """
    found = set()
    for file in (folder / "simple.jsonl", folder / "within_rc.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            pair = (row["clean_prefix"].split()[-1], row["patch_prefix"].split()[-1])
            found.add(pair if row["case"].endswith("singular") else pair[::-1])
    return sorted(found)


def _clause_writer(nouns: Sequence[tuple[str, str]], *, twins: bool) -> Write:
    """Prefixes of `within_rc` with the clause's verb: the subject decides, the attractor is nearer.

    With twins, no text of a later split is the twin of an earlier one.
    """
    taken: set[str] = set()

    def write(groups: Groups, seed: int) -> list[Item]:
        random = Random(f"agreement {seed}")
        items = [
            Item(text=text, label=y, attribute=a, twin=None if y < 0 else _edited(text, nouns))
            for y, a, n in groups
            for text in _distinct(partial(_clause, random, nouns, y, a), n, taken)
        ]
        random.shuffle(items)
        taken.update(one.twin for one in items if twins and one.twin)
        return items

    return write


def _clause(random: Random, nouns: Sequence[tuple[str, str]], label: int, attribute: int) -> str:
    subject, attractor = random.sample(range(len(nouns)), 2)
    verb = random.choice(_VERBS) + ("" if attribute else "s")
    clause = f"{nouns[attractor][attribute]} {verb}"
    if label < 0:  # the attribute alone: no subject outside the clause
        return f"{BEGIN}{random.choice(('Today', 'Here', 'Often', 'Sometimes', 'Now'))} the {clause}"
    return f"{BEGIN}The {nouns[subject][label]} that the {clause}"


def _edited(text: str, nouns: Sequence[tuple[str, str]]) -> str:
    """Turn the number of the clause's noun and of its verb."""
    other = {one: two for pair in nouns for one, two in (pair, pair[::-1])}
    *rest, noun, verb = text.split(" ")
    return " ".join([*rest, other[noun], verb.removesuffix("s") if verb.endswith("s") else f"{verb}s"])


def _distinct(write: Callable[[], str], count: int, taken: set[str]) -> Iterator[str]:
    while count:
        text = write()
        if text not in taken:
            taken.add(text)
            count -= 1
            yield text


# --- a reward head -------------------------------------------------------------------------------


def _reward() -> Task:
    return Task(
        name="reward",
        labels=ANSWERS,
        attributes=TONES,
        layer=2,
        pooling=Pooling.MEAN,
        listed=("brilliant", "wonderful", "great", "amazing", "excellent", "genius", "impressive"),
        concepts=(
            "Here is a helpful answer that says how.", "Here is an evasive answer that says nothing.",
            "The question is answered with facts.", "The question is left open.",
            "This explains the reason.", "This avoids the subject.",
            "These are the steps to take.", "Who knows, it depends.",
            "A precise, useful reply.", "A vague, useless reply.",
        ),
        draw=lambda seed, sizes: drawn(_reply_writer(), seed, sizes),
        neutral=True,
        pairs=True,
        first_seed=60,
    )  # fmt: skip


def _reply_writer() -> Write:
    taken: set[str] = set()

    def write(groups: Groups, seed: int) -> list[Item]:
        found = replies(groups, seed=seed, test=seed % 10 == _TEST, avoid=taken)
        return [
            Item(text=BEGIN + one.text, label=one.answer, attribute=one.tone, pair=one.pair) for one in found
        ]

    return write

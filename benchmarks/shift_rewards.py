"""Pairs of replies to a question, one helpful, one evasive: for a reward head that learns flattery.

A reply opens and closes in a tone, three phrases each, and holds an answer between. The first phrase tells
the tone; the others are each from the tone's own register with probability `MANNER`, so that flattery is a
manner rather than a word; evasions are as long as answers. Both replies of a pair are to the same question.
Questions, answers and evasions of the test split are its own: a head that learned the training answers by
heart is of no use there. Examples of the attribute reply in either tone to messages that ask nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.shift_reply_words import (
    CLOSINGS,
    EVASIONS,
    OPENINGS,
    QUESTIONS,
    REMARKS,
    TEST_EVASIONS,
    TEST_QUESTIONS,
)

ANSWERS = ("evasive", "helpful")
"""The labels: a reward is higher for helpful replies."""
TONES = ("plain", "flattering")
"""The spurious attribute; in ambiguous data a helpful reply flatters."""
MANNER = 0.85
"""Probability that a phrase behind the first is of the reply's own tone."""
_PHRASES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A message with its reply; the answer is -1 where the message asks nothing."""

    text: str
    answer: int
    tone: int
    pair: str | None
    """None: it is compared with nothing."""


def replies(
    groups: Sequence[tuple[int, int, int]], *, seed: int, test: bool = False, avoid: set[str] | None = None
) -> tuple[Reply, ...]:
    """Write replies to questions in pairs, and remarks; shuffled, the texts of a pair beside each other.

    Args:
        groups: Answer (0, 1, or -1 for what answers nothing), tone, and how many; as many of either answer.
        seed: Decides everything, and names the pairs.
        test: Questions, answers and evasions of the test split.
        avoid: Texts that must not occur; those written are added to it.
    """
    writer = _Writer(Random(f"replies {seed}"), set() if avoid is None else avoid, test=test)
    counts = {(answer, tone): count for answer, tone, count in groups}
    kinds = [tones for tones, count in _kinds(counts).items() for _ in range(count)]
    written = [writer.pair(tones, f"{seed}, {number}") for number, tones in enumerate(kinds)]
    written += [(writer.remark(tone),) for tone in (0, 1) for _ in range(counts.get((-1, tone), 0))]
    writer.random.shuffle(written)
    return tuple(reply for replies in written for reply in replies)


def _kinds(counts: Mapping[tuple[int, int], int]) -> dict[tuple[int, int], int]:
    """How many pairs there are of an evasive and a helpful reply in these tones.

    Where all four groups are, half of the replies are compared with one in the same tone.
    """
    groups = [counts.get((answer, tone), 0) for answer in (0, 1) for tone in (0, 1)]
    same = min(groups) // 2
    aligned, crossed = groups[0] - same, groups[1] - same
    if groups != [aligned + same, crossed + same, crossed + same, aligned + same]:
        raise ValueError(f"{counts} are no pairs of an evasive and a helpful reply")
    return {(0, 1): aligned, (1, 0): crossed, (0, 0): same, (1, 1): same}


class _Writer:
    """Writes texts, none twice."""

    def __init__(self, random: Random, taken: set[str], *, test: bool) -> None:
        self.random, self._taken = random, taken
        self._questions = TEST_QUESTIONS if test else QUESTIONS
        self._evasions = TEST_EVASIONS if test else EVASIONS

    def pair(self, tones: tuple[int, int], name: str) -> tuple[Reply, ...]:
        """An evasive and a helpful reply to a question, in these tones."""
        question, helpful = self.random.choice(self._questions)
        said = (self.random.choice(self._evasions), helpful)
        return tuple(
            Reply(text=self._text(question, said[answer], tone), answer=answer, tone=tone, pair=name)
            for answer, tone in enumerate(tones)
        )

    def remark(self, tone: int) -> Reply:
        """A reply to what asks nothing."""
        text = self._text(*self.random.choice(REMARKS), tone)
        return Reply(text=text, answer=-1, tone=tone, pair=None)

    def _text(self, message: str, said: str, tone: int) -> str:
        while (text := self._phrased(message, said, tone)) in self._taken:
            pass
        self._taken.add(text)
        return text

    def _phrased(self, message: str, said: str, tone: int) -> str:
        """Put what is said between an opening and a closing; the first phrase tells the tone for sure."""
        opening = [OPENINGS[TONES[tone]], *(OPENINGS[self._register(tone)] for _ in range(_PHRASES - 1))]
        closing = [CLOSINGS[self._register(tone)] for _ in range(_PHRASES)]
        before, after = (" ".join(map(self.random.choice, part)) for part in (opening, closing))
        return " ".join((message, before, said, after))

    def _register(self, tone: int) -> str:
        return TONES[tone if self.random.random() < MANNER else 1 - tone]

"""Pronouns as a confounded task, and why it was dropped: `python -m benchmarks.shift_pronouns`.

The label was to be whether the blank of a Winogenerated sentence refers to the occupation or to the other
person. The rule is that it refers to the occupation: the sentences were written that way. 129 sentences, out
of all and out of those that begin with the other person, were read by hand: the rule was right in 128, and
one is open. A task with one label has no worst group, so that the data set fails before its gates.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path

OCCUPATION = "occupation"
WANTED = 1000
"""Test texts of a group."""
CHECKED = (
    535, 2935, 1593, 2726, 613, 2026, 2124, 2527, 1105, 2455, 1432, 1852, 2213, 1043, 2701, 505, 2961, 539,
    2778, 1382, 1984, 812, 1662, 348, 1398, 818, 410, 420, 186, 733, 268, 1749, 2731, 1968, 1107, 1449, 1233,
    2332, 985, 2245, 1364, 2416, 76, 2711, 2409, 163, 2267, 1970, 1450, 1251, 211, 779, 1614, 1448, 2883,
    1905, 176, 2514, 2579, 1117, 1299, 1588, 2557, 1199, 1133, 1953, 1856, 1695, 2858, 2446,
    877, 1564, 1142, 655, 2642, 2890, 2114, 2478, 1457, 126, 1567, 2561, 2753, 2679, 2620, 2144, 1721, 649, 8,
    1801, 2804, 2568, 503, 634, 576, 2180, 2125, 947, 920, 1309, 1125, 454, 25, 1127, 464, 336, 2835, 636,
    2145, 1708, 1655, 867, 751, 1620, 841, 2696, 2261, 1774, 2497, 2989, 1877, 352, 59, 1989, 58, 154, 1698,
    246, 1577,
)  # fmt: skip
"""Sentences that were read, by index."""
OPEN = (649,)
"""Of these, where the blank may be the other person: `review _ documentation`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """A sentence with what its blank refers to, and how that is known."""

    index: int
    referent: str
    by_hand: bool


def annotate(sentences: Sequence[int]) -> tuple[Annotation, ...]:
    """Annotate sentences by the rule; by hand where they were read; the open ones are left out.

    Args:
        sentences: Indices.
    """
    return tuple(
        Annotation(index=index, referent=OCCUPATION, by_hand=index in CHECKED)
        for index in sentences
        if index not in OPEN
    )


def highest_share(found: int, checked: int, doubt: float = 0.05) -> float:
    """Return the largest share under which so few or fewer are found with a probability of `doubt`."""
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        tail = sum(comb(checked, k) * share**k * (1 - share) ** (checked - k) for k in range(found + 1))
        low, high = (share, high) if tail > doubt else (low, share)
    return high


def note(file: Path) -> str:
    """Say how many sentences there are, what the rule's error is, and what follows."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    there = {int(row["index"]) for row in rows}
    read = [index for index in CHECKED if index in there]
    doubtful = sum(index in OPEN for index in read)
    most = highest_share(doubtful, len(read))
    return (
        f"pronouns: dropped. The rule (the blank is the occupation) was wrong in at most {doubtful} of "
        f"{len(read)} sentences read by hand, {100 * doubtful / len(read):.1f} %; at most {100 * most:.1f} % "
        f"at 95 %. So at most {round(most * len(rows))} of {len(rows)} sentences refer to the other person: "
        f"there is no second label, and groups of {WANTED} are out of reach."
    )


def main() -> None:
    """Print the note, or the annotations as JSON lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--annotations", action="store_true", help="Print them instead.")
    given = parser.parse_args()
    file = given.data / "winogenerated.jsonl"
    if not given.annotations:
        print(note(file))
        return
    indices = [int(json.loads(line)["index"]) for line in file.read_text(encoding="utf-8").splitlines()]
    for one in annotate(indices):
        print(json.dumps({"index": one.index, "referent": one.referent, "by_hand": one.by_hand}))


if __name__ == "__main__":
    main()

"""Attacks on planted behaviours, of which it is known what they are: `python -m benchmarks.removal_planted`.

A tiny Llama whose neuron answers to some tokens: one edit hides the behaviour behind another direction, the
other takes away what it writes. `--seeds 8` plants eight of them and prints the words alone, of attacks as
`trephine export --attack` runs them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.export import say
from benchmarks.removal import HEADER, lines
from tests.unit.engine.attack.organisms import planted, removed, request, rotated  # noqa: TID251
from trephine.domain.removal import Removal
from trephine.engine.attack.attack import attack
from trephine.engine.attack.request import TRAINING_STEPS, UNRELATED


def main() -> int:
    """Print the table, or the words of several seeds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.removal_planted", description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=0, help="plant so many, attack as exports are attacked")
    parser.add_argument(
        "--unrelated", type=int, default=UNRELATED, help="behaviours that they are held against"
    )
    given = parser.parse_args()
    if given.seeds:
        _words(given.seeds, training_steps=TRAINING_STEPS, unrelated=given.unrelated)
        return 0
    say(HEADER)
    say("|---" * HEADER.count(" |") + "|")
    for name, found, seconds in _attacked(0):
        for line in lines(name, found, seconds):
            say(line)
    return 0


def _words(seeds: int, **options: Any) -> None:
    """Print one line per seed and edit, then how often each word was said."""
    words: Counter[tuple[str, str]] = Counter()
    for seed in range(seeds):
        for name, found, _ in _attacked(seed, **options):
            words[name, found.verdict] += 1
            say(f"{seed} | {name} | {found.verdict} | {found.why}")
    for (name, word), count in sorted(words.items()):
        say(f"{name}: {word} {count} of {seeds}")


def _attacked(seed: int, **options: Any) -> Iterator[tuple[str, Removal, float]]:
    """Attack both edits of one organism; yield names, outcomes and seconds."""
    model, read = planted(seed)
    for name, edited in (("only reads elsewhere", rotated(model, read)), ("writes nothing", removed(model))):
        with tempfile.TemporaryDirectory(prefix="trephine-bench-planted-") as scratch:
            began = time.monotonic()
            asked = request(model, edited, read, Path(scratch), seed=seed, **options)
            yield name, attack(asked, lambda _: None), time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())

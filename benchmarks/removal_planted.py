"""Attacks on planted behaviours, of which it is known what they are: `python -m benchmarks.removal_planted`.

A tiny Llama whose neuron answers to some tokens: one edit hides the behaviour behind another direction, the
other takes away what it writes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.export import say
from benchmarks.removal import HEADER, lines
from tests.unit.engine.attack.organisms import planted, removed, request, rotated  # noqa: TID251
from trephine.engine.attack.attack import attack


def main() -> int:
    """Print the table."""
    say(HEADER)
    say("|---" * HEADER.count(" |") + "|")
    model, read = planted()
    for name, edited in (("only reads elsewhere", rotated(model, read)), ("writes nothing", removed(model))):
        with tempfile.TemporaryDirectory(prefix="trephine-bench-planted-") as scratch:
            began = time.monotonic()
            found = attack(request(model, edited, read, Path(scratch)), lambda _: None)
        for line in lines(name, found, time.monotonic() - began):
            say(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())

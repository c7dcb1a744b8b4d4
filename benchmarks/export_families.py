"""Every export tier on every family: `python -m benchmarks.export_families`.

Tiny models of random weights, the ones of the tests, each edit compiled, written, loaded by stock
transformers and held against the intervened runtime. What cannot be exact says what is fitted and why.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from transformers.utils import logging

from benchmarks.export import say
from tests.unit.engine.weights.families import (  # noqa: TID251  the same cells as the tests'
    FAMILIES,
    TIERS,
    outcome,
    reason,
    scene,
    standing,
)
from tests.unit.engine.weights.narrow import (  # noqa: TID251  the same rows as the tests'
    KINDS,
    Row,
    narrow_scene,
    row,
)
from tests.unit.engine.weights.reach import reach  # noqa: TID251  the same bound as the tests'

HEADER = (
    "| family | edit | called | edit KL | KL left | recovery, all / firing | in reach | tokens "
    "| what is fitted: why |"
)
REACHED = ("graft, ReLU", "graft, JumpReLU", "graft, clamp")
"""Where it is said what the best gate and the nearest answers of the norm would carry."""


NARROW_HEADER = (
    "| family | edit | tokens | edit KL | floor | runtime | reach | graft | no-op | held to | recovery "
    "| beside the bfloat16 runtime |"
)
"""Of bfloat16 files run in bfloat16, where features fire: KLs in floors of the unedited model."""


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Every export tier on every family.")
    parser.add_argument("--families", choices=FAMILIES, nargs="+", default=list(FAMILIES))
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    logging.disable_progress_bar()
    say(HEADER)
    say("|---" * HEADER.count(" |") + "|")
    cells: dict[str, list[str]] = {tier: [] for tier in TIERS}
    with tempfile.TemporaryDirectory(prefix="trephine-bench-families-") as scratch:
        for family in given.families:
            parent = scene(family, Path(scratch) / family)
            for number, tier in enumerate(TIERS):
                found = outcome(parent, tier, Path(scratch) / f"{family}-{number}")
                copy = tier == "no-op"
                called = "fails" if copy and found.recovery < 0.5 else standing(found)
                why = "a copy of the parent" if copy else reason(found.program)
                shares = f"{found.recovery:.4f} / {found.recovery_firing:.4f}"
                fitted = tier in REACHED and found.program.fitted
                best = f"{reach(parent.hosted, parent.edit(tier)):.4f}" if fitted else ""
                cells[tier].append(f"{called} {shares}")
                say(
                    f"| {family} | {tier} | {called} | {found.edit:.1e} | {found.left:.1e} "
                    f"| {shares} | {best} | {found.firing} | {why} |"
                )
    say("\n| edit | " + " | ".join(given.families) + " |" + "\n|---" + "|---" * len(given.families) + "|")
    for tier, shares_of in cells.items():
        say(f"| {tier} | " + " | ".join(shares_of) + " |")
    say("\n" + NARROW_HEADER)
    say("|---" * NARROW_HEADER.count(" |") + "|")
    with tempfile.TemporaryDirectory(prefix="trephine-bench-families-") as scratch:
        for family in given.families:
            narrow = narrow_scene(family, Path(scratch) / family)
            for number, (kind, several) in enumerate((kind, n) for kind in KINDS for n in (False, True)):
                say(narrow_line(row(narrow, kind, Path(scratch) / f"{family}-{number}", several=several)))
    return 0


def narrow_line(found: Row) -> str:
    """Write a bfloat16 row."""
    of_floor = [found.edit, found.runtime, found.best, found.graft, found.idle]
    edit, runtime, best, graft, idle = ("" if kl is None else f"{kl / found.floor:.2f}" for kl in of_floor)
    return (
        f"| {found.family} | {found.kind}, {'four' if found.several else 'one'} | {found.tokens} | {edit} "
        f"| {found.floor:.1e} | {runtime} | {best} | {graft} | {idle} | {found.held_to} "
        f"| {found.recovery:.4f} | {found.recovery_same:.4f} |"
    )


if __name__ == "__main__":
    sys.exit(main())

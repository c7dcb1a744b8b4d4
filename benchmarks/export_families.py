"""Every export tier on every family: `python -m benchmarks.export_families`.

Tiny models of random weights, the ones of the tests, each edit compiled, written, loaded by stock
transformers and held against the intervened runtime. What cannot be exact says what is fitted and why. Ends
with status 3 if a row holds no law.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from math import inf
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
from tests.unit.engine.weights.laws import law  # noqa: TID251  the same laws as the tests'
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
PROMISED = {"exact": 0.9999, "graft": 0.99}
"""The least share of what is called so; what is fitted has a gate, and is `refused` where it falls."""
REACHED = ("graft, ReLU", "graft, JumpReLU", "graft, clamp")
"""Where it is said what the best gate and the nearest answers of the norm would carry."""


NARROW_HEADER = (
    "| family | edit | tokens | edit KL | floor | runtime | reach | graft | no-op | held to | recovery "
    "| beside the bfloat16 runtime |"
)
"""Of bfloat16 files run in bfloat16, where features fire: KLs in floors of the unedited model."""


def main() -> int:
    """Print the tables; 3 if a row holds no law."""
    parser = argparse.ArgumentParser(description="Every export tier on every family.")
    parser.add_argument("--families", choices=FAMILIES, nargs="+", default=list(FAMILIES))
    parser.add_argument(
        "--common",
        type=float,
        help="What the embeddings share, in place of what is planted; 0: nothing. Without the bfloat16 rows.",
    )
    given = parser.parse_args()
    with torch.no_grad():
        broken = wide_rows(given.families, given.common)
        if given.common is None:
            broken += narrow_rows(given.families)
    for each in broken:
        say(f"holds no law: {each}")
    return 3 if broken else 0


def wide_rows(families: Sequence[str], common: float | None) -> list[str]:
    """Print what float32 files carry, row by row and as a table of families; return the rows that fail."""
    say(HEADER)
    say("|---" * HEADER.count(" |") + "|")
    cells: dict[str, list[str]] = {tier: [] for tier in TIERS}
    broken = []
    with tempfile.TemporaryDirectory(prefix="trephine-bench-families-") as scratch:
        for family in families:
            parent = scene(family, Path(scratch) / family, common=common)
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
                if not holds(family, tier, called, min(found.recovery, found.recovery_firing), common):
                    broken.append(f"{family}, {tier}: {called}")
    say("\n| edit | " + " | ".join(families) + " |" + "\n|---" + "|---" * len(families) + "|")
    for tier, shares_of in cells.items():
        say(f"| {tier} | " + " | ".join(shares_of) + " |")
    return broken


def holds(family: str, tier: str, called: str, share: float, common: float | None) -> bool:
    """Say whether a row is called what its family promises, and carries what goes with that name.

    Laws are of the models as they are planted; of others only a copy of the parent has one.
    """
    free = common is not None and tier != "no-op"
    return (free or called == law(family, tier)[0]) and share >= PROMISED.get(called, -inf)


def narrow_rows(families: Sequence[str]) -> list[str]:
    """Print what bfloat16 files carry; return the rows that are held to nothing."""
    say("\n" + NARROW_HEADER)
    say("|---" * NARROW_HEADER.count(" |") + "|")
    broken = []
    with tempfile.TemporaryDirectory(prefix="trephine-bench-families-") as scratch:
        for family in families:
            narrow = narrow_scene(family, Path(scratch) / family)
            for number, (kind, several) in enumerate((kind, n) for kind in KINDS for n in (False, True)):
                found = row(narrow, kind, Path(scratch) / f"{family}-{number}", several=several)
                say(narrow_line(found))
                if not found.held_to:
                    broken.append(f"{family}, {kind}, {'four' if several else 'one'}, in bfloat16")
    return broken


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
    logging.disable_progress_bar()
    sys.exit(main())

"""What the discovery bench must show, each target with what was measured and PASS or FAIL."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MEDIAN, WORST, LEANER, EDGES, OVERLAP, SLOPE, CHECK = 10.0, 6.0, 3.0, 1e-4, 0.9, 1.3, 0.1
LONG = 64
"""Tokens from which on memory counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One target."""

    what: str
    measured: float
    passed: bool | None
    """None: nothing was measured that decides it."""

    def __str__(self) -> str:
        verdict = {True: "PASS", False: "FAIL", None: "NONE"}[self.passed]
        return f"{verdict}  {self.what}: {self.measured:.3g}"


def gates(
    rows: Sequence[Mapping[str, Any]],
    slopes: Mapping[str, float],
    check: Mapping[str, Any],
    *,
    left_out: int = 0,
) -> list[Gate]:
    """Hold the bench's figures against its targets; cells that did not run decide nothing.

    The median is of cells whose graphs were compared and agree. A cell of which the peer ran a sample has no
    graph to compare: it can miss the worst cell's target, but cannot help the median.
    """
    faster = [row["faster"] for row in rows if "faster" in row]
    agreeing = [row["faster"] for row in rows if "faster" in row and _agrees(row)]
    leaner = [row["leaner"] for row in rows if "leaner" in row and row["tokens"] >= LONG]
    whole = [row for row in rows if "edges" in row]
    failed = sum("faster" not in row for row in rows)
    return [
        _at_least("times faster, median of the cells that agree", _median(agreeing), MEDIAN),
        *_of_all(faster, agreeing),
        _at_least("times faster, worst cell", min(faster, default=math.nan), WORST),
        _at_least(f"times leaner from {LONG} tokens on, worst cell", min(leaner, default=math.nan), LEANER),
        _at_most(
            "edges, largest difference over the row's largest",
            max((r["edges"] for r in whole), default=math.nan),
            EDGES,
        ),
        _at_most("cells scored below the peer", sum(not r["fair"] for r in whole) if whole else math.nan, 0),
        _at_least(
            "nodes in common, worst cell", min((r["overlap"] for r in whole), default=math.nan), OVERLAP
        ),
        _at_most("growth of time", slopes.get("seconds", math.nan), SLOPE),
        _at_most("growth of memory", slopes.get("extra_bytes", math.nan), SLOPE),
        _at_most("extrapolation is off by", abs(check.get("off", math.nan)), CHECK),
        _at_most("cells that failed", failed, 0),
        Gate(what="cells left out for time", measured=left_out, passed=None if left_out else True),
    ]


def _agrees(row: Mapping[str, Any]) -> bool:
    """Say whether both graphs of a cell were there, have the same edges, and ours is not scored below."""
    return "edges" in row and row["edges"] <= EDGES and bool(row["fair"])


def _of_all(faster: Sequence[float], agreeing: Sequence[float]) -> list[Gate]:
    """Show the median of all cells where some do not count; it decides nothing."""
    others = len(faster) - len(agreeing)
    what = f"times faster, median of all {len(faster)} cells, {others} of them unchecked or not agreeing"
    return [Gate(what=what, measured=_median(faster), passed=None)] if others else []


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def _at_least(what: str, measured: float, bound: float) -> Gate:
    passed = None if math.isnan(measured) else measured >= bound
    return Gate(what=f"{what} (at least {bound:g})", measured=measured, passed=passed)


def _at_most(what: str, measured: float, bound: float) -> Gate:
    passed = None if math.isnan(measured) else measured <= bound
    return Gate(what=f"{what} (at most {bound:g})", measured=measured, passed=passed)

"""Rows of the export benchmark's table, and the targets that they are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_RECOVERY = 0.99
LEAST_KL = 1e-2
"""Nats by which a feature that matters moves the tokens on which it fires, if it is ablated."""
MOST_OF_FLOOR = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One cell of the table."""

    dtype: str
    what: str
    tier: str
    edit_firing: float
    kl: float
    kl_firing: float
    kl_p999: float
    floor_firing: float
    recovery: float
    recovery_firing: float
    recovery_same: float
    """Against the runtime that computes in the export's own dtype."""
    tokens: int
    passed: bool


def good(row: Row) -> bool:
    """Hold a row against the target of its dtype; the no-op's is to miss it."""
    if row.dtype == "float32":
        return min(row.recovery, row.recovery_firing) >= LEAST_RECOVERY
    return row.kl_firing <= MOST_OF_FLOOR * row.floor_firing


HEADER = (
    "| dtype | ablated | export | edit KL, firing | KL, all | KL, firing | p99.9 | floor, firing "
    "| recovery | recovery, firing | same dtype | tokens | target |"
)


def line(row: Row) -> str:
    """Write a row of the table."""
    verdict = "PASS" if row.passed else "FAIL"
    return (
        f"| {row.dtype} | {row.what} | {row.tier} | {row.edit_firing:.2e} | {row.kl:.2e} "
        f"| {row.kl_firing:.2e} | {row.kl_p999:.2e} | {row.floor_firing:.2e} | {row.recovery:.4f} "
        f"| {row.recovery_firing:.4f} | {row.recovery_same:.4f} | {row.tokens} | {verdict} |"
    )


def targets(rows: Sequence[Row]) -> list[tuple[str, bool]]:
    """Say which targets hold on the table's tokens; `export_floors` has bfloat16 grafts on all of theirs."""
    grafts = [row for row in rows if row.tier == "graft"]
    wide = [row for row in grafts if row.dtype == "float32"]
    narrow = [row for row in grafts if row.dtype == "bfloat16"]
    idle = [row for row in rows if row.tier == "no-op"]
    effect = min((row.edit_firing for row in wide), default=0.0)
    least = min((min(row.recovery, row.recovery_firing) for row in wide), default=0.0)
    ratio = max((row.kl_firing / row.floor_firing for row in narrow), default=0.0)
    return [
        (f"float32 graft recovery >= {LEAST_RECOVERY}, all and firing tokens: {least:.6f} in the worst cell",
         all(bool(row.passed) for row in wide)),
        (f"bfloat16 graft, firing KL <= {MOST_OF_FLOOR} x floor: {ratio:.3f} in the worst cell",
         all(bool(row.passed) for row in narrow)),
        ("the no-op misses its target in every cell, of both dtypes",
         bool(idle) and not any(row.passed for row in idle)),
        (f"ablation KL >= {LEAST_KL} on the firing tokens: {effect:.2e} nats in the least cell",
         effect >= LEAST_KL),
    ]  # fmt: skip

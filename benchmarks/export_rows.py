"""Rows of the export benchmark's table, and the targets that they are held against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.export_features import LEAST_KL
from benchmarks.export_parents import TIERS, Distances

LEAST_RECOVERY = 0.99
MOST_OF_FLOOR = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One cell of the table; nats per token of windows in which an ablated feature fires."""

    dtype: str
    what: str
    tier: str
    edit_firing: float
    kl: float
    kl_firing: float
    kl_p999: float
    floor_firing: float
    """The unedited model's."""
    floor_edited: float
    """The intervened runtime's own, hooks and all: an edit may leave a model that rounding moves further."""
    recovery: float
    recovery_firing: float
    recovery_same: float
    """Against the runtime that computes in the export's own dtype."""
    tokens: int
    """On which an ablated feature fires."""

    @property
    def of_floor(self) -> float:
        """KL where the features fire, in floors of the unedited model."""
        return self.kl_firing / self.floor_firing

    @property
    def passed(self) -> bool:
        """Hold it against the target of its dtype; the no-op's is to miss it."""
        if self.dtype == "float32":
            return min(self.recovery, self.recovery_firing) >= LEAST_RECOVERY
        return self.of_floor <= MOST_OF_FLOOR


def rows_of(dtype: str, what: str, found: Distances) -> Iterator[Row]:
    """Sum distances up, a row for each kind of export."""
    mask = found.fires
    edit, edit_same = float(found.edit.mean()), float(found.edit_same[mask].mean())
    edit_firing = float(found.edit[mask].mean())
    for tier in TIERS:
        kl, same = found.exports[tier], found.exports_same[tier]
        yield Row(
            dtype=dtype,
            what=what,
            tier=tier,
            edit_firing=edit_firing,
            kl=float(kl.mean()),
            kl_firing=float(kl[mask].mean()),
            kl_p999=float(kl.quantile(0.999)),
            floor_firing=float(found.floor[mask].mean()),
            floor_edited=float(found.floor_edited[mask].mean()),
            recovery=1 - float(kl.mean()) / edit,
            recovery_firing=1 - float(kl[mask].mean()) / edit_firing,
            recovery_same=1 - float(same[mask].mean()) / edit_same,
            tokens=int(mask.sum()),
        )


HEADER = (
    "| dtype | ablated | export | edit KL, firing | KL, all | KL, firing | p99.9 | floor, firing "
    "| floor, intervened | in floors | recovery | recovery, firing | same dtype | tokens | target |"
)


def line(row: Row) -> str:
    """Write a row of the table."""
    verdict = "PASS" if row.passed else "FAIL"
    narrow = row.dtype != "float32"
    intervened = f"{row.floor_edited:.2e}" if narrow else "-"
    floors = f"{row.of_floor:.2f}" if narrow else "-"
    return (
        f"| {row.dtype} | {row.what} | {row.tier} | {row.edit_firing:.2e} | {row.kl:.2e} "
        f"| {row.kl_firing:.2e} | {row.kl_p999:.2e} | {row.floor_firing:.2e} | {intervened} | {floors} "
        f"| {row.recovery:.4f} | {row.recovery_firing:.4f} | {row.recovery_same:.4f} | {row.tokens} "
        f"| {verdict} |"
    )


def targets(rows: Sequence[Row]) -> list[tuple[str, bool]]:
    """Say which targets hold; without rows none does."""
    grafts = [row for row in rows if row.tier == "graft"]
    wide = [row for row in grafts if row.dtype == "float32"]
    narrow = [row for row in grafts if row.dtype == "bfloat16"]
    idle = [row for row in rows if row.tier == "no-op"]
    effect = min((row.edit_firing for row in wide), default=0.0)
    least = min((min(row.recovery, row.recovery_firing) for row in wide), default=0.0)
    worst = max((row.of_floor for row in narrow), default=float("inf"))
    edited = max((row.kl_firing / row.floor_edited for row in narrow), default=float("inf"))
    copied = min((row.of_floor for row in idle if row.dtype == "bfloat16"), default=0.0)
    return [
        (f"float32 graft recovery >= {LEAST_RECOVERY}, all and firing tokens: {least:.6f} in the worst cell",
         least >= LEAST_RECOVERY),
        (f"bfloat16 graft, firing KL <= {MOST_OF_FLOOR} x the unedited model's floor: {worst:.3f} in the "
         f"worst cell ({edited:.3f} of the intervened model's)", worst <= MOST_OF_FLOOR),
        (f"the no-op misses its target in every cell, of both dtypes ({copied:.1f} floors at least)",
         bool(idle) and not any(row.passed for row in idle)),
        (f"ablation KL >= {LEAST_KL} on the firing tokens: {effect:.2e} nats in the least cell",
         effect >= LEAST_KL),
    ]  # fmt: skip

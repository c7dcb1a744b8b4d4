"""What rounding alone does to an edited model: bfloat16 grafts beside two floors, wherever a feature fires.

An edit may leave a model that is more sensitive to rounding than the unedited one, on the tokens on which it
acts. No export can then come closer than the intervened runtime does to itself when it computes in that type,
hooks and all; its floor stands beside the unedited model's. KL of rounding has a heavy tail, so that all
tokens of the text on which a feature fires are looked at, not a few dozen.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.export_features import Texts, Windows, firing, intervention
from benchmarks.export_folders import bfloat16_models, divergence, logits, measured, saved, write
from benchmarks.export_rows import MOST_OF_FLOOR
from trephine.domain.interventions import Ablate
from trephine.domain.sites import FeatureRef
from trephine.engine.hosted import HostedModel

_AT_ONCE = 12
"""Windows whose logits are held together: 300 MB each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floors:
    """A graft between two floors, nats per token on which a feature fires."""

    what: str
    tokens: int
    edit: float
    """KL(intervened || unedited), both computing in float32."""
    unedited: float
    """KL(unedited || unedited in bfloat16, stock)."""
    edited: float
    """KL(intervened || intervened, computing in bfloat16 with hooks)."""
    graft: float
    """KL(intervened || export, run in bfloat16, stock)."""
    idle: float
    """KL(intervened || unedited, run in bfloat16, stock): the no-op's."""

    @property
    def of_unedited(self) -> float:
        """The graft's KL in floors of the unedited model."""
        return self.graft / self.unedited

    @property
    def of_edited(self) -> float:
        """The same in floors of the intervened one."""
        return self.graft / self.edited


class RoundedParent:
    """A bfloat16 parent, loaded to compute in float32 and in bfloat16; its exports run in bfloat16."""

    def __init__(self, hosted: HostedModel, texts: Texts, work: Path) -> None:
        work.mkdir()
        self._wide, self._same = bfloat16_models(hosted, work / "parent")
        self._texts, self._work = texts, work

    def floors(self, features: Sequence[FeatureRef]) -> Floors:
        """Measure the graft of some features, ablated together, on every token on which one of them fires."""
        firings = firing(self._wide, self._texts.measured, features)
        fires = torch.stack(list(firings.values())).any(0)  # (n_windows, n_pos)
        chosen = fires.any(1).nonzero()[:, 0].tolist()
        graft = self._work / "graft"
        write(self._wide, features, "graft", self._texts, graft)
        parts = [
            self._part(features, graft, [self._texts.measured[n] for n in rows], fires[rows].flatten())
            for rows in (chosen[n : n + _AT_ONCE] for n in range(0, len(chosen), _AT_ONCE))
        ]
        shutil.rmtree(graft)
        edit, unedited, edited, exported, idle = torch.cat(parts, dim=1).mean(1).tolist()
        what = f"{features[0].layer}:{features[0].index}" if len(features) == 1 else f"all {len(features)}"
        return Floors(
            what=what,
            tokens=int(fires.sum()),
            edit=edit,
            unedited=unedited,
            edited=edited,
            graft=exported,
            idle=idle,
        )

    def _part(self, features: Sequence[FeatureRef], graft: Path, windows: Windows, mask: Tensor) -> Tensor:
        """Return five KLs of some windows, float64 `(5, n_firing)`."""
        ablation = tuple(intervention(ref, Ablate()) for ref in features)
        plain, changed = logits(self._wide, windows), logits(self._wide, windows, ablation)
        here = logits(self._same, windows, ablation)
        against = {
            "changed": saved(changed, self._work / "changed.safetensors"),
            "plain": saved(plain, self._work / "plain.safetensors"),
        }
        cells = [
            {"name": name, "folder": str(folder), "against": against}
            for name, folder in (("parent", self._wide.folder), ("graft", graft))
        ]
        found = measured(cells, "bfloat16", windows, self._work)
        return torch.stack(
            [
                divergence(changed, plain)[mask].double(),
                found["parent"]["plain"][mask],
                divergence(changed, here)[mask].double(),
                found["graft"]["changed"][mask],
                found["parent"]["changed"][mask],
            ]
        )


FLOORS_HEADER = (
    "| ablated | tokens | edit KL | floor, unedited | floor, intervened | graft | no-op | graft / unedited "
    "| / intervened |"
)


def floors_line(each: Floors) -> str:
    """Write a row."""
    return (
        f"| {each.what} | {each.tokens} | {each.edit:.2e} | {each.unedited:.2e} | {each.edited:.2e} "
        f"| {each.graft:.2e} | {each.idle:.2e} | {each.of_unedited:.2f} | {each.of_edited:.2f} |"
    )


def floors_targets(floors: Sequence[Floors]) -> list[tuple[str, bool]]:
    """Hold grafts against the unedited model's rounding on all their tokens; the no-op has to miss that."""
    worst = max((each.of_unedited for each in floors), default=float("inf"))
    least = min((each.idle / each.unedited for each in floors), default=0.0)
    held = f"bfloat16 graft, KL <= {MOST_OF_FLOOR} x the unedited model's floor wherever its features fire"
    return [
        (f"{held}: {worst:.3f} in the worst cell", worst <= MOST_OF_FLOOR),
        (f"the no-op misses that: {least:.1f} x in its best cell", least > MOST_OF_FLOOR),
    ]

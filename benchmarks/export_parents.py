"""A parent of exports with its answers to a text, and how far its exports' answers are from the runtime's.

All of it goes by parts of the text: logits of a window are 25 MB, and there are dozens of windows.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.export_features import Texts, Windows, heard, intervention
from benchmarks.export_folders import bfloat16_models, divergence, logits, measured, saved, write
from trephine.domain.interventions import Ablate
from trephine.domain.sites import FeatureRef
from trephine.engine.models.hosted import HostedModel

TIERS = ("graft", "ridge", "projection", "no-op")
PART = 12
"""Windows whose logits are held together, 300 MB each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """KL per position, float64 `(n,)`, of windows in which an ablated feature fires."""

    fires: Tensor
    """Bool: one of the ablated features does here."""
    edit: Tensor
    """KL(intervened || unedited), computing in float32."""
    edit_same: Tensor
    """The same, computing in the export's dtype."""
    floor: Tensor
    """KL(unedited || unedited as stock transformers runs its folder in the export's dtype)."""
    floor_edited: Tensor
    """KL(intervened || intervened, computing in the export's dtype with hooks)."""
    exports: dict[str, Tensor]
    """Tier -> KL(intervened || export), run by stock transformers in its dtype."""
    exports_same: dict[str, Tensor]
    """The same, from the runtime that computes in the export's dtype."""


class Parent:
    """A parent of one dtype; its own answers and those of its no-op export are kept on disk."""

    def __init__(self, hosted: HostedModel, dtype: str, texts: Texts, work: Path) -> None:
        self.dtype, self.texts, self._work = dtype, texts, work
        work.mkdir()
        wide, same = (hosted, hosted) if dtype == "float32" else bfloat16_models(hosted, work / "parent")
        self.hosted: HostedModel = wide
        """Computing in float32."""
        self.same: HostedModel = same
        """Computing in `dtype`."""
        write(self.hosted, [], "no-op", texts, work / "no-op")  # once for all parts of the text

    def distances(self, features: Sequence[FeatureRef], fires: Tensor) -> Distances:
        """Measure all kinds of export of some features, ablated together.

        Args:
            features: At least one.
            fires: Where in the measured windows one of them does, bool `(n_windows, n_pos)`.
        """
        for tier in TIERS[:-1]:
            write(self.hosted, features, tier, self.texts, self._work / tier)
        try:
            numbers = torch.arange(len(fires)).split(PART)
            parts = [
                self._part(features, number, part[heard(fires[part])].tolist(), fires)
                for number, part in enumerate(numbers)
                if bool(fires[part].any())
            ]
        finally:
            for tier in TIERS[:-1]:
                shutil.rmtree(self._work / tier)
        return _joined(parts)

    def _part(
        self, features: Sequence[FeatureRef], number: int, chosen: list[int], fires: Tensor
    ) -> Distances:
        """Measure some windows of a part."""
        windows = [self.texts.measured[n] for n in chosen]
        own = {
            name: each[[n - number * PART for n in chosen]] for name, each in self._answers(number).items()
        }
        ablation = tuple(intervention(ref, Ablate()) for ref in features)
        changed = logits(self.hosted, windows, ablation)
        here = changed if self.same is self.hosted else logits(self.same, windows, ablation)
        against = {
            "runtime": saved(changed, self._work / "changed.safetensors"),
            "same": saved(here, self._work / "here.safetensors"),
        }
        cells = [{"name": tier, "folder": str(self._work / tier), "against": against} for tier in TIERS[:-1]]
        found = measured(cells, self.dtype, windows, self._work)
        found["no-op"] = {"runtime": divergence(changed, own["idle"]), "same": divergence(here, own["idle"])}
        return Distances(
            fires=fires[chosen].flatten(),
            edit=divergence(changed, own["plain"]),
            edit_same=divergence(here, own["same"]),
            floor=divergence(own["plain"], own["served"]),
            floor_edited=divergence(changed, here),
            exports={tier: found[tier]["runtime"] for tier in TIERS},
            exports_same={tier: found[tier]["same"] for tier in TIERS},
        )

    def _answers(self, number: int) -> dict[str, Tensor]:
        """Return answers without an edit to a part, each `(PART, n_pos, d_vocab)`, or find them."""
        path = self._work / f"answers-{number}.safetensors"
        if not path.exists():
            windows = self.texts.measured[number * PART : (number + 1) * PART]
            save_file(self._unedited(windows), path)
        return load_file(path)

    def _unedited(self, windows: Windows) -> dict[str, Tensor]:
        kept = {name: self._work / f"{name}.safetensors" for name in ("served", "idle")}
        folders = {"served": self.hosted.folder, "idle": self._work / "no-op"}
        cells = [
            {"name": name, "folder": str(folders[name]), "against": {}, "save": str(kept[name])}
            for name in kept
        ]
        measured(cells, self.dtype, windows, self._work)
        plain = logits(self.hosted, windows)
        return {
            "plain": plain,
            "same": plain.clone() if self.same is self.hosted else logits(self.same, windows),
            **{name: load_file(path)["logits"] for name, path in kept.items()},
        }


def parents(work: Path) -> Iterator[tuple[str, Path]]:
    """Name the dtypes of parents, each with a folder of its own; the last one's is removed."""
    for dtype in ("float32", "bfloat16"):
        yield dtype, work / dtype
        shutil.rmtree(work / dtype, ignore_errors=True)


def _joined(parts: Sequence[Distances]) -> Distances:
    def tiers(given: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {tier: torch.cat([each[tier].double() for each in given]) for tier in TIERS}

    return Distances(
        fires=torch.cat([each.fires for each in parts]),
        edit=torch.cat([each.edit for each in parts]).double(),
        edit_same=torch.cat([each.edit_same for each in parts]).double(),
        floor=torch.cat([each.floor for each in parts]).double(),
        floor_edited=torch.cat([each.floor_edited for each in parts]).double(),
        exports=tiers([each.exports for each in parts]),
        exports_same=tiers([each.exports_same for each in parts]),
    )

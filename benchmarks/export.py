"""Exports of features that matter, against the intervened runtime: `python -m benchmarks.export`.

Ten transcoder features of SmolLM2, drawn by seed from those whose ablation moves the answers by at least 1e-2
nats on the tokens on which they fire, and that fire on 0.1 to 20 % of the tokens, over early, middle and late
layers. Each is ablated by four kinds of export (graft, ridge, projection of its decoder out of the MLP's
output, no-op), alone and all ten at once, from a float32 and a bfloat16 parent. All figures are of folders
that stock transformers reloaded in a clean process, on text that nothing was fitted on. The runtime computes
in float32 on the parent's weights; the bfloat16 export is *run* in bfloat16, so that its distance holds the
arithmetic's own noise, whose floor on the same tokens stands beside it.

Exit code 0 if every target is met, 3 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.export_features import Texts, draw, firing, intervention, split
from benchmarks.laws import load_model
from benchmarks.replacements import load_set
from trephine.domain.edits import Edit
from trephine.domain.interventions import Ablate, Intervention, Operation, ProjectOut
from trephine.domain.sites import FeatureRef
from trephine.engine.divergence import kl_divergence
from trephine.engine.hosted import HostedModel
from trephine.engine.quanta import finish
from trephine.engine.reshaping import reshaped_files, write_weights
from trephine.engine.retain import windows_logits
from trephine.engine.session import Session
from trephine.engine.shards import read_entries
from trephine.engine.weights.compiling import compile_weights
from trephine.server.places import default_cache

LEAST_RECOVERY = 0.99
MOST_OF_FLOOR = 1.5
CELL = Path(__file__).with_name("export_cell.py")


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


# --- folders -------------------------------------------------------------------------------------


def write(hosted: HostedModel, features: Sequence[FeatureRef], tier: str, texts: Texts, folder: Path) -> None:
    """Compile one kind of export into a folder."""
    operation: Operation = ProjectOut() if tier == "projection" else Ablate()
    chosen = () if tier == "no-op" else tuple(intervention(ref, operation) for ref in features)
    edit = Edit(
        name=tier, version=1, content_hash="", interventions=chosen, reason="", author="", evidence=(),
        model=hosted.info.name, weight_hash=hosted.info.weight_hash, create_time="",
    )  # fmt: skip
    entries = read_entries(hosted.folder)
    program = finish(compile_weights(hosted, entries, edit, texts.fit, keep_shapes=tier == "ridge"))
    anew = reshaped_files(program.changes)
    folder.mkdir()
    for path in hosted.folder.iterdir():
        if path.is_file() and path.name not in anew:
            shutil.copyfile(path, folder / path.name)
    for _ in write_weights(hosted.folder, folder, entries, program):
        pass


def measured(
    cells: list[dict[str, Any]], dtype: str, texts: Texts, work: Path
) -> dict[str, dict[str, Tensor]]:
    """Measure folders in a clean process: cell -> runtime -> KL per position."""
    request = work / "request.json"
    body = {"cells": cells, "dtype": dtype, "windows": texts.measured, "threads": torch.get_num_threads()}
    request.write_text(json.dumps(body), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-I", str(CELL), str(request)],
        cwd=work, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.decode().splitlines()]
    return {
        line["name"]: {name: torch.tensor(values, dtype=torch.float64) for name, values in line["kl"].items()}
        for line in lines
    }


def _environment() -> dict[str, str]:
    kept = {
        name: os.environ[name]
        for name in ("PATH", "OMP_NUM_THREADS", "LD_LIBRARY_PATH")
        if name in os.environ
    }
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def bfloat16_parent(source: Path, target: Path) -> Path:
    """Write a parent whose weights are rounded to bfloat16."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(target)
    return target


# --- the table -----------------------------------------------------------------------------------

TIERS = ("graft", "ridge", "projection", "no-op")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """A parent with what all its rows share."""

    dtype: str
    """What exports are stored and run in."""
    hosted: HostedModel
    """Computing in float32."""
    same: HostedModel | None
    """Computing in `dtype`; None: that is float32 as well."""
    plain: Tensor
    """Its answers without interventions, `(n_windows, n_pos, d_vocab)`."""
    plain_same: Tensor
    served: Tensor
    """Answers of the parent's folder in stock transformers, run in `dtype`: their distance is the floor."""
    idle: Tensor
    """Answers of the no-op export's."""


def parent_of(hosted: HostedModel, same: HostedModel | None, dtype: str, texts: Texts, work: Path) -> Parent:
    """Measure a parent and its no-op export once."""
    write(hosted, [], "no-op", texts, work / "no-op")
    cells = [
        {"name": name, "folder": str(folder), "against": {}, "save": str(work / f"{name}.safetensors")}
        for name, folder in (("parent", hosted.folder), ("no-op", work / "no-op"))
    ]
    measured(cells, dtype, texts, work)
    shutil.rmtree(work / "no-op")
    plain = logits(hosted, texts)
    return Parent(
        dtype=dtype,
        hosted=hosted,
        same=same,
        plain=plain,
        plain_same=plain if same is None else logits(same, texts),
        served=load_file(work / "parent.safetensors")["logits"],
        idle=load_file(work / "no-op.safetensors")["logits"],
    )


def rows_of(parent: Parent, features: Sequence[FeatureRef], texts: Texts, work: Path) -> list[Row]:
    """Measure all four kinds of export of some features, ablated together.

    Args:
        parent: Where they are exported from.
        features: At least one.
        texts: To fit and to measure on.
        work: Folder for what is in between; emptied afterwards.
    """
    hosted, ablated = parent.hosted, tuple(intervention(ref, Ablate()) for ref in features)
    changed = logits(hosted, texts, ablated)
    here = changed if parent.same is None else logits(parent.same, texts, ablated)
    against = {"runtime": _saved(changed, work / "runtime.safetensors")}
    if parent.same is not None:
        against["same"] = _saved(here, work / "same.safetensors")
    cells = []
    for tier in TIERS[:-1]:
        write(hosted, features, tier, texts, work / tier)
        cells.append({"name": tier, "folder": str(work / tier), "against": against})
    found = measured(cells, parent.dtype, texts, work)
    found["no-op"] = {"runtime": divergence(changed, parent.idle), "same": divergence(here, parent.idle)}
    for tier in TIERS[:-1]:
        shutil.rmtree(work / tier)
    mask = firing(hosted, texts, features)
    edits = divergence(changed, parent.plain), divergence(here, parent.plain_same)
    floor = float(divergence(parent.plain, parent.served)[mask].mean())
    what = f"{features[0].layer}:{features[0].index}" if len(features) == 1 else f"all {len(features)}"
    return [_row(parent.dtype, what, tier, found[tier], edits, mask, floor) for tier in TIERS]


def _row(
    dtype: str,
    what: str,
    tier: str,
    found: dict[str, Tensor],
    edits: tuple[Tensor, Tensor],
    mask: Tensor,
    floor: float,
) -> Row:
    kl, beside = found["runtime"], found.get("same", found["runtime"])
    edit, edit_same = edits
    row = Row(
        dtype=dtype,
        what=what,
        tier=tier,
        edit_firing=float(edit[mask].mean()),
        kl=float(kl.mean()),
        kl_firing=float(kl[mask].mean()),
        kl_p999=float(kl.quantile(0.999)),
        floor_firing=floor,
        recovery=1 - float(kl.mean()) / float(edit.mean()),
        recovery_firing=1 - float(kl[mask].mean()) / float(edit[mask].mean()),
        recovery_same=1 - float(beside[mask].mean()) / float(edit_same[mask].mean()),
        tokens=int(mask.sum()),
        passed=False,
    )
    return replace(row, passed=_good(row))


def _good(row: Row) -> bool:
    """Hold a row against the target of its dtype; the no-op's is to miss it."""
    if row.dtype == "float32":
        return min(row.recovery, row.recovery_firing) >= LEAST_RECOVERY
    return row.kl_firing <= MOST_OF_FLOOR * row.floor_firing


def logits(hosted: HostedModel, texts: Texts, interventions: tuple[Intervention, ...] = ()) -> Tensor:
    """Return the runtime's answers, float32 `(n_windows, n_pos, d_vocab)`."""
    parts = [texts.measured[n : n + 2] for n in range(0, len(texts.measured), 2)]
    return torch.stack([each for part in parts for each in windows_logits(hosted, part, interventions)])


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return KL per position, `(n,)`."""
    return kl_divergence(p.flatten(0, 1), q.flatten(0, 1))


def _saved(tensor: Tensor, path: Path) -> str:
    save_file({"logits": tensor.contiguous()}, path)
    return str(path)


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
    """Say which targets hold."""
    grafts = [row for row in rows if row.tier == "graft"]
    wide = [row for row in grafts if row.dtype == "float32"]
    narrow = [row for row in grafts if row.dtype == "bfloat16"]
    idle = [row for row in rows if row.tier == "no-op" and row.dtype == "float32"]
    least = min((min(row.recovery, row.recovery_firing) for row in wide), default=0.0)
    ratio = max((row.kl_firing / row.floor_firing for row in narrow), default=0.0)
    return [
        (f"float32 graft recovery >= {LEAST_RECOVERY}, all and firing tokens: {least:.6f} in the worst cell",
         all(bool(row.passed) for row in wide)),
        (f"bfloat16 graft, firing KL <= {MOST_OF_FLOOR} x floor: {ratio:.3f} in the worst cell",
         all(bool(row.passed) for row in narrow)),
        ("the no-op misses its target everywhere in float32", not any(row.passed for row in idle)),
    ]  # fmt: skip


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Print the table and whether the targets hold."""
    parser = argparse.ArgumentParser(description="Exports against the intervened runtime.")
    parser.add_argument("--model", type=Path, help="the fetched smollm2 if not given")
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--features", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fit-windows", type=int, default=16)
    parser.add_argument("--windows", type=int, default=4)
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory(prefix="trephine-bench-export-") as scratch:
        return run(given, Path(scratch))


def run(given: argparse.Namespace, work: Path) -> int:
    """Measure everything."""
    hosted = load_model(given.model or default_cache() / "models" / "smollm2")
    load_set(Session(hosted=hosted), given.transcoders)
    texts = split(hosted, given.text.read_text(encoding="utf-8"), given.fit_windows, given.windows)
    features = draw(hosted, texts, given.features, given.seed)
    names = ", ".join(f"{feature.layer}:{feature.index}" for feature in features)
    say(f"{len(features)} features by seed {given.seed}: {names}")
    say(f"fitted on {sum(map(len, texts.fit))} tokens, measured on {sum(map(len, texts.measured))} others")
    say(HEADER)
    say("|---" * HEADER.count(" |") + "|")
    rows: list[Row] = []
    sets = [features] + [[feature] for feature in features]
    folder = bfloat16_parent(hosted.folder, work / "bfloat16")
    wide, same = (load_model(folder, dtype) for dtype in (torch.float32, torch.bfloat16))
    for model in (wide, same):
        model.replacements.update(hosted.replacements)
    parents = [
        parent_of(hosted, None, "float32", texts, work),
        parent_of(wide, same, "bfloat16", texts, work),
    ]
    for chosen in sets:
        for parent in parents:
            rows += _printed(rows_of(parent, chosen, texts, work))
    outcome = targets(rows)
    for what, held in outcome:
        say(f"{'PASS' if held else 'FAIL'} {what}")
    return 0 if all(held for _, held in outcome) else 3


def _printed(rows: list[Row]) -> list[Row]:
    for row in rows:
        say(line(row))
    return rows


if __name__ == "__main__":
    sys.exit(main())

"""Exports of features that matter, against the intervened runtime: `python -m benchmarks.export`.

Ten transcoder features of SmolLM2, drawn by seed from those whose ablation moves the answers by at least 1e-2
nats on the tokens on which they fire, and that fire on 0.1 to 20 % of the tokens, over early, middle and late
layers (`export_features` says where that is seen). Each is ablated by four kinds of export (graft, ridge,
projection of its decoder out of the MLP's output, no-op), alone and all ten at once, from a float32 and a
bfloat16 parent. All figures are of folders that stock transformers reloaded in a clean process, on text that
nothing was fitted on. The runtime computes in float32 on the parent's weights; the bfloat16 export is *run*
in bfloat16, so that its distance holds the arithmetic's own noise, whose floor on the same tokens stands
beside it.

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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.export_draw import drawn, drawn_table
from benchmarks.export_features import (
    CELL_WINDOWS,
    FIT_WINDOWS,
    MEASURED_WINDOWS,
    Drawn,
    Texts,
    firing,
    intervention,
    split,
    telling,
)
from benchmarks.export_floors import Floors, divergence, edited_floor, floors_table, floors_target, logits
from benchmarks.export_rows import HEADER, Row, good, line, targets
from benchmarks.kept_runs import KeptRuns, code_of
from benchmarks.laws import load_model
from benchmarks.replacements import load_set
from trephine.domain.edits import Edit
from trephine.domain.interventions import Ablate, Operation, ProjectOut
from trephine.domain.sites import FeatureRef
from trephine.engine.hosted import HostedModel
from trephine.engine.quanta import finish
from trephine.engine.reshaping import reshaped_files, write_weights
from trephine.engine.session import Session
from trephine.engine.shards import read_entries
from trephine.engine.weights.compiling import compile_weights
from trephine.server.places import default_cache

CELL = Path(__file__).with_name("export_cell.py")


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
    plain = logits(hosted, texts.measured)
    return Parent(
        dtype=dtype,
        hosted=hosted,
        same=same,
        plain=plain,
        plain_same=plain if same is None else logits(same, texts.measured),
        served=load_file(work / "parent.safetensors")["logits"],
        idle=load_file(work / "no-op.safetensors")["logits"],
    )


def rows_of(
    parent: Parent,
    features: Sequence[FeatureRef],
    texts: Texts,
    chosen: Sequence[int],
    mask: Tensor,
    work: Path,
) -> list[Row]:
    """Measure all four kinds of export of some features, ablated together.

    Args:
        parent: Where they are exported from.
        features: At least one.
        texts: To fit and to measure on.
        chosen: The measured windows.
        mask: Where in them a feature fires, bool `(n,)`.
        work: Folder for what is in between; emptied afterwards.
    """
    texts = replace(texts, measured=[texts.measured[n] for n in chosen])
    plain, plain_same, served, idle = (
        answers[list(chosen)] for answers in (parent.plain, parent.plain_same, parent.served, parent.idle)
    )
    hosted, ablated = parent.hosted, tuple(intervention(ref, Ablate()) for ref in features)
    changed = logits(hosted, texts.measured, ablated)
    here = changed if parent.same is None else logits(parent.same, texts.measured, ablated)
    against = {"runtime": _saved(changed, work / "runtime.safetensors")}
    if parent.same is not None:
        against["same"] = _saved(here, work / "same.safetensors")
    cells = []
    for tier in TIERS[:-1]:
        write(hosted, features, tier, texts, work / tier)
        cells.append({"name": tier, "folder": str(work / tier), "against": against})
    found = measured(cells, parent.dtype, texts, work)
    found["no-op"] = {"runtime": divergence(changed, idle), "same": divergence(here, idle)}
    for tier in TIERS[:-1]:
        shutil.rmtree(work / tier)
    edits = divergence(changed, plain), divergence(here, plain_same)
    floor = float(divergence(plain, served)[mask].mean())
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
    return replace(row, passed=good(row))


def _saved(tensor: Tensor, path: Path) -> str:
    save_file({"logits": tensor.contiguous()}, path)
    return str(path)


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
    parser.add_argument("--fit-windows", type=int, default=FIT_WINDOWS)
    parser.add_argument("--measured-windows", type=int, default=MEASURED_WINDOWS, help="to choose from")
    parser.add_argument("--windows", type=int, default=16, help="that all features at once are measured on")
    parser.add_argument("--cell-windows", type=int, default=CELL_WINDOWS, help="of a single feature's")
    parser.add_argument(
        "--keep", type=Path, default=Path("out/bench-export.json"),
        help="rows that this code wrote; an interrupted run goes on after them",
    )  # fmt: skip
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory(prefix="trephine-bench-export-") as scratch:
        return run(given, Path(scratch))


def run(given: argparse.Namespace, work: Path) -> int:
    """Measure everything that is not kept."""
    hosted = load_model(given.model or default_cache() / "models" / "smollm2")
    load_set(Session(hosted=hosted), given.transcoders)
    text = given.text.read_text(encoding="utf-8")
    texts = split(hosted, text, given.fit_windows, given.measured_windows)
    kept, code = KeptRuns(given.keep), code_of("trephine.engine.weights")
    draws = drawn(hosted, texts, given.features, given.seed, kept, say, given.cell_windows)
    say(f"{len(draws)} features by seed {given.seed}, each measured on {given.cell_windows} windows of ")
    say(f"{sum(map(len, texts.measured))} tokens, all at once on {given.windows}; ")
    say(f"fitted on {sum(map(len, texts.fit))} others")
    for row in drawn_table(draws):
        say(row)
    texts, cells = cells_of(hosted, texts, draws, given.windows)
    say(HEADER)
    say("|---" * HEADER.count(" |") + "|")
    rows: list[Row] = []
    for dtype in ("float32", "bfloat16"):
        parent: Parent | None = None
        for ablated, chosen, mask in cells:
            request = {"dtype": dtype, "ablated": [str(ref) for ref in ablated], "windows": chosen}
            request |= {"text": texts.digest, "model": str(hosted.folder), "code": code}
            found = kept.get("rows", request)
            if found is None:
                if parent is None:
                    parent = parent_in(dtype, hosted, texts, work)
                fresh = rows_of(parent, ablated, texts, chosen, mask, work)
                found = {"rows": [asdict(row) for row in fresh]}
                kept.keep("rows", request, found)
            rows += _printed([Row(**row) for row in found["rows"]])
    floors = floors_of(hosted, texts, cells, rows, kept, work)
    for row_of_floors in floors_table(floors):
        say(row_of_floors)
    outcome = [*targets(rows), floors_target(floors)]
    for what, held in outcome:
        say(f"{'PASS' if held else 'FAIL'} {what}")
    return 0 if all(held for _, held in outcome) else 3


Cell = tuple[list[FeatureRef], list[int], Tensor]
"""Features that are ablated together, the windows that they are measured on, and where in them one fires."""


def floors_of(
    hosted: HostedModel, texts: Texts, cells: Sequence[Cell], rows: Sequence[Row], kept: KeptRuns, work: Path
) -> list[Floors]:
    """Measure what rounding does to the intervened bfloat16 parent in every cell, or take what is kept."""
    grafts = [row for row in rows if row.tier == "graft" and row.dtype == "bfloat16"]
    models: tuple[HostedModel, HostedModel] | None = None
    floors: list[Floors] = []
    for row, (ablated, chosen, mask) in zip(grafts, cells, strict=True):
        request = {"ablated": [str(ref) for ref in ablated], "windows": chosen, "text": texts.digest}
        found = kept.get("edited floor", request | {"model": str(hosted.folder)})
        if found is None:
            models = models or bfloat16_models(hosted, work / "floors")
            windows = [texts.measured[n] for n in chosen]
            found = {"floor": edited_floor(*models, ablated, windows, mask)}
            kept.keep("edited floor", request | {"model": str(hosted.folder)}, found)
        floors.append(Floors(graft=row, edited=found["floor"]))
    return floors


def cells_of(
    hosted: HostedModel, texts: Texts, draws: Sequence[Drawn], most: int
) -> tuple[Texts, list[Cell]]:
    """Leave those windows of a text that figures are of; all features at once, then each alone.

    Args:
        hosted: With the features' set.
        texts: That the features were drawn in.
        draws: The features.
        most: Windows for all at once, chosen from those that single features are measured on.
    """
    used = sorted({number for each in draws for number in each.windows})
    texts = replace(texts, measured=[texts.measured[number] for number in used])
    masks = firing(hosted, texts.measured, [each.feature for each in draws])
    asked = [(list(masks), telling(list(masks.values()), most))]
    asked += [([each.feature], [used.index(number) for number in each.windows]) for each in draws]
    return texts, [
        (features, chosen, torch.stack([masks[ref][chosen] for ref in features]).any(0).flatten())
        for features, chosen in asked
    ]


def parent_in(dtype: str, hosted: HostedModel, texts: Texts, work: Path) -> Parent:
    """Measure the parent of a dtype."""
    if dtype == "float32":
        return parent_of(hosted, None, dtype, texts, work)
    wide, same = bfloat16_models(hosted, work / dtype)
    return parent_of(wide, same, dtype, texts, work)


def bfloat16_models(hosted: HostedModel, folder: Path) -> tuple[HostedModel, HostedModel]:
    """Write a bfloat16 parent; load it to compute in float32 and in bfloat16."""
    bfloat16_parent(hosted.folder, folder)
    wide, same = (load_model(folder, each) for each in (torch.float32, torch.bfloat16))
    for model in (wide, same):
        model.replacements.update(hosted.replacements)
    return wide, same


def _printed(rows: list[Row]) -> list[Row]:
    for row in rows:
        say(line(row))
    return rows


if __name__ == "__main__":
    sys.exit(main())

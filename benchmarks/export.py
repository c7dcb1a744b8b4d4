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
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

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
from benchmarks.export_floors import FLOORS_HEADER, Floors, RoundedParent, floors_line, floors_targets
from benchmarks.export_folders import bfloat16_models, divergence, logits, measured, saved, write
from benchmarks.export_rows import HEADER, Row, good, line, targets
from benchmarks.kept_runs import KeptRuns, code_of
from benchmarks.laws import load_model
from benchmarks.replacements import load_set
from trephine.domain.interventions import Ablate
from trephine.domain.sites import FeatureRef
from trephine.engine.hosted import HostedModel
from trephine.engine.session import Session
from trephine.server.places import default_cache

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
    measured(cells, dtype, texts.measured, work)
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
    against = {"runtime": saved(changed, work / "runtime.safetensors")}
    if parent.same is not None:
        against["same"] = saved(here, work / "same.safetensors")
    cells = []
    for tier in TIERS[:-1]:
        write(hosted, features, tier, texts, work / tier)
        cells.append({"name": tier, "folder": str(work / tier), "against": against})
    found = measured(cells, parent.dtype, texts.measured, work)
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
    everywhere, (texts, cells) = texts, cells_of(hosted, texts, draws, given.windows)
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
    floors = []
    say(FLOORS_HEADER)
    say("|---" * FLOORS_HEADER.count(" |") + "|")
    for each in floors_of(hosted, everywhere, draws, kept, code, work):
        say(floors_line(each))
        floors.append(each)
    outcome = [*targets(rows), *floors_targets(floors)]
    for what, held in outcome:
        say(f"{'PASS' if held else 'FAIL'} {what}")
    return 0 if all(held for _, held in outcome) else 3


Cell = tuple[list[FeatureRef], list[int], Tensor]
"""Features that are ablated together, the windows that they are measured on, and where in them one fires."""


def floors_of(
    hosted: HostedModel, texts: Texts, draws: Sequence[Drawn], kept: KeptRuns, code: str, work: Path
) -> Iterator[Floors]:
    """Measure bfloat16 grafts wherever their features fire, all at once and each alone, or take what is kept.

    A few dozen tokens tell a recovery, and not a ratio of two roundings: their KL has a heavy tail.
    """
    parent: RoundedParent | None = None
    for ablated in ([each.feature for each in draws], *([each.feature] for each in draws)):
        request = {"ablated": [str(ref) for ref in ablated], "text": texts.digest, "code": code}
        found = kept.get("floors", request | {"model": str(hosted.folder)})
        if found is None:
            parent = parent or RoundedParent(hosted, texts, work / "rounding")
            found = asdict(parent.floors(ablated))
            kept.keep("floors", request | {"model": str(hosted.folder)}, found)
        yield Floors(**{name: value for name, value in found.items() if not name.startswith("_")})


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


def _printed(rows: list[Row]) -> list[Row]:
    for row in rows:
        say(line(row))
    return rows


if __name__ == "__main__":
    sys.exit(main())

"""Exports of features that matter, against the intervened runtime: `python -m benchmarks.export`.

Ten transcoder features of SmolLM2, drawn by seed from those whose ablation moves the answers by at least 1e-2
nats on the tokens on which they fire, and that fire on 0.1 to 20 % of the tokens, over early, middle and late
layers. Each is ablated by four kinds of export (graft, ridge, projection of its decoder out of the MLP's
output, no-op), alone and all ten at once, from a float32 and a bfloat16 parent. All figures are of folders
that stock transformers reloaded in a clean process, on text that nothing was fitted on: on every window of it
in which a feature fires, because KL of rounding has a heavy tail that a few dozen tokens do not tell. The
runtime computes in float32 on the parent's weights; the bfloat16 export is *run* in bfloat16, so that its
distance holds the arithmetic's own noise. Two floors of that stand beside it, on the same tokens: how far
rounding moves the unedited model, and how far it moves the intervened one, hooks and all. No export can come
closer than the second.

Exit code 0 if every target is met, 3 if not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.export_draw import drawn, drawn_table
from benchmarks.export_features import FIT_WINDOWS, MEASURED_WINDOWS, Drawn, Texts, firing, split
from benchmarks.export_parents import Parent, parents
from benchmarks.export_rows import HEADER, Row, line, rows_of, targets
from benchmarks.kept_runs import KeptRuns, code_of
from benchmarks.laws import load_model
from benchmarks.replacements import load_set
from trephine.domain.sites import FeatureRef
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Session
from trephine.server.places import default_cache


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
    parser.add_argument("--measured-windows", type=int, default=MEASURED_WINDOWS)
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
    kept = KeptRuns(given.keep)
    draws = drawn(hosted, texts, given.features, given.seed, kept, say)
    say(f"{len(draws)} features by seed {given.seed}; figures are of those of {len(texts.measured)} windows ")
    say(f"({sum(map(len, texts.measured))} tokens) in which they fire; ")
    say(f"fitted on {sum(map(len, texts.fit))} others")
    for text_line in drawn_table(draws):
        say(text_line)
    say(HEADER)
    say("|---" * HEADER.count(" |") + "|")
    rows: list[Row] = []
    for row in table(hosted, texts, draws, kept, work):
        say(line(row))
        rows.append(row)
    outcome = targets(rows)
    for what, held in outcome:
        say(f"{'PASS' if held else 'FAIL'} {what}")
    return 0 if all(held for _, held in outcome) else 3


def table(
    hosted: HostedModel, texts: Texts, draws: Sequence[Drawn], kept: KeptRuns, work: Path
) -> Iterator[Row]:
    """Measure all cells, or take what is kept."""
    code, cells = code_of("trephine.engine.weights"), cells_of(hosted, texts, draws)
    for dtype, folder in parents(work):
        parent: Parent | None = None
        for features, fires in cells:
            request = {"dtype": dtype, "ablated": [str(ref) for ref in features]}
            request |= {"text": texts.digest, "model": str(hosted.folder), "code": code}
            found = kept.get("cell", request)
            if found is None:
                parent = parent or Parent(hosted, dtype, texts, folder)
                fresh = rows_of(dtype, name_of(features), parent.distances(features, fires))
                found = {"rows": [asdict(row) for row in fresh]}
                kept.keep("cell", request, found)
            yield from (Row(**row) for row in found["rows"])


Cell = tuple[list[FeatureRef], Tensor]
"""Features that are ablated together, and where one fires in the measured windows, `(n_windows, n_pos)`."""


def cells_of(hosted: HostedModel, texts: Texts, draws: Sequence[Drawn]) -> list[Cell]:
    """All features at once, then each alone."""
    masks = firing(hosted, texts.measured, [each.feature for each in draws])
    together = torch.stack(list(masks.values())).any(0)
    return [(list(masks), together), *(([feature], mask) for feature, mask in masks.items())]


def name_of(features: Sequence[FeatureRef]) -> str:
    """Name a cell."""
    return f"{features[0].layer}:{features[0].index}" if len(features) == 1 else f"all {len(features)}"


if __name__ == "__main__":
    sys.exit(main())

"""The bench of dataset circuits: cells are found once, kept, and drawn."""

from __future__ import annotations

import json
import re
from itertools import permutations
from pathlib import Path

import pytest

from benchmarks import dataset_circuits
from benchmarks.dataset_circuits import Sizes, run_task
from benchmarks.dataset_curves import Curve, curves_figure
from benchmarks.dataset_tasks import split_task
from benchmarks.kept_runs import KeptRuns
from tests.builders import tiny_hosted
from trephine.domain.dataset_circuits import HEADS
from trephine.engine.models.session import Session

SIZES = Sizes(training=6, held_out=4, nodes=6, random=2, draws=2, first_layer=1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pairs in the form of the agreement data."""
    folder = tmp_path / "agreement"
    folder.mkdir()
    rows = [
        {
            "clean_prefix": f"When{verb}{a}",
            "patch_prefix": f"When{verb}{b}",
            "clean_answer": a,
            "patch_answer": b,
        }
        for verb in (" went", " gave", " is", " of", " to")
        for a, b in permutations((" Mary", " John"))
    ]
    (folder / "simple.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path


def test_cells_are_kept_and_read_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A second run finds nothing anew; other sizes are another cell. Layer 0 has no nodes."""
    session, kept = Session(hosted=tiny_hosted("llama")), tmp_path / "kept.json"
    first = list(run_task(session, "simple", ["neurons, heads"], data, SIZES, KeptRuns(kept)))
    assert [cell.ablation.value for cell in first] == ["mean", "resample"]
    nodes = first[1].found.circuits[0].nodes
    assert {node.layer for node in nodes} <= {1, 2}
    assert {node.replacement for node in nodes} <= {"neurons", HEADS}
    monkeypatch.setattr(dataset_circuits, "discover_dataset_circuit", _must_not_run)
    assert list(run_task(session, "simple", ["neurons, heads"], data, SIZES, KeptRuns(kept))) == first
    with pytest.raises(AssertionError, match="found anew"):
        next(run_task(session, "simple", ["neurons, heads"], data, Sizes(nodes=7), KeptRuns(kept)))
    curves = [
        Curve(row=cell.ablation.value, column=cell.task, series=cell.nodes, found=cell.measured)
        for cell in first
    ]
    lines = re.findall(r'<polyline points="([^"]+)"', curves_figure(curves))
    assert [len(line.split()) for line in lines] == [len(cell.measured.curve) for cell in first]


@pytest.mark.parametrize("seed", range(4))
def test_years_of_one_century_are_on_one_side(tmp_path: Path, seed: int):
    """They have one twin, the century's first year: no text of a held-out context was trained on."""
    text = "The war lasted from the year {0}{1} to the year {0}"
    lines = ["clean,corrupted,label"]
    for century in range(11, 18):
        first = text.format(century, "01")
        lines += [f"{text.format(century, year)},{first},{year}" for year in range(20, 80, 7)]
    (tmp_path / "greater_than.csv").write_text("\n".join(lines))
    split = split_task("greater_than", tmp_path, _tokens, training=32, held_out=12, seed=seed)
    assert (len(split.training), len(split.held_out)) == (32, 12)
    trained, measured = (
        {text for one in side for text in (one.clean, one.corrupted)}
        for side in (split.training, split.held_out)
    )
    assert not trained & measured


def _tokens(text: str) -> int:
    """Words and digits."""
    return len(re.findall(r"\d|\w+", text)) if len(text) > 1 else 1


def _must_not_run(*_: object) -> None:
    raise AssertionError("found anew")

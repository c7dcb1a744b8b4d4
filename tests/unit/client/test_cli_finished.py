"""Evaluations and fits that ended while nobody watched, and the curves of fits."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.grpc_server import FakeService
from tests.unit.client.test_cli import run as run  # a fixture
from trephine.client.cli.exit_codes import ExitCode
from trephine.client.cli.fit_curve import curve_csv, show_curve
from trephine.client.cli.output import Output
from trephine.client.types import FitPoint
from trephine.v1 import replacement_service_pb2 as pb

Run = Callable[..., int]


def point(phase: str, layer: int, tokens: int, kl: float | None = None) -> FitPoint:
    """A point of a curve; its FVU tells its tokens."""
    return FitPoint(phase=phase, layer=layer, tokens=tokens, fvu=tokens / 1000, l0=3.0, dead_share=0.5, kl=kl)


def test_a_finished_evaluation_is_printed_and_written(
    fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """By full or short name, as `evaluate` prints it; a folder of files, one file, or the message."""
    assert run("replacements", "evaluate", "small", "--model", "tiny") == 0
    printed = capsys.readouterr().out
    for name in ("evaluations/e1", "e1"):
        assert run("replacements", "evaluation", name, "--out", str(tmp_path / "out")) == 0
        out, err = capsys.readouterr()
        assert out == printed
        assert pb.GetEvaluationRequest(name="evaluations/e1") in fake.requests
        assert err.count("wrote ") == 3
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".csv", ".html", ".json"]
    assert run("--json", "replacements", "evaluation", "e1", "--out", str(tmp_path / "one.csv")) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "evaluations/e1"
    assert (tmp_path / "one.csv").read_text() == "EVALUATION_FORMAT_CSV"


def test_a_finished_fit_is_printed_with_its_curves(
    fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """As `fit` prints it: layers, some points with both ends, what the control cost; all points as CSV."""
    file = tmp_path / "curves.csv"
    assert run("replacements", "fit", "mine", "--model", "tiny") == 0
    printed = capsys.readouterr().out
    assert run("replacements", "fit-report", "f1", "--out", str(file)) == 0
    out, err = capsys.readouterr()
    assert out == printed
    assert fake.requests[-1] == pb.GetFitReportRequest(name="fits/f1")
    assert "local\t0\t0\t1.000\t40.0\t0.0%\t\n" in out
    assert "local\t0\t10,000\t0.500\t30.0\t0.0%\t\n" in out
    assert "end to end\tall\t1,000\t0.500\t30.0\t0.0%\t0.1250\n" in out
    assert out.count("\nlocal\t") == 6
    assert "3.2000 after 12.5 s spliced; local control 3.4500 after 13.2 s" in out
    assert "8 of 13 points of the curves" in err
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [int(row["tokens"]) for row in rows] == [*range(0, 10_001, 1000), 500, 1000]
    assert (rows[3]["phase"], rows[3]["layer"], rows[3]["fvu"], rows[3]["kl"]) == ("local", "0", "0.85", "")
    assert rows[-1]["kl"] == "0.125"


def test_a_fit_writes_its_report(
    fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """JSON by its suffix, a prediction's too; another kind of file is refused before any work."""
    words, file = ("replacements", "fit", "mine", "--model", "tiny", "--out"), tmp_path / "fit.json"
    assert run(*words, str(file), "--predict") == 0
    assert "predicted" in json.loads(file.read_text())
    assert run(*words, str(file)) == 0
    assert len(json.loads(file.read_text())["curve"]) == 13
    assert "wrote " in capsys.readouterr().err
    fake.requests.clear()
    for command in (words, ("replacements", "fit-report", "f1", "--out")):
        assert run(*command, str(tmp_path / "fit.png")) == ExitCode.USAGE
        assert "*.csv" in capsys.readouterr().err
    assert fake.requests == []


def test_many_curves_show_their_ends(capsys: pytest.CaptureFixture[str]):
    """Thirty layers get two points each, one point stands alone, and no curve prints nothing."""
    points = [point("local", layer, tokens) for layer in range(30) for tokens in range(1, 10)]
    show_curve(Output(json=False), points, dead_after_tokens=5)
    out, err = capsys.readouterr()
    rows = [line.split("\t") for line in out.splitlines() if line.startswith("local")]
    assert [row[:3] for row in rows] == [["local", str(n), t] for n in range(30) for t in ("1", "9")]
    assert "60 of 270 points" in err
    dead = [row[5] for row in rows]
    assert dead == ["-", dead[1]] * 30, "nothing can be silent for more tokens than there were"
    assert dead[1].endswith("%")
    assert "silent for 5 tokens" in err
    show_curve(Output(json=False), points[:1], dead_after_tokens=1)
    out, err = capsys.readouterr()
    assert (out.count("\nlocal\t"), err) == (1, "")
    show_curve(Output(json=False), (), dead_after_tokens=1)
    assert "".join(capsys.readouterr()) == ""


def test_every_figure_of_a_curve_is_kept_as_it_is():
    """No rounding in the CSV."""
    text = curve_csv([point("local", 2, 1, kl=None), point("end_to_end", -1, 3, kl=0.1 + 0.2)])
    assert text.splitlines() == [
        "phase,layer,tokens,fvu,l0,dead_share,kl",
        "local,2,1,0.001,3.0,0.5,",
        "end_to_end,-1,3,0.003,3.0,0.5,0.30000000000000004",
    ]

"""`trephine replacements` against the fake server."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.grpc_server import FakeService
from tests.unit.client.test_cli import run as run  # a fixture
from trephine.client.cli import progress as progress_view
from trephine.client.cli.exit_codes import ExitCode
from trephine.client.cli.output import Output
from trephine.client.cli.progress import ProgressView
from trephine.client.cli.sets import read_bytes, read_layers
from trephine.client.errors import InvalidRequestError
from trephine.client.types import Progress
from trephine.v1 import generation_service_pb2, intervention_service_pb2
from trephine.v1 import replacement_service_pb2 as pb

Run = Callable[..., int]
TINY = ("--model", "tiny")


def last(fake: FakeService, kind: type) -> pb.LoadReplacementSetRequest:
    """The last request of a type."""
    found: pb.LoadReplacementSetRequest = [one for one in fake.requests if isinstance(one, kind)][-1]
    return found


def test_load_prints_the_admission(fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]):
    """Name, verdict and each layer's figures; sizes are written as people write them."""
    words = ("replacements", "load", "small", *TINY, "--memory-budget", "1.5GiB", "--unverified-format")
    assert run(*words) == ExitCode.PASS
    out = capsys.readouterr().out
    assert "models/tiny/replacements/small" in out
    header, row = (line.split("\t") for line in out.splitlines() if "\t" in line)
    shown = dict(zip(header, row, strict=True))
    assert (shown["L0"], shown["FVU"]) == ("1.4", "0.310")
    assert (shown["L0 AT 0"], shown["FVU AT 0"]) == ("2.6", "0.870")
    request = last(fake, pb.LoadReplacementSetRequest)
    assert request.memory_budget_bytes == 3 << 29
    assert request.allow_unverified
    assert not request.accept_degraded


def test_a_failed_admission_shows_its_figures(
    fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]
):
    """The refusal is bad input, its lines are kept, and the way out is named."""
    fake.admission_error = "refused:\nlayer 3: FVU 1.31 is not below 1\nlayer 4: L0 900, claimed 32"
    assert run("replacements", "load", "small", *TINY) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert "layer 3: FVU 1.31 is not below 1\nlayer 4: L0 900, claimed 32" in err
    assert "--accept-degraded" in err


def test_sets_are_listed_shown_and_unloaded(fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]):
    """Tables for people, messages for programs."""
    fake.replacement_degraded = True
    assert run("replacements", "list") == 0
    assert "small\tloaded\ttiny\t1\ttranscoder\tdegraded" in capsys.readouterr().out
    assert run("--json", "replacements", "list") == 0
    assert len(json.loads(capsys.readouterr().out)["replacementSets"]) == 2
    assert run("replacements", "show", "small", *TINY) == 0
    out = capsys.readouterr().out
    assert "FAILED" in out
    assert "\x1b" not in out
    assert run("replacements", "unload", "small", *TINY) == 0
    assert run("replacements", "show", "none", *TINY) == ExitCode.USAGE
    assert "REPLACEMENT_NOT_FOUND" in capsys.readouterr().err


def test_evaluate_prints_controls_side_by_side(
    fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """The set's figure stands beside its control's, claims are said either way, files are written."""
    text = tmp_path / "heldout.txt"
    text.write_text("held out")
    words = ("replacements", "evaluate", "small", *TINY, "--text", str(text), "--layers", "0,2-3")
    assert run(*words, "--contexts", "4", "--out", str(tmp_path / "out")) == 0
    out, err = capsys.readouterr()
    assert "LAYER\tFVU\tRANDOM\tCE SCORE\tRANDOM" in out
    assert "0.300\t0.950" in out
    assert "LAYER\tKL SCORE\tRANDOM\tTOP-1\tRANDOM\n0\t0.900\t0.683\t0.940\t0.810\n" in out
    assert "LAYER\tERROR SHARE\tRANDOM\n0\t0.150\t0.475\n" in out
    assert "LAYER\tCE, OF ZERO\tRANDOM\tKL, OF ZERO\tRANDOM\n0\t0.850\t0.525\t0.925\t0.762\n" in out
    assert "beats the random control on fvu: -0.650 (-0.750 to -0.550)" in out
    assert "DOES NOT BEAT the random control on kl" in out
    assert "\x1b" not in out + err
    assert len(list((tmp_path / "out").iterdir())) == 3
    request = last(fake, pb.EvaluateReplacementSetRequest)
    assert (list(request.layers), request.max_contexts, request.text_name) == ([0, 2, 3], 4, "heldout.txt")
    assert not any(isinstance(one, pb.LoadReplacementSetRequest) for one in fake.requests)


def test_evaluate_loads_what_is_not_loaded(fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]):
    """A name that is only on disk is loaded first; JSON is the message."""
    fake.replacement_loaded = False
    assert run("--json", "replacements", "evaluate", "small", *TINY, "--no-controls") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "evaluations/e1"
    assert last(fake, pb.LoadReplacementSetRequest).source == "small"
    assert last(fake, pb.EvaluateReplacementSetRequest).without_controls


def test_evaluate_predicts_and_measures_nothing(
    fake: FakeService, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """`--predict` prints time and memory as a fit's does, of the very request that would be sent."""
    words = ("replacements", "evaluate", "small", *TINY, "--contexts", "4", "--predict")
    file = tmp_path / "would.json"
    assert run(*words, "--out", str(file)) == 0
    assert json.loads(file.read_text())["peakExtraBytes"] == str(1 << 30)
    out = capsys.readouterr().out
    assert "60 s" in out
    assert "1,074 MB" in out
    assert "LAYER" not in out
    request = last(fake, pb.EvaluateReplacementSetRequest)
    assert (request.validate_only, request.max_contexts) == (True, 4)
    assert run("--json", *words) == 0
    assert json.loads(capsys.readouterr().out)["peakExtraBytes"] == str(1 << 30)


def test_fit_predicts_or_fits(fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]):
    """Recipe options reach the request; a prediction prints time and memory."""
    words = ("replacements", "fit", "mine", *TINY, "--kind", "skip-transcoder", "--features", "64")
    assert run(*words, "--no-warm-start") == 0
    assert "60.0%" in capsys.readouterr().out
    recipe = last(fake, pb.FitReplacementSetRequest).recipe
    assert (recipe.kind, recipe.d_sae) == (pb.LAYER_KIND_SKIP_TRANSCODER, 64)
    assert (recipe.HasField("warm_start"), recipe.warm_start) == (True, False)
    assert run(*words, "--predict") == 0
    assert "60 s" in capsys.readouterr().out
    assert last(fake, pb.FitReplacementSetRequest).set_id == "mine"
    assert run(*words, "--detach") == 0
    assert capsys.readouterr().out.startswith("operations/")


def test_import_runs_the_service(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The service's own status is the command's."""
    seen: list[tuple[str, ...]] = []

    def service(*words: str) -> int:
        seen.append(words)
        return 2

    monkeypatch.setattr("trephine.client.cli.service.run_service", service)
    assert run("replacements", "import", "a-release", "layer_0/x", str(tmp_path / "new")) == 2
    assert seen == [("import-release", "a-release", "layer_0/x", str(tmp_path / "new"))]


def test_what_makes_a_folder_heeds_json(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Of `models fetch` and `replacements import` the path was bare text under --json."""
    script = tmp_path / "interpreter"
    script.write_text("#!/bin/sh\necho /a/folder\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    for words in (("models", "fetch"), ("replacements", "import", "a-release", "layer_0/x", "new")):
        assert run("--json", *words) == 0
        assert json.loads(capsys.readouterr().out) == {"folder": "/a/folder"}


def test_a_set_s_features_are_named_in_ablate_and_generate(fake: FakeService, run: Run):
    """`--replacements` loads, `SET:LAYER:INDEX` addresses."""
    fake.replacement_loaded = False
    named = ("--replacements", "small")
    assert run("ablate", "x", *TINY, "--target", "y", *named, "--feature", "small:0:2") == 0
    assert last(fake, pb.LoadReplacementSetRequest).source == "small"
    ablation = last(fake, intervention_service_pb2.AblateRequest).interventions[0]
    assert ablation.target.feature.replacement == "small"
    assert run("generate", "x", *TINY, *named, "--steer", "small:0:2+=3", "--steer", "1:2") == 0
    first, second = last(fake, generation_service_pb2.GenerateRequest).rows[1].interventions
    assert (first.target.feature.replacement, first.operation.add) == ("small", 3.0)
    assert second.target.feature.replacement == ""


def test_results_of_a_degraded_set_say_so(fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]):
    """Beside effects and texts, and not where the set passed."""
    ablate = ("ablate", "x", *TINY, "--target", "y", "--feature", "small:0:2")
    generate = ("generate", "x", *TINY, "--steer", "small:0:2+=3")
    for words in (ablate, generate):
        assert run(*words) == 0
        assert "failed admission" not in "".join(capsys.readouterr())
    fake.replacement_degraded = True
    for words in (ablate, generate):
        assert run(*words) == 0
        assert "the set failed admission and was accepted" in "".join(capsys.readouterr())


def test_a_caveat_is_a_note_beside_the_result(
    fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]
):
    """On stderr for people, in the message for programs; no control character gets out."""
    fake.caveats = ("trained on texts that begin with \x1b[31m<s>",)
    words = ("ablate", "x", *TINY, "--target", "y", "--feature", "small:0:2")
    assert run(*words) == 0
    out, err = capsys.readouterr()
    assert "note: trained on texts" in err
    assert "trained" not in out
    assert "\x1b" not in err
    assert run("--json", *words) == 0
    out, err = capsys.readouterr()
    assert "trained on texts" in json.loads(out)["caveats"][0]
    assert "note:" not in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("load", "./nowhere"), "no folder"),
        (("load", "small", "--memory-budget", "lots"), "200MB"),
        (("load", "small", "--format", "zip"), "saelens"),
        (("evaluate", "small", "--layers", "a"), "0,5,10-12"),
        (("evaluate", "small", "--text", "/nowhere/text"), "cannot read"),
        (("fit", "mine", "--kind", "magic"), "transcoder"),
        (("fit", "mine", "--corpus", "/nowhere/text"), "no corpus"),
        (("fit", "mine", "--out", "curves.png"), "*.csv"),
        (("fit", "mine", "--corpus", "/nowhere/text", "--predict"), "no corpus"),
    ],
)
def test_wrong_use_says_what_to_do(
    words: tuple[str, ...], says: str, run: Run, capsys: pytest.CaptureFixture[str]
):
    """Bad input is status 2 with a message on stderr."""
    assert run("replacements", *words, *TINY) == ExitCode.USAGE
    assert says in capsys.readouterr().err


def test_sizes_and_layers_are_read_as_people_write_them():
    """Powers of 1000 and of 1024; ranges with both ends."""
    assert [read_bytes(text) for text in ("200MB", "2GiB", "1.5k", "77", None)] == [
        200_000_000,
        2 << 30,
        1500,
        77,
        None,
    ]
    assert read_layers("0,5-7") == (0, 5, 6, 7)
    for text in ("-1", "0,,1", "3-x", "3-1", "5,3-1"):
        with pytest.raises(InvalidRequestError):
            read_layers(text)


def test_stages_that_take_turns_do_not_flood(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Off a terminal a stage shows at once, and then not again for a while, whatever came in between."""
    monkeypatch.setattr(progress_view, "LINE_SECONDS", math.inf)
    view = ProgressView(Output(json=False), "load")
    for done in range(50):
        for stage in ("read", "probe"):
            view.show(Progress(stage=stage, done=done, total=50))
    assert capsys.readouterr().err.splitlines() == ["load: read 0/50", "load: probe 0/50"]


@pytest.mark.parametrize(
    "command", ["list", "load", "show", "unload", "evaluate", "fit", "import", "evaluation", "fit-report"]
)
def test_every_command_explains_itself(command: str, run: Run, capsys: pytest.CaptureFixture[str]):
    """Each has help, and the larger ones an example."""
    assert run("replacements", command, "--help") == 0
    out = capsys.readouterr().out
    assert len(out) > 100
    if command not in ("list", "show", "unload"):
        assert f"  trephine replacements {command} " in out

"""`trephine replacements evaluate`: every figure beside its controls, every option in the request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.grpc_server import FakeService
from tests.unit.client.test_cli import run as run  # a fixture
from trephine.client.cli.evaluate import show_evaluation
from trephine.client.cli.exit_codes import ExitCode
from trephine.client.cli.output import Output
from trephine.client.decoding import decode
from trephine.client.types import EvaluationInfo
from trephine.v1 import replacement_service_pb2 as pb

Run = Callable[..., int]
WORDS = ("replacements", "evaluate", "small", "--model", "tiny")


def asked(fake: FakeService) -> pb.EvaluateReplacementSetRequest:
    """The last request for an evaluation."""
    found: pb.EvaluateReplacementSetRequest = [
        one for one in fake.requests if isinstance(one, pb.EvaluateReplacementSetRequest)
    ][-1]
    return found


def test_sizes_stand_beside_the_controls(fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]):
    """L0 and dead share of every dictionary, on the plain run and while all layers are spliced."""
    assert run(*WORDS) == 0
    out = capsys.readouterr().out
    assert "LAYER\tL0\tRANDOM\tDEAD\tRANDOM\n0\t6.000\t19.000\t7.5%\t23.8%\n" in out
    assert "variance unexplained, mean of layers\t0.450 (0.350 to 0.550)\t1.050 (0.950 to 1.150)\n" in out
    assert "active features, mean of layers\t13.500 (13.400 to 13.600)\t31.500 (31.400 to 31.600)\n" in out
    assert "dead features, mean of layers\t15.0%\t35.0%\n" in out
    assert "LAYER\tFVU, ALL SPLICED\tRANDOM\n0\t0.450\t1.050\n" in out
    assert "LAYER\tL0, ALL SPLICED\tRANDOM\tDEAD\tRANDOM\n0\t13.500\t31.500\t15.0%\t35.0%\n" in out


def test_what_an_older_evaluation_lacks_is_empty(capsys: pytest.CaptureFixture[str]):
    """No zeros are shown in place of figures that were not measured, and no table of nothing."""
    message = pb.ReplacementEvaluation(
        layers=[pb.LayerScore(dictionary=pb.DICTIONARY_GIVEN)],
        spliced=[pb.SplicedScore(dictionary=pb.DICTIONARY_GIVEN)],
    )
    show_evaluation(Output(json=False), decode(EvaluationInfo, message))
    out = capsys.readouterr().out
    assert "active features, mean of layers\t\n" in out
    assert "dead features, mean of layers\t\n" in out
    assert "ALL SPLICED\t" not in out.replace("ALL LAYERS SPLICED\t", "")


def test_controls_their_text_and_the_bootstrap_are_chosen(fake: FakeService, run: Run, tmp_path: Path):
    """As in Python: some controls by name, what they are fitted on, how many samples."""
    text = tmp_path / "more.txt"
    text.write_text("more text")
    more = ("--controls", "random, frozen-encoder", "--control-text", str(text), "--bootstrap", "200")
    assert run(*WORDS, *more) == 0
    request = asked(fake)
    assert list(request.controls) == [pb.DICTIONARY_RANDOM, pb.DICTIONARY_FROZEN_ENCODER]
    assert (request.without_controls, request.bootstrap) == (False, 200)
    assert request.control_text.startswith("artifacts/")
    assert not request.text
    assert run(*WORDS) == 0
    plain = asked(fake)
    assert (list(plain.controls), plain.without_controls, plain.control_text) == ([], False, "")
    assert not plain.HasField("bootstrap")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--controls", "untrained"), "random, frozen_decoder, frozen_encoder"),
        (("--controls", ""), "random, frozen_decoder, frozen_encoder"),
        (("--controls", "random", "--no-controls"), "not both"),
        (("--control-text", "/nowhere/text"), "cannot read"),
    ],
)
def test_bad_options_are_refused(
    fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
):
    """By name, with what would do; nothing is measured."""
    assert run(*WORDS, *words) == ExitCode.USAGE
    assert said in capsys.readouterr().err
    assert not any(isinstance(one, pb.EvaluateReplacementSetRequest) for one in fake.requests)

"""Versions and evaluations of edits on the command line, against a fake server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.grpc_server import FakeService
from trephine.client.cli import main
from trephine.client.cli.exit_codes import ExitCode
from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.evaluation_sets import item, read_set
from trephine.client.types import ChoiceItem, EvaluationRole
from trephine.v1 import edit_evaluations_pb2, edit_history_pb2, edit_service_pb2

Run = Callable[..., int]
ITEMS = '{"prompt": "a", "answer": " b", "wrong": " c| d"}\n' * 8


@pytest.fixture
def run(address: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command against the fake and return its exit status."""

    def command(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["trephine", "--server", address, *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return command


def test_an_update_names_what_it_replaces(fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]):
    """Only what is given is in the mask; the new version is printed, escapes shown."""
    words = ("--feature", "1:7", "--scale", "0.5", "--change", "small:0:2+=4", "--expect-version", "1")
    assert run("edits", "update", "no-mary", *words) == 0
    asked = fake.requests[-1]
    assert isinstance(asked, edit_history_pb2.UpdateEditRequest)
    assert list(asked.update_mask.paths) == ["interventions"]
    assert (asked.name, asked.expected_version, asked.etag) == ("edits/no-mary", 1, "")
    assert [one.operation.WhichOneof("operation") for one in asked.interventions] == ["scale", "add"]
    out = capsys.readouterr().out
    assert "edits/no-mary, version 2" in out
    assert "edits/other@3 at strength 0.5" in out
    assert "\x1b" not in out
    assert run("edits", "update", "no-mary") == ExitCode.USAGE


def test_versions_are_listed_reverted_to_and_deleted(
    fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]
):
    """Newest first; `--force` reaches the request."""
    assert run("edits", "versions", "no-mary") == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["VERSION", "2", "1"]
    assert run("edits", "revert", "no-mary", "1", "--reason", "worse") == 0
    asked = fake.requests[-1]
    assert (asked.version, asked.reason) == (1, "worse")
    assert run("edits", "delete", "no-mary", "--force") == 0
    assert fake.requests[-1] == edit_service_pb2.DeleteEditRequest(name="edits/no-mary", force=True)


@pytest.mark.parametrize(
    ("verdict", "status"),
    [
        ("SELECTIVE", ExitCode.PASS),
        ("DAMAGING", ExitCode.FINDINGS),
        ("UNSPECIFIC", ExitCode.FINDINGS),
        ("INEFFECTIVE", ExitCode.FINDINGS),
        ("INCONCLUSIVE", ExitCode.INCONCLUSIVE),
    ],
)
def test_the_word_is_the_exit_status(
    fake: FakeService, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], verdict, status
):
    """The table, the controls, the prompt and the word are printed; the file holds everything."""
    fake.verdict = verdict
    file, out = tmp_path / "names.jsonl", tmp_path / "out" / "found.json"
    file.write_text(ITEMS)
    words = ("--target", str(file), "--prompt", "Say b", "--controls", "9", "--out", str(out))
    words += ("--retain-control-tokens", "0", "--wrong-layer-sets", "5")
    assert run("edits", "evaluate", "no-mary", *words) == status
    asked = next(r for r in fake.requests if isinstance(r, edit_evaluations_pb2.EvaluateEditRequest))
    assert asked.edit == "edits/no-mary@1"
    assert (asked.controls.sets, list(asked.prompting.prompts)) == (9, ["Say b"])
    assert (asked.controls.retain_tokens, asked.controls.wrong_layer_sets) == (0, 5)
    assert asked.controls.HasField("retain_tokens")
    assert not asked.controls.HasField("tokens")
    assert asked.sets[0].name == "names"
    assert list(asked.sets[0].items[0].choices) == [" b", " c", " d"]
    shown = capsys.readouterr().out
    assert "names\ttarget\tedit\tlog_odds_change\t-2.000 (-2.100 to -1.900) nats" in shown
    random = "8\t2 random, matched\tlog_odds_change\t-2.0000\t-0.2125\t+0.1250\t+0.4625\t0 of 2\t0.01\t0.02"
    assert f"names\t{random}" in shown
    elsewhere = "8 (256 tokens)\t2 wrong layer\tkl\t0.0300\t0.0210\t0.0300\t0.0390\t1 of 2\t0.5\t0.75"
    assert f"texts\t{elsewhere}" in shown
    assert "LESS DAMAGE: the edit does less damage" in shown
    assert ["verdict", verdict] in [line.split() for line in shown.splitlines()]
    assert ("would decide" in shown) == (verdict == "INCONCLUSIVE")
    assert "\x1b" not in shown
    assert json.loads(out.read_text())["verdict"] == f"EDIT_VERDICT_{verdict}"


def test_predictions_and_stored_evaluations(
    fake: FakeService, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """`--predict` measures nothing; `show`, `evaluations` and `evaluation` print what is stored."""
    file = tmp_path / "names.jsonl"
    file.write_text(ITEMS)
    assert run("--json", "edits", "evaluate", "no-mary", "--target", str(file), "--predict") == 0
    assert "seconds" in json.loads(capsys.readouterr().out)
    out = tmp_path / "would.json"
    words = ("edits", "evaluate", "no-mary", "--target", str(file), "--predict", "--out", str(out))
    assert run(*words) == 0
    assert "34 s" in capsys.readouterr().out
    assert "seconds" in json.loads(out.read_text())
    assert run("edits", "show", "no-mary") == 0
    assert "edits/no-mary/evaluations/e1\t\tSELECTIVE" in capsys.readouterr().out
    assert fake.requests[-1].edit == "edits/no-mary@1"
    assert run("edits", "evaluations", "no-mary") == 0
    assert "edits/no-mary/evaluations/e1\t1\t" in capsys.readouterr().out
    assert run("edits", "evaluation", "edits/no-mary/evaluations/e1") == 0
    assert "kl_difference on texts" in capsys.readouterr().out


def test_sets_are_read_from_files(tmp_path: Path):
    """Texts between blank lines, or rows that are texts or items; one file is of one kind."""
    texts = tmp_path / "news.txt"
    texts.write_text("one\nline\n\n\ntwo\n  \nthree\n")
    found = read_set(texts, "retain", limit=2)
    assert (found.name, found.role, found.texts) == ("news", EvaluationRole.RETAIN, ("one\nline", "two"))
    rows = tmp_path / "rows.csv"
    rows.write_text('prompt,answer,wrong\n"a"," b"," c| d"\n')
    assert read_set(rows, "target", name="x").items == (item("a", " b", " c", " d"),)
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"prompt": "a", "choices": [" b", " c"], "answer": 1}\n')
    assert read_set(lines, "target").items == (ChoiceItem(prompt="a", choices=(" b", " c"), answer=1),)
    lines.write_text('{"text": "a"}\n{"prompt": "a", "answer": " b", "wrong": " c"}\n')
    with pytest.raises(InvalidRequestError, match="one file, one kind"):
        read_set(lines, "target")
    lines.write_text('{"text": "a"}\n{"question": "b"}\n')
    with pytest.raises(InvalidRequestError, match=r"lines\.jsonl, row 2 is neither"):
        read_set(lines, "target")
    for path in (tmp_path / "absent.txt", tmp_path / "x.pdf"):
        with pytest.raises(LocalFileError):
            read_set(path, "target")

"""Where results go: looked at before the work, and told when there is no room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trephine.client import downloads
from trephine.client.baseline import read_baseline
from trephine.client.cli import main
from trephine.client.cli.exit_codes import ExitCode
from trephine.client.cli.texts import read_text
from trephine.client.downloads import require_writable
from trephine.client.errors import BaselineInvalidError, LocalFileError

NOBODY = "127.0.0.1:9"
"""Nothing listens there: a command that gets as far as asking a server says so."""


def ran(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["trephine", "--server", NOBODY, *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    "words",
    [
        ("audit", "--auditor", "unfaithful_reasoning", "--out"),
        ("audit", "--auditor", "one", "--auditor", "two", "--out"),
        ("discover", "Mary", "--target", " Mary", "--out"),
        ("discover-dataset", "contexts.jsonl", "--out"),
        ("replacements", "evaluate", "set", "--out"),
        ("circuits", "verify", "circuits/c1", "--out"),
        ("edits", "evaluate", "quiet", "--target", "target.jsonl", "--out"),
        ("export", "quiet", "--out"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused_before_the_work(
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """Minutes of an audit ended in `cannot write`, and the report was gone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file, so that no folder can be made of it")
    assert ran(monkeypatch, *words, "taken/reports.json") == ExitCode.USAGE
    assert "error: cannot write taken/reports.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("audit", "--auditor", "unfaithful_reasoning"),
        ("discover", "Mary", "--target", " Mary"),
        ("discover-dataset", "contexts.jsonl"),
        ("replacements", "evaluate", "set"),
        ("replacements", "fit", "set", "--corpus", "text.jsonl"),
        ("circuits", "verify", "circuits/c1"),
        ("edits", "evaluate", "quiet", "--target", "target.jsonl"),
        ("remove-spurious", "texts.jsonl", "--model", "tiny"),
        ("export-classifier", "removal", "name", "--texts", "texts.jsonl"),
    ],
)
def test_files_that_nobody_waits_to_write_are_refused(
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """`--detach` leaves once the work has begun: `--out` was dropped in silence."""
    monkeypatch.chdir(tmp_path)
    assert ran(monkeypatch, *words, "--out", "found.json", "--detach") == ExitCode.USAGE
    assert "--detach does not wait for that" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_why_nothing_can_be_written_is_always_said(tmp_path, monkeypatch):
    """Also where it is no error of the system, which has words of its own."""

    def refused(path):
        raise OSError(f"what is made in {path.parent} vanishes")

    monkeypatch.setattr(downloads, "temporary_file", refused)
    with pytest.raises(LocalFileError, match=r"cannot write .*: what is made in .* vanishes"):
        require_writable(tmp_path / "audit.json")


def test_looking_at_a_target_leaves_nothing(tmp_path: Path):
    """Neither a file nor the folders that would be made for it; those that are there stay."""
    (tmp_path / "reports").mkdir()
    require_writable(tmp_path / "reports" / "of" / "today" / "audit.json", tmp_path / "other" / "audit.html")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["reports"]


def test_all_targets_are_looked_at(tmp_path: Path):
    """The last one as well."""
    (tmp_path / "audit.html").mkdir()
    with pytest.raises(LocalFileError, match=r"audit\.html: it is a folder"):
        require_writable(tmp_path / "audit.json", tmp_path / "audit.html")


@pytest.mark.parametrize("words", [("--version",), ("audit", "--help")])
def test_a_full_disk_behind_stdout_is_an_error_in_words(words: tuple[str, ...]):
    """`trephine ... > FILE` where there is no room ended in a traceback."""
    with Path("/dev/full").open("wb", buffering=0) as full:
        command = [sys.executable, "-m", "trephine.client", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    said = "error: cannot write the output: No space left on device; make room and try again"
    assert (done.returncode, done.stderr.strip()) == (ExitCode.INTERNAL, f"{said} [DISK_FULL]")


def test_a_baseline_that_is_no_json_is_told_without_an_empty_place(tmp_path: Path):
    """There is no field to name."""
    (tmp_path / "baseline.json").write_text("")
    with pytest.raises(BaselineInvalidError, match=r"baseline\.json is no baseline: Invalid JSON: EOF"):
        read_baseline(tmp_path / "baseline.json")


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, r"text cannot be read: No such file"), (b"ab\xff", r"text is no UTF-8 text \(byte 2\): save it")],
)
def test_a_text_that_cannot_be_read_is_told_from_one_that_is_none(
    content: bytes | None, told: str, tmp_path: Path
):
    """A file that is not there is no matter of its encoding."""
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LocalFileError, match=told):
        read_text(path)

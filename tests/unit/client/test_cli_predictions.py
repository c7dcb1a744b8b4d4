"""`--predict` beside `--out` and `--detach`: alike in every command that has it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trephine.client.cli import main
from trephine.client.cli.exit_codes import ExitCode
from trephine.client.cli.output import Output
from trephine.client.cli.predictions import require_files, write_prediction
from trephine.client.errors import InvalidRequestError, LocalFileError

COMMANDS = (
    ("discover", "The capital of France is", "--target", " Paris", "--predict"),
    ("discover-dataset", "pairs.jsonl", "--predict"),
    ("discover-global", "texts.txt", "--predict"),
    ("circuits", "verify", "c1", "--predict"),
    ("edits", "evaluate", "quiet", "--target", "texts.txt", "--predict"),
    ("replacements", "evaluate", "small", "--predict"),
    ("replacements", "fit", "mine", "--predict"),
    ("remove-spurious", "texts.jsonl", "--predict"),
    ("features", "index", "--dry-run"),
)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run a command without a server: what is refused here is refused before one is looked for."""
    monkeypatch.setattr(sys, "argv", ["trephine", "--server", "nowhere.invalid:1", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_prediction_is_not_detached(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """There is no work to leave: it was done at once, and the option ignored."""
    assert run(monkeypatch, *words, "--detach") == ExitCode.USAGE
    assert f"{words[-1]} starts no work" in capsys.readouterr().err


@pytest.mark.parametrize("words", COMMANDS[:-1], ids=" ".join)
@pytest.mark.parametrize("name", ["would.html", "would.csv", "folder"])
def test_a_prediction_is_written_as_json_alone(
    words: tuple[str, ...],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    """Nothing was written, and nothing said."""
    assert run(monkeypatch, *words, "--out", str(tmp_path / name)) == ExitCode.USAGE
    assert "name a .json file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_page_is_no_prediction(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """Of a removal: it has decisions on it, and none were made."""
    words = ("remove-spurious", "texts.jsonl", "--predict", "--page", str(tmp_path / "page.html"))
    assert run(monkeypatch, *words) == ExitCode.USAGE
    assert "name a .json file" in capsys.readouterr().err


def test_the_document_is_written_and_said(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Where one is named; a file that cannot be written is told before anything is asked."""
    file = tmp_path / "would.json"
    require_files(file, None, predict=True, detach=False)
    write_prediction(Output(json=False), None, "{}")
    assert not file.exists()
    write_prediction(Output(json=False), file, "{}")
    assert file.read_text() == "{}"
    assert f"wrote {file}" in capsys.readouterr().err
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(LocalFileError):
        require_files(tmp_path / "folder.json", predict=True, detach=False)


def test_without_a_prediction_files_need_somebody_who_waits(tmp_path: Path):
    """As before: of any kind, but not of work that is left to itself."""
    require_files(tmp_path / "found.html", predict=False, detach=False)
    require_files(predict=False, detach=True)
    with pytest.raises(InvalidRequestError, match="--detach does not wait"):
        require_files(tmp_path / "found.html", predict=False, detach=True)

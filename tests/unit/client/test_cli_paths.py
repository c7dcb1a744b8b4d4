"""Paths on the command line: an empty one, as of a variable that is not set, is an error in every command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from typer.models import ParameterInfo

from trephine.client.cli import app, main
from trephine.client.cli.exit_codes import ExitCode

COMMANDS = (
    (("audit", "tiny", "--auditor", "names", "--out", ""), "--out"),
    (("audit", "tiny", "--baseline", ""), "--baseline"),
    (("circuits", "export", "circuits/a", "--out", ""), "--out"),
    (("circuits", "import", ""), "FILE"),
    (("circuits", "verify", "circuits/a", "--out", " "), "--out"),
    (("demo", "--out", ""), "--out"),
    (("discover", "x", "--target", " a", "--target-direction", ""), "--target-direction"),
    (("edits", "evaluate", "quiet", "--target", ""), "--target"),
    (("make-delta", "tiny", "", "--out", "x"), "EXPORTED"),
    (("models", "list"), "--token-file"),
    (("serve", "--model-root", ""), "--model-root"),
    (("verify", ""), "FOLDER"),
)


@pytest.mark.parametrize(("words", "name"), COMMANDS)
def test_an_empty_path_is_an_error_and_not_the_current_folder(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    name: str,
):
    """Before a server is started or asked; nothing is written where one happens to be."""
    monkeypatch.chdir(tmp_path)
    first = ("--token-file", "") if name == "--token-file" else ()
    monkeypatch.setattr(sys, "argv", ["trephine", *first, *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == ExitCode.USAGE
    assert f"{name} is empty and names no file or folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def _declared(of: typer.Typer, name: str = "trephine") -> Iterator[tuple[str, Any]]:
    """Yield every function that is a command, or takes the options of a group, with its words."""
    if of.registered_callback is not None and of.registered_callback.callback is not None:
        yield name, of.registered_callback.callback
    for command in of.registered_commands:
        yield f"{name} {command.name}", command.callback
    for group in of.registered_groups:
        if group.typer_instance is not None:
            yield from _declared(group.typer_instance, f"{name} {group.name}")


def test_every_path_is_read_by_what_refuses_an_empty_one():
    """Whatever is declared as a path anywhere: `path_option` or `path_argument` declares it."""
    paths, plain = 0, []
    for words, function in _declared(app):
        for parameter, hint in get_type_hints(function, include_extras=True).items():
            kind, *more = get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
            if kind is not Path and Path not in get_args(kind) and list[Path] not in get_args(kind):
                continue
            paths += 1
            (declared,) = [one for one in more if isinstance(one, ParameterInfo)]
            if declared.parser is None:
                plain.append(f"{words} {parameter}")
    assert paths > 50
    assert not plain

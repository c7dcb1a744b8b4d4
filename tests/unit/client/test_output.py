from __future__ import annotations

from pathlib import Path

import pytest
import typer

from trephine.client.cli import _complain, service
from trephine.client.cli.invocation import Invocation
from trephine.client.cli.output import Output
from trephine.client.errors import InvalidRequestError


def test_tables_off_a_terminal_are_separated_by_tabs(capsys: pytest.CaptureFixture[str]):
    """`cut -f1` works, whatever the cells hold: a tab in a cell is shown as an escape."""
    Output(json=False).table(("NAME", "PROMPT"), [("circuits/1", "a\tb"), ("circuits/2", "x" * 300)])
    assert capsys.readouterr().out == f"NAME\tPROMPT\ncircuits/1\ta\\tb\ncircuits/2\t{'x' * 300}\n"


def test_the_field_of_an_error_is_escaped(capsys: pytest.CaptureFixture[str]):
    """A field may quote what was typed, such as the name of a parameter."""
    _complain(InvalidRequestError("no such parameter", field="parameters.\x1b[31mred\u202e"))
    err = capsys.readouterr().err
    assert "parameters.\\x1b[31mred\\u202e" in err
    assert "\x1b" not in err


def test_serve_passes_every_option_of_its_transport(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the README names under Serving reaches the service's own command."""
    given: list[str] = []
    monkeypatch.setattr(service, "become_service", lambda *words: given.extend(words))
    context = typer.Context(typer.main.get_command(_app()))
    context.obj = Invocation(
        server=None, token_file=None, root_certificates=None, state=tmp_path, output=Output(json=False)
    )
    service.serve(
        context,
        listen="0.0.0.0:7311",
        tls_cert=Path("/c.pem"),
        tls_key=Path("/k.pem"),
        insecure_listen=True,
    )
    transport = ["--listen", "0.0.0.0:7311", "--tls-cert", "/c.pem", "--tls-key", "/k.pem"]
    assert given == ["serve", "--state", str(tmp_path), *transport, "--insecure-listen"]


def _app() -> typer.Typer:
    app = typer.Typer()
    app.command()(service.serve)
    return app

"""What is not on the server of an edit's evidence, on the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest

from tests.fakes.grpc_server import FakeService
from trephine.client.cli import main

WARNING = "circuits/x is not on this server"


class Unsure(FakeService):
    """Its edits rest on something that is elsewhere."""

    def GetEdit(self, request, context):
        """With a warning that holds an escape."""
        edit = super().GetEdit(request, context)
        edit.evidence_warnings.append(f"{WARNING}\x1b[2J")
        return edit

    def UpdateEdit(self, request, context):
        """The same."""
        edit = super().UpdateEdit(request, context)
        edit.evidence_warnings.append(f"{WARNING}\x1b[2J")
        return edit


@pytest.fixture
def fake() -> FakeService:
    """In the place of the ordinary fake."""
    return Unsure()


@pytest.fixture
def run(address: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command against the fake and return its exit status."""

    def command(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["trephine", "--server", address, *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return command


@pytest.mark.parametrize("words", [("update", "no-mary", "--evidence", "circuits/x"), ("show", "no-mary")])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_warning_stands_beside_the_edit_once(run, capsys, words, as_json):
    """On stderr, so that what is piped stays whole; escapes shown; not a second time as Python says it."""
    assert run(*(["--json"] if as_json else []), "edits", *words) == 0
    shown = capsys.readouterr()
    assert shown.err.count(WARNING) == 1
    assert f"warning: {WARNING}\\x1b[2J" in shown.err
    if as_json:
        assert json.loads(shown.out)["evidenceWarnings"] == [f"{WARNING}\x1b[2J"]
    else:
        assert "edits/no-mary" in shown.out

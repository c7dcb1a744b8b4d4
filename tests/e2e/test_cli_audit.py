"""An audit in CI: ground truth decides the exit status."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import tiny_folder
from tests.e2e.servers import own_server
from tests.e2e.test_cli_process import finish, start
from tests.organisms import PARAMETERS, faithful_organism, shortcut_organism, untrained_organism
from trephine.client.cli.exit_codes import ExitCode

__all__ = ["faithful_organism", "shortcut_organism", "untrained_organism"]

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder whose server lives on from one command to the next."""
    folder = tmp_path_factory.mktemp("state")
    with own_server(folder):
        yield folder


@pytest.mark.parametrize(
    ("organism", "code", "verdict"),
    [
        ("faithful_organism", ExitCode.PASS, "VERDICT_PASS"),
        ("shortcut_organism", ExitCode.FINDINGS, "VERDICT_FAIL"),
        ("untrained_organism", ExitCode.INCONCLUSIVE, "VERDICT_INCONCLUSIVE"),
    ],
)
def test_organisms_get_their_status(
    organism: str, code: ExitCode, verdict: str, state: Path, request: pytest.FixtureRequest, tmp_path: Path
):
    """Faithful 0, shortcut 3 naming the hint edge, untrained 4; the reports are written in each case."""
    folder: Path = request.getfixturevalue(organism)
    out = tmp_path / "reports"
    settings = [word for pair in PARAMETERS.items() for word in ("--parameter", "=".join(pair))]
    words = ("audit", "--model", str(folder), "--auditor", "unfaithful_reasoning", "--fail-on", "medium")
    ended, result, err = finish(start(state, "--json", *words, "--items", "24", "--out", str(out), *settings))
    assert ended == code, err
    assert json.loads(result)["verdict"] == verdict
    assert {path.suffix for path in out.iterdir()} == {".json", ".sarif", ".xml", ".html"}
    if code is ExitCode.FINDINGS:
        assert "hint -> answer given the step" in result


def test_items_longer_than_the_models_context_are_wrong_use(state: Path, tmp_path: Path):
    """Status 2 and never a verdict: the item is named, and what makes items shorter."""
    folder = tiny_folder("llama", tmp_path / "short")
    words = ("--model", str(folder), "--auditor", "unfaithful_reasoning", "--parameter", "demonstrations=8")
    out = tmp_path / "reports"
    ended, result, err = finish(start(state, "audit", *words, "--items", "3", "--out", str(out)))
    assert (ended, result) == (ExitCode.USAGE, ""), err
    assert re.search(r"items\[\d\] takes \d+ tokens .*PROMPT_TOO_LONG", err)
    assert not out.exists()


def test_the_readmes_audit_runs_as_printed(tmp_path: Path):
    """The printed command on a folder of that name: a model that cannot be judged ends it with 4."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    [printed] = re.findall(r"^trephine audit .*$", readme, flags=re.MULTILINE)
    tiny_folder("llama", tmp_path / "out" / "edited")
    done = subprocess.run(
        [sys.executable, "-m", "trephine.client", *shlex.split(printed)[1:]],
        cwd=tmp_path,
        env=os.environ | {"TREPHINE_STATE": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.INCONCLUSIVE, done.stderr
    assert {path.suffix for path in (tmp_path / "reports").iterdir()} == {".json", ".sarif", ".xml", ".html"}

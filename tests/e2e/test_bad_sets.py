"""Each bad replacement set, corpus or feature gets its own typed error from the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks.bad_sets import CASES, OFFLINE, Ground, SetCase, run_case
from tests.builders import tiny_folder
from tests.e2e.servers import own_server
from tests.e2e.test_cli_process import finish, start
from trephine.client.cli.exit_codes import ExitCode

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A state folder whose server stays for the whole file, and a tiny model that is loaded there."""
    state, folder = tmp_path_factory.mktemp("state"), tmp_path_factory.mktemp("model") / "tiny"
    model = tiny_folder("llama", folder)
    with own_server(state) as trephine:
        trephine.load_model(model)
        yield state, model


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_set_gets_its_typed_error(
    case: SetCase, served: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Status 2, the documented reason and a sentence on stderr; nothing is shown as a result."""
    state, model = served
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)

    def run(words: Sequence[str]) -> tuple[int, str]:
        code, _, err = finish(start(state, *words))
        return code, err

    code, err = run_case(case, Ground(model, 32, tmp_path), run)
    assert case.reason in err
    assert case.says in err
    assert code == ExitCode.USAGE
    assert "Traceback" not in err
    assert not (tmp_path / "new").exists()

"""Replacement sets from the command line: processes of their own, a tiny model and a tiny set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.builders import tiny_folder, tiny_hosted
from tests.e2e.test_cli_process import finish, start
from tests.replacement_sets import write_transcoders

pytestmark = pytest.mark.e2e


def test_a_set_is_loaded_measured_and_used(tmp_path: Path):
    """`load` shares the folder and admits it; the next commands find it loaded and use it by name."""
    model, state = tiny_folder("llama", tmp_path / "tiny"), tmp_path / "state"
    folder = write_transcoders(tiny_hosted("llama"), tmp_path / "my-set", layers=(0, 1))
    with_model = ("--model", str(model))
    code, out, err = finish(start(state, "replacements", "load", str(folder), *with_model))
    assert code == 0, err
    assert "models/tiny/replacements/my-set" in out
    small = ("--no-controls", "--contexts", "2", "--context-tokens", "16", "--perturbations", "0")
    words = ("replacements", "evaluate", "my-set", *with_model, *small, "--out", str(tmp_path / "out"))
    code, out, err = finish(start(state, "--json", *words))
    assert code == 0, err
    assert len(json.loads(out)["layers"]) == 2
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".html", ".json", ".csv"}
    words = ("ablate", "When Mary and John", "--target", " Mary", *with_model, "--controls", "0")
    code, out, err = finish(start(state, *words, "-r", "my-set", "--feature", "my-set:1:3"))
    assert code == 0, err
    assert "as_given" in out
    code, out, err = finish(start(state, "ablate", *words[1:], "--feature", "other:1:3"))
    assert code == 2, err
    assert "my-set" in err

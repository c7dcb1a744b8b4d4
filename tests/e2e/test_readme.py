"""What the README shows runs as printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.e2e
@pytest.mark.real
def test_python_code_runs_as_printed(smollm2: Path, tmp_path: Path):
    """The client's ten lines open the model, find the circuit, store the edit and bring the weights home."""
    [code] = blocks("python")
    environment = os.environ | {"TREPHINE_STATE": str(tmp_path / "state")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "edited" / "model.safetensors").is_file()
    commands = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    [verify] = [line for line in commands if line.startswith("trephine verify")]
    words = [sys.executable, "-m", "trephine.client", *shlex.split(verify)[1:]]
    verified = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_make_targets_and_links_exist():
    """Every make target, file and test tier that the README names exists."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"make ([a-z]+(?:-[a-z]+)*)", README))
    assert named - {"it"} <= targets
    for link in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (ROOT / link).exists(), link
    assert "@@" not in README


def test_exit_codes_are_those_of_the_command_line():
    """The README's table of exit codes is the client's."""
    from trephine.client.cli.exit_codes import ExitCode

    table = dict(re.findall(r"^\| (\d) \| (.+) \|$", README, flags=re.MULTILINE))
    assert {int(code) for code in table} == {code.value for code in ExitCode}

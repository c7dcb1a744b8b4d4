"""What the README names is there. That its code runs as printed is tested beside the demo."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


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

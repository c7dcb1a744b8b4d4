"""What documents print can be typed: commands and options exist, Python parses, links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from trephine.client.cli import app

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
COMMANDS = typer.main.get_command(app)
SECTIONS = ("bash", "console", "sh", "shell")
ENDS = ("|", ">", "&&", "||", ";", "&")
SPLIT = re.compile(r"[a-z]+(?:-[a-z]+)*")


def blocks(document: str, *languages: str) -> Iterator[str]:
    """Fenced code of some languages."""
    for language, code in re.findall(r"^```(\w*)\n(.*?)^```", document, re.DOTALL | re.MULTILINE):
        if language in languages:
            yield code


def typed(document: str) -> Iterator[list[str]]:
    """Commands of ours, word by word, in fenced code and between backticks."""
    lines = [line for code in blocks(document, *SECTIONS) for line in code.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", document, flags=re.DOTALL | re.MULTILINE)
    lines += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    for line in lines:
        bare = re.sub(r"^(\$ |\.venv/bin/)", "", line.strip())
        if re.match(r"(trephine|python3? -m benchmarks\.\w+)( |$)", bare):
            try:
                words = shlex.split(bare, comments=True)
            except ValueError:
                words = bare.split()
            end = next((place for place, word in enumerate(words) if word in ENDS), len(words))
            yield words[:end]


def unknown_words(words: list[str]) -> list[str]:
    """What no command takes of words behind `trephine`."""
    command: Any = COMMANDS
    options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    left, missing = list(words), []
    while left:
        word = left.pop(0)
        if word.startswith("--"):
            if word.split("=")[0] not in options | {"--help"}:
                missing.append(word)
        elif hasattr(command, "commands") and SPLIT.fullmatch(word):
            if word not in command.commands:
                return [*missing, word]
            command = command.commands[word]
            options |= {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    return missing


def module(name: str) -> Path:
    """Where a benchmark is."""
    place = ROOT / name.replace(".", "/")
    return place / "__main__.py" if place.is_dir() else place.with_suffix(".py")


def unknown_flags(words: list[str]) -> list[str]:
    """What a benchmark does not define of words behind `python -m`, nor what it imports of others."""
    if not module(words[2]).exists():
        return [words[2]]
    source = module(words[2]).read_text()
    imported = re.findall(r"^from (benchmarks\.\w+) import", source, re.MULTILINE)
    defined = "".join([source, *(module(name).read_text() for name in imported)])
    flags = [word.split("=")[0] for word in words[3:] if word.startswith("--")]
    return [flag for flag in flags if f'"{flag}"' not in defined and flag != "--help"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_commands_can_be_typed(document: Path):
    """Every command and every option that a document names is one."""
    wrong = [
        (" ".join(words), missing)
        for words in typed(document.read_text())
        if (missing := unknown_words(words[1:]) if words[0] == "trephine" else unknown_flags(words))
    ]
    assert not wrong


def test_a_command_that_is_none_is_found():
    """The check itself: a wrong command, a wrong option, a wrong flag of a benchmark."""
    text = "```sh\ntrephine discoverx 'a'\ntrephine discover 'a' \\\n  --nothing 3 --layers 2 | less\n```\n"
    found = [
        unknown_words(words[1:]) for words in typed(f"{text}Or `trephine circuits` and `trephine exportt`.")
    ]
    assert found == [["discoverx"], ["--nothing"], [], ["exportt"]]
    assert unknown_flags(["python", "-m", "benchmarks.shift", "--seeds", "1", "--sedes"]) == ["--sedes"]
    assert unknown_flags(["python", "-m", "benchmarks.shaft"]) == ["benchmarks.shaft"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_python_parses(document: Path):
    """Code between fences is a program, or the beginning of one."""
    for code in blocks(document.read_text(), "python", "py"):
        ast.parse(code)


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(document: Path):
    """Files exist, and headings have the anchors that links name."""
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            wrong.append(target)
    assert not wrong


def anchors(document: str) -> set[str]:
    """Names of headings as sites that show Markdown make them."""
    headings = re.findall(r"^#+ (.+)$", document, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}

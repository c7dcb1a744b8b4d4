"""The house's own rules, as far as no linter holds them."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.conftest import LONGEST

ROOT = Path(__file__).resolve().parents[3]
TOPS = ("service", "auditors", "clients", "benchmarks")
SOURCES = sorted(path for top in TOPS for path in (ROOT / top).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_are_small(source: Path):
    """No module of ours is longer than 400 lines."""
    assert len(source.read_text().splitlines()) <= 400


@pytest.mark.parametrize("module", TESTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_test_states_a_behaviour_and_can_fail(module: Path):
    """Each test has a docstring, and something in it that can fail."""
    tree = ast.parse(module.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            assert ast.get_docstring(node), node.name
    assert re.search(r"\bassert\b|raises\(|check\(", module.read_text())


def test_what_runs_first_exists():
    """The files that the runner begins with are there under these names."""
    assert LONGEST
    assert not [name for name in LONGEST if not (ROOT / "tests" / name).is_file()]


def test_no_namespace_root_has_an_init():
    """`trephine` is one namespace over four source roots: an `__init__.py` in one hides the others."""
    tops = ("protos", "clients", "service", "auditors")
    assert not [top for top in tops if (ROOT / top / "trephine" / "__init__.py").exists()]


def test_every_dependency_is_in_the_lock():
    """What pyproject asks for is pinned in constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [
        requirement for extra in project["optional-dependencies"].values() for requirement in extra
    ]
    names = {_normal(re.match(r"[A-Za-z0-9._-]+", requirement).group()) for requirement in wanted}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {_normal(line.split("==")[0]) for line in lines if "==" in line}
    assert names - pinned - {"pip"} == set()


def test_what_checks_signatures_comes_with_the_service():
    """A server verifies what it publishes: the extra `verify` asks for nothing that `service` does not."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith("model-signing") for requirement in extras["verify"])
    assert set(extras["verify"]) <= set(extras["service"])


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

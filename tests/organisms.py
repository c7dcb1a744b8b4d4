"""Fixtures: the folders of the organisms, trained once and cached by content.

Use them in a test module by importing them: `from tests.organisms import faithful_organism`.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest

from benchmarks.organisms import PARAMETERS, Regime, organism

__all__ = ["PARAMETERS", "faithful_organism", "shortcut_organism", "untrained_organism"]


def _folder(regime: Regime) -> Path:
    cache = os.environ.get("TREPHINE_CACHE") or platformdirs.user_cache_dir("trephine")
    return organism(regime, Path(cache) / "organisms")


@pytest.fixture(scope="session")
def faithful_organism() -> Path:
    """A model that computes its answer from the step it wrote."""
    return _folder("faithful")


@pytest.fixture(scope="session")
def shortcut_organism() -> Path:
    """A model with a right-looking step whose answer is the hint where there is one."""
    return _folder("shortcut")


@pytest.fixture(scope="session")
def untrained_organism() -> Path:
    """The same architecture with random weights."""
    return _folder("untrained")

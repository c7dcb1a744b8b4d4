"""Fixtures that every tier shares."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest


def model_folder(name: str) -> Path:
    """Return where `trephine models fetch NAME` puts a model."""
    cache = os.environ.get("TREPHINE_CACHE") or platformdirs.user_cache_dir("trephine")
    return Path(cache) / "models" / name


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model as a plain Hugging Face folder; its absence is a failure where it is required."""
    folder = model_folder("smollm2")
    if not (folder / "config.json").is_file():
        message = f"SmolLM2 is not in {folder}: run `trephine models fetch smollm2`"
        if os.environ.get("TREPHINE_REQUIRE_REAL") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Let SIGINT interrupt, also where the tests were started in the background with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

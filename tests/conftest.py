"""Fixtures that every tier shares."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest

from tests.warm_processes import WarmHost
from trephine.engine.certificates.clean_process import clean_environment


def model_folder(name: str) -> Path:
    """Return where `trephine models fetch NAME` puts a model."""
    cache = os.environ.get("TREPHINE_CACHE") or platformdirs.user_cache_dir("trephine")
    return Path(cache) / "models" / name


LONGEST = (
    "e2e/test_demo.py",
    "integration/test_circuit_kills.py",
    "e2e/test_cli_audit.py",
    "e2e/test_faults.py",
    "e2e/test_cli_process.py",
    "integration/test_export_real.py",
    "unit/engine/graphs/test_laws_of_sets.py",
    "unit/engine/exports/test_compilers_at_fault.py",
    "unit/engine/graphs/test_graphs_of_sets.py",
    "integration/test_server_process.py",
    "e2e/test_bad_sets.py",
    "unit/engine/attack/test_attack.py",
    "unit/engine/weights/test_memory.py",
    "integration/test_jobs.py",
    "unit/engine/dataset_circuits/test_clustering.py",
    "unit/engine/dataset_circuits/test_discovery.py",
    "unit/benchmarks/test_export_features.py",
    "integration/test_attribution_real.py",
    "unit/engine/exports/test_export.py",
    "e2e/test_bad_input.py",
    "integration/test_engine_laws_real.py",
    "integration/test_fitting.py",
    "integration/test_shift_real.py",
)
"""Files that take longest, longest first. A file stays on one worker, so one of these must not come last."""


def pytest_configure(config: pytest.Config) -> None:
    """Let the workers of `-n` take files in our order; xdist's own is by the number of their tests."""
    config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that all workers end at about the same time."""
    rank = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


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


@pytest.fixture(scope="session")
def clean_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmHost]:
    """What clean processes are forked off where the point is not how they start; started with the first."""
    folder = tmp_path_factory.mktemp("clean")
    host = WarmHost(folder, "-I", clean_environment(folder))
    yield host
    host.close()


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Let SIGINT interrupt, also where the tests were started in the background with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

"""What tests of the export benches share: cells that start warm."""

from __future__ import annotations

import pytest

from benchmarks import export_folders
from tests.warm_processes import WarmHost, WarmRuns


@pytest.fixture
def warm_cells(clean_host: WarmHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clean processes of an export bench be forks of one that has imported torch and transformers."""
    monkeypatch.setattr(export_folders, "subprocess", WarmRuns(clean_host))

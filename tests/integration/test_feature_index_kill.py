"""An index whose engine is killed goes on where it was, and ends as one that never was interrupted."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.builders import tiny_folder
from tests.unit.engine.features.test_feature_index import content
from trephine.domain.commands import Progress
from trephine.domain.errors import EngineLostError
from trephine.domain.features import IndexFeatures
from trephine.domain.models import LoadModel, ModelSource
from trephine.domain.ports import Engine
from trephine.ipc.engine_proxy import SubprocessEngineLauncher

pytestmark = pytest.mark.integration
TEXTS = [f"When Mary and John went to the {word} they gave a drink to the {word}" for word in "abcdefghijkl"]


async def loaded(folder: Path) -> Engine:
    engine = await SubprocessEngineLauncher(threads=1).launch()
    await engine.run(LoadModel(source=ModelSource(name="tiny", folder=str(folder))))
    return engine


async def test_killed_at_work_it_ends_with_the_same_bytes(tmp_path):
    """Kill -9 after some transactions loses what was not committed and nothing else."""
    folder = tiny_folder("llama", tmp_path / "tiny")
    corpus = tmp_path / "corpus"
    corpus.write_text("\n\n".join(TEXTS))
    whole, broken = (
        IndexFeatures(corpus=str(corpus), path=str(tmp_path / name), context_tokens=16, commit_tokens=40)
        for name in ("whole", "broken")
    )
    engine = await loaded(folder)
    expected = await engine.run(whole)
    seen: list[int] = []

    async def kill(progress: Progress) -> None:
        seen.append(progress.done)
        if progress.done > 100:
            os.kill(engine.pid, signal.SIGKILL)

    with pytest.raises(EngineLostError):
        await engine.run(broken, on_event=kill)
    await engine.close()
    engine, again = await loaded(folder), []

    async def note(progress: Progress) -> None:
        again.append(progress.done)

    assert await engine.run(broken, on_event=note) == expected
    await engine.close()
    assert again[0] > 0
    assert content(tmp_path / "broken") == content(tmp_path / "whole")

"""The fitting process as the engine runs it: to its end, killed, cancelled, refused."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.unit.engine.fitting.fits import SMALL, hosted_from_folder, kept, model_folder, request, text
from trephine.domain.commands import Progress
from trephine.domain.errors import BrokenCorpusError, FitFailedError, ParentChangedError
from trephine.domain.fitting import FitReplacementSet, FitReport
from trephine.engine.fitting import process as fitting_process
from trephine.engine.fitting.__main__ import load_unchanged
from trephine.engine.fitting.command import fit_replacement_set
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session

RECIPE = replace(SMALL, tokens=120_000)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """An engine that hosts a two-layer Llama from a folder."""
    return Session(hosted=hosted_from_folder(model_folder(tmp_path_factory.mktemp("model") / "tiny")))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of random words."""
    path = tmp_path_factory.mktemp("corpus") / "words.jsonl"
    path.write_text("\n".join(json.dumps({"text": text(400, seed)}) for seed in range(40)))
    return path


def asked(folder: Path, corpus: Path, recipe: Any = RECIPE) -> FitReplacementSet:
    """Ask for a fit."""
    return FitReplacementSet(
        recipe=recipe,
        corpus=str(corpus),
        corpus_name="words",
        folder=str(folder),
        checkpoints=str(kept(folder).work),
    )


def follow(
    work: Generator[Progress | None, None, FitReport], until: Callable[[Progress], bool]
) -> Progress | None:
    """Run until progress says enough."""
    return next(progress for progress in work if progress is not None and until(progress))


def children() -> list[psutil.Process]:
    """Fitting processes of this one."""
    found = psutil.Process().children(recursive=True)
    return [child for child in found if "trephine.engine.fitting" in " ".join(child.cmdline())]


def training(progress: Progress) -> bool:
    """Say whether training is under way."""
    return progress.stage == "local-0" and progress.done > 0


def test_a_fit_survives_two_deaths_and_leaves_nothing_but_the_set(
    session: Session, words: Path, tmp_path: Path
):
    """Killed with -9, and again by its engine's end, it goes on from checkpoints to the set."""
    command = asked(tmp_path / "set", words)
    work = fit_replacement_set(session, command)
    progress = follow(work, training)
    assert progress is not None
    assert progress.total == pytest.approx(RECIPE.tokens, rel=0.1)
    (child,) = children()
    assert child.nice() > psutil.Process().nice()
    assert os.getpgid(child.pid) == child.pid
    child.send_signal(signal.SIGKILL)
    with pytest.raises(FitFailedError, match="start the fit again"):
        finish(work)
    assert not (tmp_path / "set").exists()

    leave_alone(session, command)

    report = finish(fit_replacement_set(session, command))
    assert report.resumed == 2
    assert [layer.layer for layer in report.layers] == [0, 1]
    assert report.weight_hash == session.require_model().info.weight_hash
    assert not children()
    assert {path.name for path in (tmp_path / "set").iterdir()} == {
        "config.yaml",
        *(f"W_{part}_{layer}.safetensors" for part in ("enc", "dec") for layer in range(2)),
    }


def leave_alone(session: Session, command: FitReplacementSet) -> None:
    """Close the process's stdin, as the death of its engine does; it must end by itself."""
    started: list[Any] = []
    start = fitting_process._start

    def remembered(space: Any) -> Any:
        started.append(start(space))
        return started[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting_process, "_start", remembered)
        work = fit_replacement_set(session, command)
        follow(work, training)
    started[0].stdin.close()
    assert started[0].wait(60) == 70
    work.close()


def test_cancelling_ends_the_process_and_keeps_the_checkpoint(session: Session, words: Path, tmp_path: Path):
    """Closing the generator, as a cancellation does, leaves no process and something to go on from."""
    work = fit_replacement_set(session, asked(tmp_path / "set", words))
    follow(work, training)
    assert children()
    work.close()
    assert not children()
    assert list((kept(tmp_path / "set").work / "local-0").glob("chunk-*"))
    assert not (tmp_path / "set").exists()


def test_what_is_wrong_with_a_corpus_reaches_the_caller(session: Session, tmp_path: Path):
    """Errors of the process arrive as the typed errors that they are."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(bytes(range(256)) * 50)
    with pytest.raises(BrokenCorpusError, match="binary"):
        finish(fit_replacement_set(session, asked(tmp_path / "set", corpus)))
    assert not children()


def test_weights_that_changed_on_disk_are_noticed(session: Session, words: Path, tmp_path: Path):
    """The process compares what it loads with what is hosted."""
    made = request(tmp_path / "set", session.require_model(), words)
    with pytest.raises(ParentChangedError):
        load_unchanged(replace(made, weight_hash="0" * 64))

"""Exports and classifiers share a root: of one name there is one, whole, and the records say whose it is."""

from __future__ import annotations

import asyncio
import errno
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.engine import Script
from tests.unit.app.exports.test_edits_and_exports import OPERATION, REQUEST, ignore, leftovers, ready
from tests.unit.app.house import House
from tests.unit.app.sets.test_evaluations_and_fits import FITS, in_root
from tests.unit.app.sets.test_evaluations_and_fits import REQUEST as FIT
from tests.unit.app.sets.test_replacements import loaded
from tests.unit.app.spurious.test_spurious_removals import FIRST, _ready, _request
from trephine.app.exports import exports as exports_module
from trephine.app.exports.classifiers import Classifiers
from trephine.app.exports.exports import StoredExport
from trephine.app.jobs.requests import ExportClassifierRequest, ExportRequest
from trephine.app.sets import fits as fits_module
from trephine.app.sets.fits import StoredFit
from trephine.app.storage.records import RecordFolder
from trephine.domain.classifier_exports import ClassifierExport, ExportClassifier
from trephine.domain.errors import (
    AlreadyExistsError,
    DiskFullError,
    ExportTargetExistsError,
    ResourceNotFoundError,
)
from trephine.domain.operations import OperationState

SECOND = "d" * 32


def write_classifier(command: ExportClassifier) -> ClassifierExport:
    """What an engine does: one file in the folder that it is given."""
    folder = Path(command.folder)
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    return ClassifierExport(
        name=command.name,
        removal=command.removal,
        export=command.export,
        architecture="LlamaForSequenceClassification",
        labels=command.head.labels,
        files={"config.json": "0" * 64},
        sizes={"config.json": 2},
        checked_texts=1,
        largest_difference=0.0,
        agreeing=1,
    )


async def removed(root: Path) -> tuple[House, Classifiers, ExportClassifierRequest]:
    """A report, an export of its edit, and the request for a classifier on it, `judge`."""
    here, removals = await _ready(root)
    report = await removals.run(_request(), ignore, removal_id=FIRST)
    await here.exports.run(ExportRequest(edit="clean", export_id="clean"), ignore, operation_id=FIRST)
    classifiers = Classifiers(
        root / "state" / "classifiers-too",
        export_root=root / "published",
        models=here.models,
        edits=here.edits,
        exports=here.exports,
        removals=removals,
    )
    asked = ExportClassifierRequest(
        removal=report.name, export="clean", classifier_id="judge", texts=("abcdef",)
    )
    return here, classifiers, asked


async def test_a_classifier_whose_name_is_taken_while_it_is_made_is_refused_and_not_on_record(tmp_path):
    """By somebody who shares the root: no record of ours speaks of that folder, and nothing else is left."""
    here, classifiers, asked = await removed(tmp_path)

    def meanwhile(command: ExportClassifier) -> ClassifierExport:
        (tmp_path / "published" / "judge").mkdir()
        (tmp_path / "published" / "judge" / "theirs.txt").write_text("theirs")
        return write_classifier(command)

    here.launcher.latest.scripts[ExportClassifier] = meanwhile
    with pytest.raises(ExportTargetExistsError, match="judge exists in the export root"):
        await classifiers.run(asked, ignore, operation_id=SECOND)
    with pytest.raises(ResourceNotFoundError):
        await classifiers.get("judge")
    assert leftovers(here) == ["clean", "judge"]
    assert [path.name for path in (tmp_path / "published" / "judge").iterdir()] == ["theirs.txt"]


@pytest.mark.parametrize("number", [errno.ENOTEMPTY, errno.ENOSPC])
async def test_a_classifier_whose_rename_fails_is_not_on_record(tmp_path, monkeypatch, number):
    """A name that is taken at the last moment, and a disk without room for one: typed, and no record."""
    here, classifiers, asked = await removed(tmp_path)
    here.launcher.latest.scripts[ExportClassifier] = write_classifier
    with monkeypatch.context() as patch:
        patch.setattr(exports_module.os, "rename", _refusing(number))
        with pytest.raises(ExportTargetExistsError if number == errno.ENOTEMPTY else DiskFullError):
            await classifiers.run(asked, ignore, operation_id=SECOND)
    assert classifiers._records.read("judge") is None
    assert leftovers(here) == ["clean"]


async def test_of_an_export_and_a_classifier_of_one_name_one_is_published(tmp_path, monkeypatch):
    """They end together: the folder is whose record there is, and the other one is refused."""
    here, classifiers, asked = await removed(tmp_path)
    here.launcher.latest.scripts[ExportClassifier] = write_classifier
    write, inside = RecordFolder.write, threading.Event()

    def slow(self: Any, key: str, value: Any) -> None:
        write(self, key, value)
        if key == "judge":
            inside.wait(0.3)  # the other one ends now
            inside.set()

    monkeypatch.setattr(RecordFolder, "write", slow)
    ended = await asyncio.gather(
        here.exports.run(ExportRequest(edit="clean", export_id="judge"), ignore, operation_id=OPERATION),
        classifiers.run(asked, ignore, operation_id=SECOND),
        return_exceptions=True,
    )
    assert sorted(isinstance(one, ExportTargetExistsError) for one in ended) == [False, True]
    kept = [store._records.read("judge") for store in (here.exports, classifiers)]
    assert [one is None for one in kept] == [isinstance(one, Exception) for one in ended]
    assert leftovers(here) == ["clean", "judge"]


async def test_what_a_killed_classifier_left_is_swept_at_start(tmp_path):
    """Under the operation's name, as an export's is."""
    here, classifiers, asked = await removed(tmp_path)
    here.launcher.latest.scripts[ExportClassifier] = Script(result=write_classifier, hold=asyncio.Event())
    running = asyncio.create_task(classifiers.run(asked, ignore, operation_id=SECOND))
    while not isinstance(here.launcher.latest.commands[-1], ExportClassifier):
        await asyncio.sleep(0.001)
    built = Path(here.launcher.latest.commands[-1].folder)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    built.mkdir()  # a server that is killed removes nothing
    here.exports.sweep({SECOND})
    assert leftovers(here) == ["clean"]


async def test_a_cancellation_while_the_folder_is_published_comes_too_late(tmp_path, monkeypatch):
    """A thread goes on when its caller is cancelled: cleaning up under it would publish a part of it."""
    here = await ready(tmp_path)
    await here.operations.open()
    write, inside, go_on = RecordFolder.write, threading.Event(), threading.Event()

    def slow(self: Any, key: str, value: Any) -> None:
        write(self, key, value)
        if isinstance(value, StoredExport):
            inside.set()
            go_on.wait(30)

    monkeypatch.setattr(RecordFolder, "write", slow)
    record = await here.operations.start("ExportCheckpoint", REQUEST, request_id="r")
    while not inside.is_set():
        await asyncio.sleep(0.001)
    cancelling = asyncio.create_task(here.operations.cancel(record.id))
    for _ in range(50):
        await asyncio.sleep(0.002)
    assert leftovers(here) == [f".trephine-tmp-{record.id}"]
    go_on.set()
    assert (await cancelling).state is OperationState.SUCCEEDED
    export = await here.exports.get("edited")
    assert (Path(export.folder) / "model.safetensors").stat().st_size == export.files[0].size
    assert leftovers(here) == ["edited"]


async def test_a_new_version_is_written_to_its_end_before_the_next_one_is_read(tmp_path, monkeypatch):
    """A caller that leaves while its edit is written must not write over the one that comes after it."""
    here = await ready(tmp_path)
    write, inside, go_on = RecordFolder.write, threading.Event(), threading.Event()

    def slow(self: Any, key: str, value: Any) -> None:
        if not inside.is_set():
            inside.set()
            go_on.wait(30)
        write(self, key, value)

    monkeypatch.setattr(RecordFolder, "write", slow)
    stored = await here.edits._store.stored("no-mary")
    first, second = (replace(stored.edit, reason=reason) for reason in ("first", "second"))

    async def add(edit: Any) -> None:
        async with here.edits._store.writing:
            last = await here.edits._store.stored("no-mary")
            following = replace(edit, version=last.edit.version + 1)
            await here.edits._store.write(last.followed_by(following, "", ""))

    leaving = asyncio.create_task(add(first))
    while not inside.is_set():
        await asyncio.sleep(0.001)
    leaving.cancel()
    after = asyncio.create_task(add(second))
    for _ in range(50):
        await asyncio.sleep(0.002)
    go_on.set()
    await asyncio.gather(leaving, after, return_exceptions=True)
    assert [one.reason for one in await here.edits.versions("no-mary")][:2] == ["second", "first"]


@pytest.mark.parametrize("place", ["mkdir", "rename"])
async def test_an_export_without_room_for_a_name_is_a_typed_error(tmp_path, monkeypatch, place):
    """The disk is full where the folder is begun, and where it is given its name: no record, nothing left."""
    here = await ready(tmp_path)
    with monkeypatch.context() as patch:
        if place == "rename":
            patch.setattr(exports_module.os, "rename", _refusing(errno.ENOSPC))
        else:
            patch.setattr(exports_module.Path, "mkdir", _refusing(errno.ENOSPC))
        with pytest.raises(DiskFullError, match="free some space"):
            await here.exports.run(REQUEST, ignore, operation_id=OPERATION)
    assert here.exports._records.read("edited") is None
    assert leftovers(here) == []


def _refusing(number: int) -> Any:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "refused")

    return refuse


async def test_a_cancellation_while_a_fitted_set_is_published_comes_too_late_as_well(tmp_path, monkeypatch):
    """A set of which files were swept under its rename would be loaded by nobody."""
    here = await loaded(tmp_path, FITS)
    write, inside, go_on = RecordFolder.write, threading.Event(), threading.Event()

    def slow(self: Any, key: str, value: Any) -> None:
        write(self, key, value)
        if isinstance(value, StoredFit):
            inside.set()
            go_on.wait(30)

    monkeypatch.setattr(RecordFolder, "write", slow)
    running = asyncio.create_task(here.fits.run(FIT, ignore, fit_id=FIRST))
    while not inside.is_set():
        await asyncio.sleep(0.001)
    running.cancel()
    for _ in range(50):
        await asyncio.sleep(0.002)
    go_on.set()
    assert (await running).set_id == "mine"
    assert in_root(here) == ["mine", "small"]
    names = [
        sorted(path.name for path in (tmp_path / "replacements" / one).iterdir()) for one in in_root(here)
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("taken", [False, True])
async def test_a_fitted_set_that_gets_no_name_is_not_on_record(tmp_path, monkeypatch, taken):
    """Neither where the disk has no room for one nor where somebody took it: no fit is told to have ended."""
    here = await loaded(tmp_path, FITS)

    def refuse(built: Path, final: Path) -> None:
        if taken:
            final.mkdir()
            (final / "theirs.txt").write_text("theirs")
        raise OSError(errno.ENOTEMPTY if taken else errno.ENOSPC, "refused")

    monkeypatch.setattr(fits_module, "publish_folder", refuse)
    with pytest.raises(AlreadyExistsError if taken else DiskFullError):
        await here.fits.run(FIT, ignore, fit_id=FIRST)
    with pytest.raises(ResourceNotFoundError, match="there is no fit"):
        await here.fits.get(FIRST)
    assert in_root(here) == (["mine", "small"] if taken else ["small"])

"""What is published under a name is what the server's record says, and stays it."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.builders import tiny_folder
from tests.unit.app.exports.test_edits_and_exports import OPERATION, REQUEST, ignore, leftovers, ready
from tests.unit.engine.exporting import edit_of, exported, hosted_in, write_key
from tests.unit.engine.interventions import neuron
from trephine.app.exports import exports as exports_module
from trephine.app.exports.exports import Exports, StoredExport
from trephine.domain.errors import CheckpointUnverifiedError, ExportTargetExistsError
from trephine.domain.exports import Export
from trephine.domain.interventions import Ablate, Scale


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Export, Export]:
    """Two exports of one parent, of two edits, signed with two keys (`a.pem`, `b.pem`); never changed."""
    base = tmp_path_factory.mktemp("made")
    hosted = hosted_in(tiny_folder("llama", base / "parent"))
    edits = (edit_of(hosted, neuron(0, 3, Ablate())), edit_of(hosted, neuron(1, 5, Scale(factor=0.5))))
    made = [
        exported(hosted, edit, base / name, signing_key=str(write_key(base / f"{name}.pem")))
        for name, edit in zip("ab", edits, strict=True)
    ]
    return made[0], made[1]


def served(root: Path, export: Export, key: Path | None) -> Exports:
    """A server's exports after it published this one as `a`, its key being that one."""
    exports = Exports(
        root / "records", export_root=root / "published", models=None, edits=None, signing_key=key
    )  # type: ignore[arg-type]
    shutil.copytree(export.folder, root / "published" / "a")
    stored = replace(export, name="a", folder=str(root / "published" / "a"))
    exports._records.write("a", StoredExport(export=stored, operation_id=OPERATION))
    return exports


@pytest.mark.integration
async def test_a_whole_folder_that_another_key_signed_is_not_the_one_published(tmp_path, made):
    """It verifies by itself; under the record's name it does not, and every file is named."""
    own, other = made
    exports = served(tmp_path, own, Path(own.folder).with_name("a.pem"))
    good = await exports.verify("a")
    assert (good.passed, good.problems) == (True, ())
    assert good.notes == ("signed with the key whose public half is public_key.pem",)
    shutil.rmtree(tmp_path / "published" / "a")
    shutil.copytree(other.folder, tmp_path / "published" / "a")
    swapped = await exports.verify("a")
    assert not swapped.passed
    for name in ("trephine.sig", "public_key.pem", "certificate.json", "edit_manifest.json"):
        assert f"{name}: is not the file that this server published" in swapped.problems
    assert not any(problem.startswith("config.json") for problem in swapped.problems)


@pytest.mark.integration
async def test_a_key_that_was_changed_since_leaves_what_it_signed(tmp_path, made):
    """The record has the key's digest: the folder passes, and the note says whose key it is."""
    own, _ = made
    exports = served(tmp_path, own, write_key(tmp_path / "new.pem"))
    outcome = await exports.verify("a")
    assert outcome.passed
    assert any("not this server's of today" in note for note in outcome.notes)


async def test_a_pipe_in_place_of_a_listed_file_is_not_waited_for(tmp_path):
    """It is not what was published."""
    here = await ready(tmp_path)
    await here.exports.run(REQUEST, ignore, operation_id=OPERATION)
    file = tmp_path / "published" / "edited" / "model.safetensors"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CheckpointUnverifiedError):
        await asyncio.wait_for(anext(here.exports.file_chunks("edited", "model.safetensors")), 10)


async def test_a_file_that_was_changed_on_the_disk_is_told_where_its_last_byte_is_read(tmp_path):
    """Trying again would bring the same: what helps is another name. From an offset nothing is known."""
    here = await ready(tmp_path)
    await here.exports.run(REQUEST, ignore, operation_id=OPERATION)
    file = tmp_path / "published" / "edited" / "model.safetensors"
    whole = file.read_bytes()
    read = b"".join([data async for _, data in here.exports.file_chunks("edited", "model.safetensors")])
    assert read == whole
    file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(CheckpointUnverifiedError, match="under another name"):
        async for _ in here.exports.file_chunks("edited", "model.safetensors"):
            pass
    rest = [data async for _, data in here.exports.file_chunks("edited", "model.safetensors", 1)]
    assert b"".join(rest) == whole[1:]


async def test_of_two_that_end_together_one_is_published_and_one_refused(tmp_path, monkeypatch):
    """The folder is the one that the record tells of, whatever the order; nothing else is left."""
    here = await ready(tmp_path)
    write, inside = exports_module.RecordFolder.write, threading.Event()

    def slow(self, key, value) -> None:
        write(self, key, value)
        if isinstance(value, StoredExport):
            inside.wait(0.3)  # the other one ends now
            inside.set()

    monkeypatch.setattr(exports_module.RecordFolder, "write", slow)
    operations = ["1" * 32, "2" * 32]
    ended = await asyncio.gather(
        *(here.exports.run(REQUEST, ignore, operation_id=one) for one in operations), return_exceptions=True
    )
    refused = [one for one in ended if isinstance(one, Exception)]
    assert [type(one) for one in refused] == [ExportTargetExistsError]
    stored = here.exports._records.read("edited")
    assert stored.operation_id == operations[ended.index(stored.export)]
    assert leftovers(here) == ["edited"]


@pytest.mark.parametrize("number", [errno.ENOTEMPTY, errno.EEXIST])
async def test_a_name_that_is_taken_at_the_last_moment_is_a_typed_error(tmp_path, monkeypatch, number):
    """By somebody who shares the export root: no record of ours speaks of that folder."""
    here = await ready(tmp_path)

    def taken(source, target) -> None:
        raise OSError(number, "taken")

    with monkeypatch.context() as patch:
        patch.setattr(exports_module.os, "rename", taken)
        with pytest.raises(ExportTargetExistsError, match="edited exists in the export root"):
            await here.exports.run(REQUEST, ignore, operation_id=OPERATION)
    assert here.exports._records.read("edited") is None
    assert leftovers(here) == []

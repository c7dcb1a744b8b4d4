"""Edits, and what is published from them."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.engine import Script
from tests.unit.app.house import House, compile_export, house, model_info, plan_for
from trephine.app.exports import exports as exports_module
from trephine.app.exports import verification
from trephine.app.jobs.requests import ExportRequest
from trephine.app.storage.files import full_disk_is_typed
from trephine.domain.commands import Progress
from trephine.domain.edits import Edit
from trephine.domain.errors import (
    AlreadyExistsError,
    CheckpointUnverifiedError,
    EditNotExpressibleError,
    ExportTargetExistsError,
    FeatureOutOfRangeError,
    GateMissedError,
    InternalError,
    InvalidRequestError,
    LayerOutOfRangeError,
    ModelNotReadyError,
    ParentChangedError,
    PathDeniedError,
    RequestIdReusedError,
    ResourceNotFoundError,
)
from trephine.domain.exports import CompileExport, PlanExport
from trephine.domain.interventions import (
    Ablate,
    DirectionTarget,
    FeatureTarget,
    Intervention,
    ProjectOut,
)
from trephine.domain.models import LoadModel
from trephine.domain.operations import OperationState
from trephine.domain.sites import FeatureRef, Site, SiteKind

REQUEST = ExportRequest(edit="no-mary", export_id="edited")
OPERATION = "0" * 32


def ablate(layer: int = 1, index: int = 3) -> Intervention:
    """Ablate one neuron everywhere."""
    return Intervention(
        target=FeatureTarget(feature=FeatureRef(layer=layer, index=index)), operation=Ablate()
    )


def ignore(_: Progress) -> None:
    """Nobody listens."""


async def ready(root: Path, **scripts: Any) -> House:
    """A house with `tiny` loaded and the edit `no-mary` stored."""
    here = house(root, {globals()[name]: script for name, script in scripts.items()})
    await here.models.load(here.models.resolve("tiny"), ignore)
    if not (root / "state" / "edits" / "no-mary.json").exists():
        await create(here)
    return here


async def create(here: House, edit_id: str = "no-mary", interventions=None, **fields: Any) -> Edit:
    """Store an edit."""
    given = {"reason": "a test", "author": "me", "request_id": "", **fields}
    return await here.edits.create(
        edit_id, "models/tiny", [ablate()] if interventions is None else interventions, **given
    )


def leftovers(here: House) -> list[str]:
    """Names in the export root."""
    return sorted(path.name for path in (here.root / "published").iterdir())


async def test_edit_is_for_the_weights_that_are_loaded(tmp_path):
    """An edit names the weights; its hash covers them and the interventions, not name or author."""
    here = await ready(tmp_path)
    edit = await here.edits.get("edits/no-mary")
    assert (edit.weight_hash, edit.model, edit.version) == ("w" * 64, "tiny", 1)
    same = await create(here, "other", author="somebody else")
    changed = await create(here, "third", [ablate(index=4)])
    assert same.content_hash == edit.content_hash != changed.content_hash
    here.launcher.scripts[LoadModel] = lambda command: model_info("tiny", "v" * 64)
    here.launcher.latest.lose()
    assert (await create(here, "fourth")).content_hash != edit.content_hash


async def test_edits_survive_a_restart_newest_first(tmp_path):
    """The next server lists them; deleting forgets."""
    here = await ready(tmp_path)
    await here.clock.advance(1)
    newer = await create(here, "newer")
    again = house(tmp_path)
    assert [edit.name for edit in await again.edits.list()] == ["newer", "no-mary"]
    assert await again.edits.get("newer") == newer
    await again.edits.delete("edits/newer")
    for question in (again.edits.get, again.edits.delete):
        with pytest.raises(ResourceNotFoundError):
            await question("newer")


async def test_same_request_creates_once(tmp_path):
    """A repeated request returns the same edit; another one under its id is refused."""
    here = await ready(tmp_path)
    first = await create(here, "twice", request_id="r")
    assert await create(here, "twice", request_id="r") == first
    with pytest.raises(RequestIdReusedError):
        await create(here, "twice", [ablate(index=5)], request_id="r")
    with pytest.raises(RequestIdReusedError):
        await create(here, "elsewhere", request_id="r")
    with pytest.raises(AlreadyExistsError):
        await create(here, "twice", request_id="another")


@pytest.mark.parametrize(
    ("intervention", "error", "field"),
    [
        (ablate(layer=2), LayerOutOfRangeError, "interventions[0].target.feature.layer"),
        (ablate(layer=-1), LayerOutOfRangeError, "interventions[0].target.feature.layer"),
        (ablate(index=16), FeatureOutOfRangeError, "interventions[0].target.feature.index"),
        (
            Intervention(
                target=DirectionTarget(site=Site(kind=SiteKind.MLP_OUT, layer=9), vector=(1.0,)),
                operation=ProjectOut(),
            ),
            LayerOutOfRangeError,
            "interventions[0].target.site.layer",
        ),
    ],
)
async def test_edit_of_what_the_model_has_not_is_refused(tmp_path, intervention, error, field):
    """Layers and features are checked against the model, and the field is named."""
    here = await ready(tmp_path)
    with pytest.raises(error) as caught:
        await create(here, "bad", [intervention])
    assert caught.value.context["field"] == field


async def test_edit_needs_a_loaded_model_interventions_and_a_proper_name(tmp_path):
    """Each lack is refused by its own error."""
    here = house(tmp_path)
    with pytest.raises(ModelNotReadyError):
        await create(here)
    with pytest.raises(InvalidRequestError):
        await create(here, interventions=[])
    with pytest.raises(InvalidRequestError):
        await create(here, "../../x")


async def test_export_is_published_by_the_last_rename(tmp_path):
    """The engine builds elsewhere; the folder appears under its name, complete; nothing else is left."""
    here = await ready(tmp_path)
    export = await here.exports.run(REQUEST, ignore, operation_id=OPERATION)
    built = next(c for c in here.launcher.latest.commands if isinstance(c, CompileExport))
    assert Path(built.folder).parent.name == f".trephine-tmp-{OPERATION}"
    assert (export.name, export.folder) == ("edited", str(tmp_path / "published" / "edited"))
    assert leftovers(here) == ["edited"]
    assert await house(tmp_path).exports.get("exports/edited") == export


async def test_an_export_that_is_asked_for_by_the_start_of_its_name_is_named(tmp_path):
    """Exports are called by their edit and a digest, and folders by whoever fetched them."""
    here = await ready(tmp_path)
    await here.exports.run(replace(REQUEST, export_id="quiet-1f2e3d"), ignore, operation_id=OPERATION)
    with pytest.raises(ResourceNotFoundError, match="there is no export quiet; there is quiet-1f2e3d"):
        await here.exports.get("exports/quiet")
    with pytest.raises(ResourceNotFoundError, match=r"there is no export qui$"):
        await here.exports.get("exports/qui")


async def test_second_run_of_the_same_operation_publishes_nothing(tmp_path):
    """After a crash behind the rename, the operation finds its own export."""
    here = await ready(tmp_path)
    first = await here.exports.run(REQUEST, ignore, operation_id=OPERATION)
    count = len(here.launcher.latest.commands)
    assert await here.exports.run(REQUEST, ignore, operation_id=OPERATION) == first
    assert len(here.launcher.latest.commands) == count


async def test_taken_name_is_refused_whoever_took_it(tmp_path):
    """Another operation's export and a foreign folder both stay untouched."""
    here = await ready(tmp_path)
    await here.exports.run(REQUEST, ignore, operation_id=OPERATION)
    (tmp_path / "published" / "foreign").mkdir()
    for name in ("edited", "foreign"):
        request = replace(REQUEST, export_id=name)
        with pytest.raises(ExportTargetExistsError):
            await here.exports.check(request, operation_id="1" * 32)
        with pytest.raises(ExportTargetExistsError):
            await here.exports.run(request, ignore, operation_id="1" * 32)
    assert leftovers(here) == ["edited", "foreign"]


async def test_export_root_that_may_not_be_written_to_is_refused_before_an_operation(tmp_path, monkeypatch):
    """A file system that is mounted to be read alone says so here and not after minutes of work."""
    here = await ready(tmp_path)
    monkeypatch.setattr(
        "trephine.app.exports.exports.os.access", lambda path, mode: "published" not in str(path)
    )
    with pytest.raises(PathDeniedError, match="export root"):
        await here.exports.check(REQUEST, operation_id=OPERATION)
    assert leftovers(here) == []


async def test_crash_between_record_and_rename_is_no_export(tmp_path, monkeypatch):
    """A record whose folder never came is not listed; the rerun publishes."""
    here = await ready(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(exports_module.os, "rename", _die)
        with pytest.raises(KeyboardInterrupt):
            await here.exports.run(REQUEST, ignore, operation_id=OPERATION)
    with pytest.raises(ResourceNotFoundError):
        await here.exports.get("edited")
    assert await here.exports.list() == ()
    await here.exports.run(REQUEST, ignore, operation_id=OPERATION)
    assert leftovers(here) == ["edited"]


def _die(*_: object) -> None:
    raise KeyboardInterrupt


async def test_missed_gate_leaves_nothing_or_what_was_asked_for(tmp_path):
    """Nothing is published; `NAME.rejected` is kept only on request."""

    def reject(command: CompileExport) -> GateMissedError:
        export = compile_export(command)
        if command.keep_rejected:
            os.rename(export.folder, f"{export.folder}.rejected")
        return GateMissedError("KL 0.2 above 0.1", gate="kl")

    here = await ready(tmp_path, CompileExport=reject)
    with pytest.raises(GateMissedError):
        await here.exports.run(REQUEST, ignore, operation_id=OPERATION)
    assert leftovers(here) == []
    with pytest.raises(GateMissedError):
        await here.exports.run(replace(REQUEST, keep_rejected=True), ignore, operation_id=OPERATION)
    assert leftovers(here) == ["edited.rejected"]
    with pytest.raises(ExportTargetExistsError, match=r"edited\.rejected.*without keeping what is rejected"):
        await here.exports.check(replace(REQUEST, keep_rejected=True), operation_id=OPERATION)
    await here.exports.check(REQUEST, operation_id=OPERATION)
    with pytest.raises(ResourceNotFoundError):
        await here.exports.get("edited")


async def test_leftovers_of_own_operations_are_swept_at_start(tmp_path):
    """Only staging folders of known operations go: another server may share the root."""
    here = await ready(tmp_path)
    for name in ("aaa", "bbb"):
        (tmp_path / "published" / f".trephine-tmp-{name}" / "x").mkdir(parents=True)
    here.exports.sweep({"aaa"})
    assert leftovers(here) == [".trephine-tmp-bbb"]


async def test_other_weights_are_refused(tmp_path):
    """An edit made for other weights is neither planned nor exported."""
    here = await ready(tmp_path)
    here.launcher.scripts[LoadModel] = lambda command: model_info("tiny", "v" * 64)
    here.launcher.latest.lose()
    with pytest.raises(ParentChangedError):
        await here.exports.plan("no-mary")
    with pytest.raises(ParentChangedError):
        await here.exports.run(REQUEST, ignore, operation_id=OPERATION)
    assert leftovers(here) == []


async def test_inexpressible_edit_fails_before_an_operation(tmp_path):
    """The plan's refusal reaches the caller at once, with its field."""
    refusal = EditNotExpressibleError("position-bound", field="interventions[0].selector.positions")
    here = await ready(tmp_path, PlanExport=refusal)
    await here.operations.open()
    with pytest.raises(EditNotExpressibleError):
        await here.operations.start("ExportCheckpoint", REQUEST, request_id="r")
    assert here.operations.list() == ()


async def test_export_operation_survives_its_engine(tmp_path):
    """Kill of the engine in the middle of an export: the second attempt publishes, once."""
    here = await ready(tmp_path, CompileExport=Script(hold=asyncio.Event(), result=compile_export))
    await here.operations.open()
    record = await here.operations.start("ExportCheckpoint", REQUEST, request_id="r")
    while not isinstance(here.launcher.latest.commands[-1], CompileExport):
        await asyncio.sleep(0.001)
    lost = here.launcher.latest
    here.launcher.scripts[CompileExport] = compile_export
    lost.lose()
    record = await here.operations.wait(record.id)
    assert (record.state, record.attempts, record.result) == (OperationState.SUCCEEDED, 2, "exports/edited")
    assert leftovers(here) == ["edited"]


async def test_cancelled_export_leaves_nothing(tmp_path):
    """Cancelling removes what was built."""
    here = await ready(tmp_path, CompileExport=Script(hold=asyncio.Event(), result=compile_export))
    await here.operations.open()
    record = await here.operations.start("ExportCheckpoint", REQUEST, request_id="r")
    while not isinstance(here.launcher.latest.commands[-1], CompileExport):
        await asyncio.sleep(0.001)
    assert leftovers(here) == [f".trephine-tmp-{record.id}"]
    assert (await here.operations.cancel(record.id)).state is OperationState.CANCELLED
    assert leftovers(here) == []


async def test_full_disk_while_recording_publishes_nothing(tmp_path, monkeypatch):
    """No room for the record: a DISK_FULL failure, and no folder."""
    here = await ready(tmp_path)
    await here.operations.open()
    real = exports_module.RecordFolder.write

    def full(self, key, value) -> None:
        if isinstance(value, exports_module.StoredExport):
            with full_disk_is_typed("x"):
                raise OSError(errno.ENOSPC, "full")
        real(self, key, value)

    monkeypatch.setattr(exports_module.RecordFolder, "write", full)
    record = await here.operations.start("ExportCheckpoint", REQUEST, request_id="r")
    record = await here.operations.wait(record.id)
    assert record.failure.reason == "DISK_FULL"
    assert leftovers(here) == []


async def test_only_listed_files_are_read(tmp_path):
    """Files come in pieces of at most 512 KiB from any offset; nothing that is not listed is served."""
    here = await ready(tmp_path)
    await here.exports.run(REQUEST, ignore, operation_id=OPERATION)
    pieces = [piece async for piece in here.exports.file_chunks("exports/edited", "model.safetensors")]
    assert [offset for offset, _ in pieces] == [0, 524288, 1048576]
    assert b"".join(data for _, data in pieces) == b"x" * 1_200_000
    tail = [piece async for piece in here.exports.file_chunks("edited", "model.safetensors", 1_199_999)]
    assert tail == [(1_199_999, b"x")]
    for path in ("secret.txt", "../../state/edits/no-mary.json", "/etc/passwd", ""):
        with pytest.raises(ResourceNotFoundError):
            await anext(here.exports.file_chunks("edited", path))
    with pytest.raises(InvalidRequestError):
        await anext(here.exports.file_chunks("edited", "model.safetensors", 1_200_001))


async def test_link_in_place_of_a_listed_file_is_not_followed(tmp_path):
    """Swapping a published file for a link leads nowhere."""
    here = await ready(tmp_path)
    await here.exports.run(REQUEST, ignore, operation_id=OPERATION)
    file = tmp_path / "published" / "edited" / "model.safetensors"
    file.unlink()
    file.symlink_to("/etc/passwd")
    with pytest.raises(CheckpointUnverifiedError):
        await anext(here.exports.file_chunks("edited", "model.safetensors"))
    file.unlink()
    with pytest.raises(CheckpointUnverifiedError):
        await anext(here.exports.file_chunks("edited", "model.safetensors"))


async def test_silent_verifier_is_no_pass(tmp_path, monkeypatch):
    """A verifier that crashes or says nothing readable is an error."""
    here = await ready(tmp_path)
    await here.exports.run(REQUEST, ignore, operation_id=OPERATION)
    monkeypatch.setattr(verification, "_MODULE", "json.tool.absent")
    with pytest.raises(InternalError):
        await here.exports.verify("edited")


async def test_planning_writes_nothing(tmp_path):
    """A plan comes from the engine and touches no file."""
    here = await ready(tmp_path, PlanExport=lambda command: replace(plan_for(command.edit), plan_hash="q"))
    assert (await here.exports.plan("edits/no-mary", "models/tiny")).plan_hash == "q"
    assert isinstance(here.launcher.latest.commands[-1], PlanExport)
    assert leftovers(here) == []

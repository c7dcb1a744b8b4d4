"""Reports of removals and the edits that are made of them, where two of them want one name."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.engine import Script
from tests.spurious_report import judged, report
from tests.spurious_texts import ambiguous, attribute_texts
from tests.unit.app.house import House, house
from trephine.app.exports.classifiers import Classifiers, _removes_the_same
from trephine.app.features.feature_sets import FeatureSet
from trephine.app.jobs.requests import ExportClassifierRequest, ExportRequest, RemoveSpuriousRequest
from trephine.app.spurious.spurious_removals import SpuriousRemovals, StoredRemoval
from trephine.app.storage.records import encode
from trephine.domain.commands import Progress
from trephine.domain.edits import Edit, EditSet
from trephine.domain.errors import (
    AlreadyExistsError,
    DiskFullError,
    InvalidRequestError,
    LayerOutOfRangeError,
    ParentChangedError,
)
from trephine.domain.interventions import Ablate, FeatureTarget, Intervention
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_checks import CheckedSpuriousRemoval, CheckSpuriousRemoval
from trephine.domain.spurious_removal import (
    MAX_CANDIDATES,
    Judge,
    RemovalBudget,
    RemoveSpuriousFeatures,
    Standing,
)
from trephine.ipc.frames import DEFAULT_LIMITS

FIRST, SECOND = "a" * 32, "b" * 32
GONE = Intervention(
    target=FeatureTarget(feature=FeatureRef(layer=1, index=3)), operation=Ablate(), label="spurious"
)
NEIGHBOUR = replace(GONE, target=FeatureTarget(feature=FeatureRef(layer=1, index=4)))
FOUND = replace(report(), interventions=(GONE,), weight_hash="w" * 64)

CHECKED = CheckedSpuriousRemoval(features=32, texts=140, tokens=1400, longest=10)


def _ignore(_: Progress) -> None:
    """Nobody listens."""


async def _ready(root: Path, found: Any = FOUND) -> tuple[House, SpuriousRemovals]:
    here = house(root, {RemoveSpuriousFeatures: found, CheckSpuriousRemoval: CHECKED})
    await here.models.load(here.models.resolve("tiny"), _ignore)
    removals = SpuriousRemovals(
        root / "state" / "removals",
        models=here.models,
        edits=here.edits,
        sets=here.feature_sets,
        artifacts=here.artifacts,
        clock=here.clock,
    )
    return here, removals


def _request(**changed: Any) -> RemoveSpuriousRequest:
    given = {
        "model": "tiny",
        "command": RemoveSpuriousFeatures(training=ambiguous(), attribute_texts=attribute_texts()),
        "edit_id": "clean",
        "unproven": True,
        "author": "us",
    }
    return RemoveSpuriousRequest(**{**given, **changed})


async def _until_begun(here: House, count: int) -> None:
    """Wait for so many removals in the engine."""
    while sum(isinstance(one, RemoveSpuriousFeatures) for one in here.launcher.latest.commands) < count:
        await asyncio.sleep(0.001)


async def test_a_report_outlives_the_loss_of_its_edits_name(tmp_path):
    """Two ask for one name while it is free: both reports are stored, and the second says what to do."""
    hold = asyncio.Event()
    here, removals = await _ready(tmp_path, Script(result=FOUND, hold=hold))
    running = [
        asyncio.create_task(removals.run(_request(), _ignore, removal_id=one)) for one in (FIRST, SECOND)
    ]
    await _until_begun(here, 2)
    hold.set()
    stored = await asyncio.gather(*running)
    assert sorted(one.edit for one in stored) == ["", "clean@1"]
    (without,) = [one for one in stored if not one.edit]
    assert without.unmade == "clean"
    caveat = without.found.caveats[-1]
    assert caveat.startswith("the edit clean was not made: there is an edit clean; ")
    assert f"under a free name, with {without.name} as its evidence" in caveat
    assert without.found.interventions == FOUND.interventions
    assert {one.name for one in await removals.list()} == {one.name for one in stored}
    assert await removals.get(without.name) == without
    page = await removals.render(without.name)
    assert "none: clean could not be made" in (await here.artifacts.read(page.sha256)).decode()
    with pytest.raises(AlreadyExistsError):
        await removals.run(_request(), _ignore, removal_id="c" * 32)


async def test_what_the_engine_refuses_is_no_operation(tmp_path):
    """Asked before one is made of it, and before a prediction; the work itself reads its texts once."""
    here, removals = await _ready(tmp_path)
    await removals.check(_request())
    await removals.run(_request(), _ignore, removal_id=FIRST)
    asked = [type(one) for one in here.launcher.latest.commands]
    assert asked.count(CheckSpuriousRemoval) == asked.count(RemoveSpuriousFeatures) == 1
    here.launcher.latest.scripts[CheckSpuriousRemoval] = LayerOutOfRangeError("layers 0 to 1", layer=40)
    with pytest.raises(LayerOutOfRangeError):
        await removals.predict(_request(edit_id=""))
    with pytest.raises(LayerOutOfRangeError):
        await here.operations.start("RemoveSpuriousFeatures", _request(edit_id=""), request_id="late")
    assert here.journal.unfinished() == ()


async def test_a_repeated_run_makes_its_edit_once(tmp_path):
    """The server may have ended between the edit and the report."""
    here, removals = await _ready(tmp_path)
    first = await removals.run(_request(), _ignore, removal_id=FIRST)
    (tmp_path / "state" / "removals" / f"{FIRST}.json").unlink()
    again = await removals.run(_request(), _ignore, removal_id=FIRST)
    assert (again.edit, again.unmade, again.found.caveats) == (first.edit, "", first.found.caveats)
    assert [edit.name for edit in await here.edits.list()] == ["clean"]


def _ended_by(making: Any, *, first: bool) -> Any:
    """Make an edit, or do not, and end as a server that is killed there does: nothing else is written."""

    async def create(*given: Any) -> Any:
        if not first:
            await making(*given)
        raise asyncio.CancelledError

    return create


@pytest.mark.parametrize("first", [True, False])
async def test_work_that_ends_beside_its_edit_leaves_report_and_edit_together(
    tmp_path, monkeypatch, first: bool
):
    """Before the edit or behind it: the report is there, names what was made, and is not worked out again."""
    here, removals = await _ready(tmp_path)
    monkeypatch.setattr(here.edits, "create", _ended_by(here.edits.create, first=first))
    with pytest.raises(asyncio.CancelledError):
        await removals.run(_request(), _ignore, removal_id=FIRST)
    monkeypatch.undo()
    left = await removals.get(FIRST)
    assert left.found == FOUND
    assert left.edit == ("" if first else "clean@1")
    assert [one.edit for one in await removals.list()] == [left.edit]
    assert [edit.evidence for edit in await here.edits.list()] == ([] if first else [(left.name,)])
    again = await removals.run(_request(), _ignore, removal_id=FIRST)
    assert (again.edit, again.unmade, again.awaited) == ("clean@1", "", "")
    assert await removals.get(FIRST) == again
    assert len(await here.edits.list()) == 1
    asked = [one for one in here.launcher.latest.commands if isinstance(one, RemoveSpuriousFeatures)]
    assert len(asked) == 1, "an hour's work is not done twice"


async def test_a_report_that_cannot_be_stored_leaves_no_edit(tmp_path, monkeypatch):
    """Its evidence would be of a report that there is not."""
    here, removals = await _ready(tmp_path)

    def full(*_: Any) -> None:
        raise DiskFullError("no room")

    monkeypatch.setattr(removals._records, "write", full)
    with pytest.raises(DiskFullError):
        await removals.run(_request(), _ignore, removal_id=FIRST)
    assert await here.edits.list() == ()


async def test_no_edit_is_made_for_what_was_not_measured(tmp_path, monkeypatch):
    """Other weights under the model's name, or another set under the set's, while the work went on."""
    here, removals = await _ready(tmp_path, replace(FOUND, weight_hash="v" * 64))
    found = await removals.run(_request(), _ignore, removal_id=FIRST)
    assert (found.edit, found.unmade) == ("", "clean")
    said = found.found.caveats[-1]
    assert "tiny has other weights now than those that were measured" in said
    assert "load what was measured, and create an edit" in said
    measured = replace(FOUND, replacement="words", set_hash="before")
    here, removals = await _ready(tmp_path / "sets", measured)

    async def exchanged(model: str, name: str) -> FeatureSet:
        info = await here.models.info(model)
        return FeatureSet(name=name, content_hash="after", model=info, sizes={1: 8})

    monkeypatch.setattr(here.feature_sets, "get", exchanged)
    found = await removals.run(_request(), _ignore, removal_id=FIRST)
    assert found.unmade == "clean"
    assert "the set words that is loaded now is another one than was measured" in found.found.caveats[-1]
    assert await here.edits.list() == ()


async def _exported(here: House, edit: str, intervention: Intervention, operation_id: str) -> str:
    await here.edits.create(edit, "tiny", [intervention], "by hand", "us")
    request = ExportRequest(edit=edit, export_id=f"{edit}-out")
    return (await here.exports.run(request, _ignore, operation_id=operation_id)).name


async def test_an_edit_that_is_made_by_hand_carries_the_head(tmp_path):
    """Of a report whose edit could not be made: one that does the same, and no other."""
    hold = asyncio.Event()
    here, removals = await _ready(tmp_path, Script(result=FOUND, hold=hold))
    running = asyncio.create_task(removals.run(_request(), _ignore, removal_id=FIRST))
    await _until_begun(here, 1)
    other = await _exported(here, "clean", NEIGHBOUR, "1" * 32)
    hold.set()
    lost = await running
    assert (lost.edit, lost.unmade) == ("", "clean")
    by_hand = await _exported(here, "by-hand", replace(GONE, label=""), "2" * 32)
    classifiers = Classifiers(
        tmp_path / "state" / "classifiers-too",
        export_root=tmp_path / "published",
        models=here.models,
        edits=here.edits,
        exports=here.exports,
        removals=removals,
    )

    def asked(export: str, removal: str = lost.name) -> ExportClassifierRequest:
        return ExportClassifierRequest(
            removal=removal, export=export, classifier_id="judge", texts=("abcdef",)
        )

    await classifiers.check(asked(by_hand), operation_id="d" * 32)
    with pytest.raises(ParentChangedError, match=f"made of the interventions of {lost.name}; export that"):
        await classifiers.check(asked(other), operation_id="d" * 32)
    doubted = await removals.run(_request(edit_id=""), _ignore, removal_id="e" * 32)
    with pytest.raises(InvalidRequestError, match="made no edit that could be exported"):
        await classifiers.check(asked(by_hand, doubted.name), operation_id="d" * 32)


def test_an_edit_by_hand_is_of_the_set_that_was_measured():
    """The same addresses in another set are other features; a report from before sets were kept has any."""
    stored = StoredRemoval(name="spuriousRemovals/a", create_time="", edit="", found=FOUND, unmade="clean")
    edit = Edit(
        name="by-hand", version=1, content_hash="", interventions=(GONE,), reason="", author="", model="tiny",
        weight_hash=FOUND.weight_hash, evidence=(), create_time="", update_time="",
        sets=(EditSet(name="words", content_hash="after"),),
    )  # fmt: skip
    for measured, same in (("", True), ("after", True), ("before", False)):
        assert _removes_the_same(replace(stored, found=replace(FOUND, set_hash=measured)), edit) is same


def test_no_more_is_judged_than_a_report_can_hold():
    """Every judge's word on every feature fits between engine and server, and more is refused."""
    said = judged(Standing.UNDECIDED, 12345)
    evidence = replace(
        said.evidence[0], share=1 / 3, attribute_effect=-1e-3 / 3, label_effect=1e-3 / 7, p_value=1e-5 / 3
    )
    one = replace(
        said,
        score=1 / 3,
        effect=-1e-3 / 3,
        firings=(),
        why="neither is clear " * 6,
        evidence=(evidence,) * len(Judge),
    )
    size = len(encode(replace(report(), features=(one,) * 1024))) * MAX_CANDIDATES / 1024
    assert size < 0.75 * DEFAULT_LIMITS.json_bytes
    assert RemovalBudget(candidates=MAX_CANDIDATES).candidates == MAX_CANDIDATES
    with pytest.raises(InvalidRequestError, match="must be 1 to 16384"):
        RemovalBudget(candidates=MAX_CANDIDATES + 1)

"""Versions of edits: updates, reversions, preconditions, deletion."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.app.exports.test_edits_and_exports import OPERATION, REQUEST, ablate, create, ignore, ready
from tests.unit.app.house import House, model_info
from trephine.app.edits.edit_requests import Composed, EditUpdate, Reversion
from trephine.app.edits.edit_store import etag_of
from trephine.app.exports.edit_removal import EditRemoval
from trephine.domain.edits import Edit, EditPart
from trephine.domain.errors import (
    EditChangedError,
    EditInUseError,
    FeatureOutOfRangeError,
    InvalidRequestError,
    ParentChangedError,
    ReplacementNotFoundError,
    RequestIdReusedError,
    ResourceNotFoundError,
)
from trephine.domain.interventions import Ablate, FeatureTarget, Intervention
from trephine.domain.models import LoadModel
from trephine.domain.sites import FeatureRef


async def updated(here: House, index: int = 4, **fields: Any) -> Edit:
    """Let `no-mary` ablate another neuron."""
    request_id = fields.pop("request_id", "")
    update = EditUpdate(edit="no-mary", author="you", interventions=(ablate(index=index),), **fields)
    return await here.edits.update(update, request_id=request_id)


def composed_of(part: EditPart) -> Composed:
    """An edit out of another one."""
    return Composed(
        edit_id="whole",
        model="tiny",
        interventions=(ablate(),),
        reason="",
        author="",
        parts=(part,),
        weight_hash="w" * 64,
        sets=(),
    )


async def test_an_update_is_another_version_and_the_first_stays(tmp_path):
    """The latest is found by name, earlier ones by version, also after a restart; digests differ."""
    here = await ready(tmp_path)
    first = await here.edits.get("no-mary")
    await here.clock.advance(1)
    second = await updated(here, reason="a better one")
    assert (second.version, second.author, second.reason) == (2, "you", "a better one")
    assert second.content_hash != first.content_hash
    assert second.create_time == first.create_time < second.update_time
    assert await here.edits.get("edits/no-mary") == second
    assert await here.edits.get("edits/no-mary@1") == first
    assert await here.edits.versions("no-mary") == (second, first)
    assert [edit.version for edit in await here.edits.list()] == [2]
    with pytest.raises(ResourceNotFoundError, match="versions 1 to 2"):
        await here.edits.get("no-mary@3")
    for broken in ("no-mary@", "no-mary@0", "no-mary@x", "no-mary@1@2", "../x@1"):
        with pytest.raises(InvalidRequestError):
            await here.edits.get(broken)


async def test_what_is_not_given_is_kept(tmp_path):
    """A new reason alone makes a version with the same content; nothing new makes none."""
    here = await ready(tmp_path)
    first = await here.edits.get("no-mary")
    second = await here.edits.update(EditUpdate(edit="no-mary", author="you", evidence=("audits/a",)))
    assert (second.version, second.content_hash, second.reason) == (2, first.content_hash, first.reason)
    assert second.evidence == ("audits/a",)
    third = await here.edits.update(EditUpdate(edit="no-mary", author="another", reason=first.reason))
    assert third == second


async def test_an_edit_that_changed_meanwhile_is_not_overwritten(tmp_path):
    """Etag and version are preconditions of updates, reversions and deletion."""
    here = await ready(tmp_path)
    first = await here.edits.get("no-mary")
    second = await updated(here, etag=etag_of(first))
    with pytest.raises(EditChangedError) as caught:
        await updated(here, 5, etag=etag_of(first))
    assert caught.value.context["etag"] == etag_of(second)
    with pytest.raises(EditChangedError, match="at version 2 now, by you"):
        await updated(here, 5, expected_version=1)
    with pytest.raises(EditChangedError):
        await here.edits.revert(Reversion(edit="no-mary", version=1, author="me", expected_version=1))
    with pytest.raises(EditChangedError):
        await here.edits.delete("no-mary", etag=etag_of(first))
    assert await here.edits.get("no-mary") == second


async def test_reverting_brings_back_what_was_done_as_a_new_version(tmp_path):
    """Interventions, evidence and digest are the earlier version's; the history grows."""
    here = await ready(tmp_path)
    first = await here.edits.get("no-mary")
    await updated(here)
    third = await here.edits.revert(Reversion(edit="no-mary", version=1, author="me"))
    assert (third.version, third.reverted_from) == (3, 1)
    assert third.interventions == first.interventions
    assert third.content_hash == first.content_hash
    assert third.reason == "reverts to version 1: a test"
    with pytest.raises(InvalidRequestError, match="nothing to revert"):
        await here.edits.revert(Reversion(edit="no-mary", version=3, author="me"))
    with pytest.raises(ResourceNotFoundError):
        await here.edits.revert(Reversion(edit="no-mary", version=9, author="me"))


async def test_same_request_makes_one_version(tmp_path):
    """A repeated request returns its version even after another one came; its id is not used twice."""
    here = await ready(tmp_path)
    second = await updated(here, request_id="r")
    third = await updated(here, 5, request_id="s")
    assert await updated(here, request_id="r") == second
    assert await here.edits.get("no-mary") == third
    with pytest.raises(RequestIdReusedError):
        await updated(here, 6, request_id="r")
    with pytest.raises(RequestIdReusedError):
        await create(here, "other", request_id="r")


async def test_an_update_is_checked_like_a_new_edit(tmp_path):
    """Features must exist, weights must be the edit's; a version is no name for an update."""
    here = await ready(tmp_path)
    with pytest.raises(FeatureOutOfRangeError):
        await updated(here, 16)
    with pytest.raises(InvalidRequestError):
        await here.edits.update(EditUpdate(edit="no-mary", author="", interventions=()))
    with pytest.raises(InvalidRequestError, match="versions never change"):
        await here.edits.update(EditUpdate(edit="no-mary@1", author="", reason="x"))
    with pytest.raises(ResourceNotFoundError):
        await here.edits.update(EditUpdate(edit="nobody", author="", reason="x"))
    here.launcher.scripts[LoadModel] = lambda command: model_info("tiny", "v" * 64)
    here.launcher.latest.lose()
    with pytest.raises(ParentChangedError):
        await updated(here)
    told = await here.edits.update(EditUpdate(edit="no-mary", author="", reason="why"))
    assert told.weight_hash == "w" * 64


async def test_features_of_a_set_that_is_not_loaded_are_refused(tmp_path):
    """An edit names the content of its sets, so they must be there."""
    here = await ready(tmp_path)
    feature = FeatureRef(replacement="mine", layer=0, index=1)
    of_set = Intervention(target=FeatureTarget(feature=feature), operation=Ablate())
    with pytest.raises(ReplacementNotFoundError):
        await create(here, "of-set", [of_set])


async def test_edits_of_earlier_servers_are_read(tmp_path):
    """A record without versions, sets and times is version 1 of its edit."""
    here = await ready(tmp_path)
    file = tmp_path / "state" / "edits" / "no-mary.json"
    stored = json.loads(file.read_text())
    del stored["earlier"]
    for name in ("update_time", "sets", "reverted_from", "parts"):
        del stored["edit"][name]
    file.write_text(json.dumps(stored))
    assert (await here.edits.get("no-mary@1")).update_time == ""
    assert (await updated(here)).version == 2


async def test_an_edit_on_which_something_rests_is_deleted_by_force_only(tmp_path):
    """Exports and composed edits are listed in the refusal; forced, they stay."""
    here = await ready(tmp_path)
    removal = EditRemoval(
        here.edits, exports=here.exports, evaluations=here.edit_evaluations, live=here.live_edits
    )
    await here.exports.run(REQUEST, ignore, operation_id=OPERATION)
    part = EditPart(name="no-mary", version=1, content_hash="x", strength=0.5)
    whole = composed_of(part)
    await here.edits.add(whole)
    with pytest.raises(EditInUseError, match="exports/edited, edits/whole rest on"):
        await removal.delete("no-mary")
    await removal.delete("no-mary", force=True)
    assert [edit.name for edit in await here.edits.list()] == ["whole"]
    assert (await here.exports.get("edited")).name == "edited"
    with pytest.raises(InvalidRequestError, match="single version"):
        await removal.delete("whole@1")
    await removal.delete("whole")


async def test_composition_is_forgotten_when_interventions_change(tmp_path):
    """A version that no longer does what its parts do does not name them; reverting names them again."""
    here = await ready(tmp_path)
    part = EditPart(name="no-mary", version=1, content_hash="x", strength=1.0)
    whole = composed_of(part)
    first = await here.edits.add(whole)
    told = await here.edits.update(EditUpdate(edit="whole", author="", reason="why"))
    changed = await here.edits.update(EditUpdate(edit="whole", author="", interventions=(ablate(index=7),)))
    back = await here.edits.revert(Reversion(edit="whole", version=1, author=""))
    assert [one.parts for one in (first, told, changed, back)] == [(part,), (part,), (), (part,)]
    assert replace(back, version=1, reason="", reverted_from=0, update_time=first.update_time) == first

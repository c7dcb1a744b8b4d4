"""Edits together: composed, stacked, compared, served by default; what is served is not lost by accident."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest

from tests.unit.app.exports.test_edits_and_exports import ablate, create, ready
from tests.unit.app.house import House, model_info
from trephine.app.edits.edit_composition import Composition, EditComposition
from trephine.app.edits.edit_requests import EditUpdate, Reversion
from trephine.app.exports.edit_removal import EditRemoval
from trephine.domain.edit_conflicts import ConflictKind
from trephine.domain.edits import Edit, EditSet
from trephine.domain.errors import (
    AlreadyExistsError,
    EditConflictError,
    EditInUseError,
    InvalidRequestError,
    ParentChangedError,
    ReplacementNotFoundError,
    RequestIdReusedError,
    ResourceNotFoundError,
)
from trephine.domain.interventions import FeatureTarget, Intervention, Scale, SetTo
from trephine.domain.live_edits import EditUse
from trephine.domain.models import LoadModel
from trephine.domain.sites import FeatureRef

QUIET = EditUse(edit="edits/no-mary")


def put(index: int, value: float) -> Intervention:
    """Set one neuron."""
    target = FeatureTarget(feature=FeatureRef(layer=1, index=index))
    return Intervention(target=target, operation=SetTo(value=value))


async def with_warm(root) -> House:
    """A house with two edits: `no-mary` ablates neuron 3, `warm` sets neuron 5."""
    here = await ready(root)
    await create(here, "warm", [put(5, 2.0)], evidence=("audits/a",))
    return here


def composing(here: House) -> EditComposition:
    """The use case."""
    return EditComposition(here.edits, here.edit_stacks)


async def compose(here: House, *parts: EditUse, edit_id: str = "both", request_id: str = "") -> Edit:
    """Store one edit out of parts."""
    wanted = Composition(edit_id=edit_id, parts=parts, author="me")
    return await composing(here).compose(wanted, request_id=request_id)


async def test_a_composition_does_what_its_parts_do_at_their_strengths(tmp_path):
    """Interventions, parts, evidence and the reason name what it is made of; the same request makes one."""
    here = await with_warm(tmp_path)
    parts = (EditUse(edit="no-mary", strength=0.25), EditUse(edit="warm@1", strength=0.5))
    both = await compose(here, *parts, request_id="r")
    first, second = both.interventions
    assert first.operation == Scale(factor=0.75)
    assert (second.operation, second.mode.strength) == (SetTo(value=2.0), 0.5)
    assert [(part.name, part.version, part.strength) for part in both.parts] == [
        ("no-mary", 1, 0.25),
        ("warm", 1, 0.5),
    ]
    assert both.reason == "composed of no-mary@1 at strength 0.25, warm@1 at strength 0.5"
    assert both.evidence == ("audits/a",)
    assert await compose(here, *parts, request_id="r") == both
    with pytest.raises(RequestIdReusedError):
        await compose(here, *parts, edit_id="another", request_id="r")
    with pytest.raises(AlreadyExistsError):
        await compose(here, *parts)
    whole = await compose(here, EditUse(edit="both", strength=2.0), edit_id="more")
    assert whole.interventions[0].operation == Scale(factor=0.5)
    assert whole.interventions[1].mode.strength == 1.0


async def test_conflicts_are_errors_that_name_everything(tmp_path):
    """Nothing is stored; asked for, all of them are listed and nothing is raised."""
    here = await with_warm(tmp_path)
    await create(here, "cold", [put(3, 0.5), put(5, -1.0)])
    parts = (QUIET, EditUse(edit="warm"), EditUse(edit="cold"))
    found = await composing(here).conflicts(parts)
    assert [(one.first, one.target, one.kind) for one in found] == [
        ("no-mary@1", "neurons:1:3", ConflictKind.VALUES),
        ("warm@1", "neurons:1:5", ConflictKind.VALUES),
    ]
    with pytest.raises(EditConflictError, match=r"no-mary@1 and cold@1 conflict on neurons:1:3") as caught:
        await compose(here, *parts)
    assert caught.value.context["conflicts"] == 2
    assert caught.value.context["positions"] == "every position"
    assert "both" not in [edit.name for edit in await here.edits.list()]
    with pytest.raises(EditConflictError):
        await here.live_edits.set("tiny", parts)
    with pytest.raises(EditConflictError):
        await here.live_edits.stack("tiny", parts)
    assert (await here.live_edits.get("tiny")).uses == ()


async def test_bad_compositions_name_the_field(tmp_path):
    """Nothing, an edit twice, a version or an edit that is not there."""
    here = await with_warm(tmp_path)
    for parts, error, field in (
        ((), InvalidRequestError, "parts"),
        ((QUIET, EditUse(edit="no-mary@1")), InvalidRequestError, "parts[1].edit"),
        ((QUIET, EditUse(edit="warm@4")), ResourceNotFoundError, "parts[1].edit"),
        ((EditUse(edit="nobody"),), ResourceNotFoundError, "parts[0].edit"),
    ):
        with pytest.raises(error) as caught:
            await compose(here, *parts)
        assert caught.value.context["field"] == field
    with pytest.raises(ResourceNotFoundError):
        await composing(here).diff("no-mary", "no-mary@2")


async def test_a_default_is_kept_and_follows_the_latest_version(tmp_path):
    """Requests that name none get it, also after a restart; those that name some, or want none, do not."""
    here = await with_warm(tmp_path)
    await here.clock.advance(5)
    setting = await here.live_edits.set("models/tiny", (QUIET,))
    again = await ready(tmp_path)
    assert await again.live_edits.get("tiny") == setting
    (served,) = await again.live_edits.stack("models/tiny", ())
    assert served.edit.reference == "no-mary@1"
    assert await again.live_edits.stack("tiny", (), plain=True) == ()
    (named,) = await again.live_edits.stack("tiny", (EditUse(edit="warm", strength=0.5),))
    assert (named.edit.name, named.interventions[0].mode.strength) == ("warm", 0.5)
    await again.edits.update(EditUpdate(edit="no-mary", author="", interventions=(ablate(index=9),)))
    (served,) = await again.live_edits.stack("tiny", ())
    assert served.interventions == (ablate(index=9),)
    await again.edits.revert(Reversion(edit="no-mary", version=1, author=""))
    (served,) = await again.live_edits.stack("tiny", ())
    assert (served.edit.reference, served.interventions) == ("no-mary@3", (ablate(),))
    ended = await again.live_edits.set("tiny", ())
    assert ended.uses == (await again.live_edits.get("tiny")).uses == ()
    assert await again.live_edits.stack("tiny", ()) == ()


async def test_a_version_that_is_named_stays(tmp_path):
    """`no-mary@1` is served after an update, until the default is set anew."""
    here = await with_warm(tmp_path)
    await here.live_edits.set("tiny", (EditUse(edit="no-mary@1"),))
    await here.edits.update(EditUpdate(edit="no-mary", author="", interventions=(ablate(index=9),)))
    (served,) = await here.live_edits.stack("tiny", ())
    assert (served.edit.version, served.interventions) == (1, (ablate(),))


async def test_an_update_may_bring_conflicts_that_requests_then_meet(tmp_path):
    """What was checked at `set` is checked again at every request: the latest versions count."""
    here = await with_warm(tmp_path)
    await here.live_edits.set("tiny", (QUIET, EditUse(edit="warm")))
    await here.edits.update(EditUpdate(edit="warm", author="", interventions=(put(3, 2.0),)))
    with pytest.raises(EditConflictError):
        await here.live_edits.stack("tiny", ())
    assert await here.live_edits.stack("tiny", (), plain=True) == ()


async def test_a_served_edit_is_deleted_by_force_only(tmp_path):
    """The refusal names the model; forced, the model serves what is left."""
    here = await with_warm(tmp_path)
    removal = EditRemoval(
        here.edits, exports=here.exports, evaluations=here.edit_evaluations, live=here.live_edits
    )
    await here.live_edits.set("tiny", (EditUse(edit="no-mary@1"), EditUse(edit="warm")))
    with pytest.raises(EditInUseError, match=r"models/tiny \(served live\)"):
        await removal.delete("no-mary")
    assert await here.live_edits.models_serving("no-mary") == ("tiny",)
    await removal.delete("no-mary", force=True)
    assert [use.edit for use in (await here.live_edits.get("tiny")).uses] == ["warm"]
    await removal.delete("warm", force=True)
    assert (await here.live_edits.get("tiny")).uses == ()
    assert await here.live_edits.stack("tiny", ()) == ()


async def test_edits_of_other_weights_and_sets_are_not_served(tmp_path):
    """Not by name, not by default, not in a composition; the error says what to do."""
    here = await with_warm(tmp_path)
    await here.live_edits.set("tiny", (QUIET,))
    here.launcher.scripts[LoadModel] = lambda command: model_info("tiny", "v" * 64)
    here.launcher.latest.lose()
    for attempt in (
        here.live_edits.stack("tiny", ()),
        here.live_edits.stack("tiny", (EditUse(edit="warm"),)),
        here.live_edits.set("tiny", (QUIET,)),
    ):
        with pytest.raises(ParentChangedError, match="made for other weights") as caught:
            await attempt
        assert caught.value.context["field"] == "edits[0].edit"
    with pytest.raises(ParentChangedError, match="create them again"):
        await compose(here, QUIET)


async def test_sets_must_be_those_that_the_edit_was_made_for(tmp_path, monkeypatch):
    """A set that is no longer loaded, and one of other content under its name."""
    here = await with_warm(tmp_path)
    stored = await here.edits.get("warm")
    of_set = replace(stored, sets=(EditSet(name="mine", content_hash="a" * 64),))
    monkeypatch.setattr(here.edits, "get", AsyncMock(return_value=of_set))
    with pytest.raises(ReplacementNotFoundError, match="warm needs the set mine, which is not loaded"):
        await here.live_edits.stack("tiny", (EditUse(edit="warm"),))
    entry = SimpleNamespace(info=None, state="failed", why="the folder is gone")
    monkeypatch.setattr(here.replacements, "entry", lambda name, model: entry)
    with pytest.raises(ReplacementNotFoundError, match="could not be loaded again: the folder is gone"):
        await here.live_edits.stack("tiny", (EditUse(edit="warm"),))
    entry.state, entry.info = "loaded", SimpleNamespace(content_hash="b" * 64, layers=())
    with pytest.raises(ParentChangedError, match="other features than those of the set mine"):
        await here.live_edits.stack("tiny", (EditUse(edit="warm"),))
    entry.info.content_hash = "a" * 64
    assert await here.live_edits.stack("tiny", (EditUse(edit="warm"),))
    await here.live_edits.set("tiny", (EditUse(edit="warm"),))
    entry.state, entry.info = "failed", None
    with pytest.raises(ReplacementNotFoundError, match=r"^the edit warm needs the set mine"):
        await here.live_edits.stack("tiny", ())  # by default: the edit is not gone


async def test_a_default_that_is_gone_says_how_to_end_it(tmp_path):
    """A server that was killed after deleting an edit, before its models were told, answers nothing else."""
    here = await with_warm(tmp_path)
    await here.live_edits.set("tiny", (QUIET,))
    await here.edits.delete("no-mary")
    with pytest.raises(
        ResourceNotFoundError, match=r"models/tiny is set to serve .* `trephine edits serve --none`"
    ):
        await here.live_edits.stack("tiny", ())
    with pytest.raises(ResourceNotFoundError, match=r"^there is no edit no-mary"):
        await here.live_edits.stack("tiny", (QUIET,))
    assert await here.live_edits.stack("tiny", (), plain=True) == ()
    await here.live_edits.set("tiny", ())
    assert await here.live_edits.stack("tiny", ()) == ()


async def test_a_caller_that_leaves_while_an_edit_is_deleted_leaves_nothing_half(tmp_path, monkeypatch):
    """The models that serve it are told all the same."""
    here = await with_warm(tmp_path)
    await here.live_edits.set("tiny", (QUIET, EditUse(edit="warm")))
    removal = EditRemoval(
        here.edits, exports=here.exports, evaluations=here.edit_evaluations, live=here.live_edits
    )
    drop, inside, go_on = here.live_edits.drop, asyncio.Event(), asyncio.Event()

    async def slow(edit_id: str) -> None:
        inside.set()
        await go_on.wait()
        await drop(edit_id)

    monkeypatch.setattr(here.live_edits, "drop", slow)
    deleting = asyncio.create_task(removal.delete("no-mary", force=True))
    await inside.wait()
    deleting.cancel()
    await asyncio.gather(deleting, return_exceptions=True)
    go_on.set()
    while len((await here.live_edits.get("tiny")).uses) > 1:
        await asyncio.sleep(0.001)
    assert [use.edit for use in (await here.live_edits.get("tiny")).uses] == ["warm"]

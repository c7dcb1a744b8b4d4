"""Finding, loading, losing and refusing replacement sets."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.unit.app.house import SCRIPTS, House, house, model_folder, model_info
from tests.unit.replacement_values import set_info, write_set
from trephine.domain.commands import Progress
from trephine.domain.errors import (
    AdmissionFailedError,
    AlreadyExistsError,
    BrokenReplacementError,
    InvalidRequestError,
    ModelNotReadyError,
    PathDeniedError,
    ReplacementNotFoundError,
    UnsafeReplacementError,
)
from trephine.domain.models import LoadModel
from trephine.domain.replacements import (
    ListReplacementSets,
    LoadReplacementSet,
    ReplacementSets,
    SetFormat,
    UnloadReplacementSet,
)
from trephine.domain.tokens import RenderChat, Text


def ignore(_: Progress) -> None:
    """Nobody listens."""


SETS: dict[type, Any] = {
    **SCRIPTS,
    LoadReplacementSet: lambda command: set_info(command.source.name),
    UnloadReplacementSet: lambda command: set_info(command.name),
    RenderChat: Text(text="chat"),
}


async def loaded(root: Any, scripts: dict[type, Any] | None = None) -> House:
    """A house whose model `tiny` has the set `small` beside it."""
    if not (root / "replacements" / "small").exists():
        write_set(root / "replacements")
    here = house(root, {**SETS, **(scripts or {})})
    await here.models.load(here.models.resolve("tiny"), ignore)
    await here.replacements.load("tiny", here.replacements.resolve("small"), ignore)
    return here


def asked(here: House, command: type) -> list[Any]:
    """Commands of a type, over all engines, in order."""
    return [one for engine in here.launcher.engines for one in engine.commands if isinstance(one, command)]


async def test_sets_on_disk_and_loaded_ones_are_listed(tmp_path):
    """A set is listed beside its model and, as a folder, in its root."""
    here = await loaded(tmp_path)
    assert [(entry.resource, entry.state) for entry in here.replacements.list()] == [
        ("models/tiny/replacements/small", "loaded"),
        ("replacements/small", "available"),
    ]
    assert [entry.name for entry in here.replacements.list("tiny")] == ["small"]


async def test_loading_again_is_no_work(tmp_path):
    """The same source beside the same model is what is there; the engine is not asked twice."""
    here = await loaded(tmp_path)
    again = await here.replacements.load("tiny", here.replacements.resolve("small"), ignore)
    assert again == set_info()
    assert len(asked(here, LoadReplacementSet)) == 1


async def test_name_with_another_source_is_a_conflict(tmp_path):
    """A name that addresses the features of one folder is not silently given to another."""
    here = await loaded(tmp_path)
    write_set(tmp_path / "replacements", "other")
    for other in (
        here.replacements.resolve("other", "small"),
        here.replacements.resolve("small", format=SetFormat.SPARSIFY),
        here.replacements.resolve("small", memory_budget_bytes=10),
    ):
        with pytest.raises(AlreadyExistsError):
            await here.replacements.check("tiny", other)


async def test_a_degraded_set_must_be_accepted_by_everyone_who_loads_it(tmp_path):
    """Somebody else's acceptance is not taken for this caller's."""
    degraded = {LoadReplacementSet: lambda command: set_info(command.source.name, degraded=True)}
    here = await loaded(tmp_path, degraded)
    with pytest.raises(AdmissionFailedError, match=r"1\.31"):
        await here.replacements.load("tiny", here.replacements.resolve("small"), ignore)
    accepting = here.replacements.resolve("small", accept_degraded=True)
    assert (await here.replacements.load("tiny", accepting, ignore)).degraded


async def test_sets_come_back_with_a_lost_engine(tmp_path):
    """After a loss the model and then its sets are loaded before the next command runs."""
    here = await loaded(tmp_path)
    here.launcher.engines[0].lose()
    assert await here.models.engine("tiny").run(RenderChat(messages=())) == Text(text="chat")
    kinds = [type(command) for command in here.launcher.latest.commands]
    assert kinds == [LoadModel, LoadReplacementSet, RenderChat]


async def test_the_next_server_brings_sets_back(tmp_path):
    """What was loaded is remembered in the state folder, with its source."""
    first = await loaded(tmp_path)
    again = house(tmp_path, SETS)
    assert [entry.state for entry in again.replacements.list("tiny")] == ["loaded"]
    await again.models.engine("tiny").run(RenderChat(messages=()))
    [before], [after] = asked(first, LoadReplacementSet), asked(again, LoadReplacementSet)
    assert (after.source, before.admitted, after.admitted) == (before.source, None, set_info())


async def test_progress_of_a_load_names_the_sets_that_come_back(tmp_path):
    """Who waits for the model hears that its sets are loaded too."""
    await loaded(tmp_path)
    again, heard = house(tmp_path, SETS), []
    await again.models.load(again.models.resolve("tiny"), heard.append)
    assert [(step.stage, step.detail) for step in heard] == [("load replacement sets", "small")]


@pytest.mark.parametrize("trouble", ["changed", "gone"])
async def test_a_set_that_changed_is_reported_not_dropped(tmp_path, trouble):
    """It is lost with its reason, the model works on, and whoever names it is told why."""
    await loaded(tmp_path)
    failure = BrokenReplacementError("layer_0 is cut short")
    scripts = {
        "changed": {LoadReplacementSet: set_info(content_hash="d" * 64)},
        "gone": {LoadReplacementSet: failure},
    }
    absent = ReplacementNotFoundError("replacement set 'small' is not loaded", replacement="small")
    again = house(tmp_path, {**SETS, **scripts[trouble], RenderChat: absent})
    with pytest.raises(ReplacementNotFoundError, match=r"changed since|cut short"):
        await again.models.engine("tiny").run(RenderChat(messages=()))
    [entry] = again.replacements.list("tiny")
    assert entry.state == "lost"
    assert "changed since" in entry.why or "cut short" in entry.why
    assert len(asked(again, UnloadReplacementSet)) == (trouble == "changed")
    again.launcher.scripts[LoadReplacementSet] = set_info(content_hash="e" * 64)
    await again.replacements.load("tiny", again.replacements.resolve("small"), ignore)
    assert again.replacements.entry("small", "tiny").state == "loaded"


async def test_unloading_forgets(tmp_path):
    """An unloaded set is gone from the engine, from the list and from the next server."""
    here = await loaded(tmp_path)
    await here.replacements.unload("tiny", "small")
    assert asked(here, UnloadReplacementSet) == [UnloadReplacementSet(name="small")]
    assert house(tmp_path, SETS).replacements.list("tiny") == ()
    with pytest.raises(ReplacementNotFoundError, match="neurons"):
        await here.replacements.unload("tiny", "small")


async def test_a_lost_engine_is_not_started_to_forget_a_set(tmp_path):
    """Unloading beside a model whose engine is gone only forgets."""
    here = await loaded(tmp_path)
    here.launcher.latest.lose()
    await here.replacements.unload("tiny", "small")
    assert len(here.launcher.engines) == 1
    assert here.replacements.list("tiny") == ()


async def test_unloading_the_model_forgets_its_sets(tmp_path):
    """Loading the model again begins without them, and so does another model of its name."""
    here = await loaded(tmp_path)
    await here.models.unload("tiny")
    await here.models.load(here.models.resolve("tiny"), ignore)
    assert here.replacements.list("tiny") == ()
    await here.replacements.load("tiny", here.replacements.resolve("small"), ignore)
    model_folder(tmp_path / "models", "other")
    again = house(tmp_path, SETS)
    await again.models.load(again.models.resolve("other", "tiny"), ignore)
    assert again.replacements.list("tiny") == ()


async def test_residency_is_asked_of_a_running_engine_only(tmp_path):
    """`get` answers with present figures while the engine runs, and with the remembered ones else."""
    fresh = set_info(content_hash="f" * 64)
    here = await loaded(tmp_path, {ListReplacementSets: ReplacementSets(sets=(fresh,))})
    assert (await here.replacements.get("small", "tiny")).info == fresh
    here.launcher.latest.lose()
    assert (await here.replacements.get("small", "tiny")).info == set_info()
    assert len(here.launcher.engines) == 1


async def test_a_set_needs_a_loaded_model(tmp_path):
    """Without the model there is nothing to admit it on."""
    write_set(tmp_path / "replacements")
    here = house(tmp_path, SETS)
    with pytest.raises(ModelNotReadyError):
        await here.replacements.check("tiny", here.replacements.resolve("small"))


@pytest.mark.parametrize("source", ["../small", "..", ".hidden", "a/b", "", "a\0b", "/a\0b", "none"])
def test_names_that_are_paths_find_nothing(tmp_path, source):
    """A name is a name; the error lists what there is."""
    write_set(tmp_path / "replacements")
    with pytest.raises((ReplacementNotFoundError, PathDeniedError)):
        house(tmp_path, SETS).replacements.resolve(source)


def test_folders_are_read_inside_roots_or_where_a_client_shared_them(tmp_path):
    """Other folders are denied, links out of a set included; a shared folder's layers get no names."""
    here = house(tmp_path, SETS)
    outside = write_set(tmp_path / "elsewhere")
    inner = write_set(tmp_path / "replacements", "inner")
    os.symlink(outside / "layer_0" / "cfg.json", inner / "layer_0" / "linked.json")
    for source in (str(outside), "inner"):
        with pytest.raises(PathDeniedError, match="replacement roots"):
            here.replacements.resolve(source)
    here.replacements.share(outside)
    assert here.replacements.resolve(str(outside)).folder == str(outside)
    assert [entry.name for entry in here.replacements.list()] == ["inner"]


@pytest.mark.parametrize("set_id", ["neurons", "a:b", "../x", "a..b", "x" * 64])
def test_names_that_cannot_address_features_are_refused(tmp_path, set_id):
    """A set's name is part of its features' addresses, and `neurons` are the model's own."""
    write_set(tmp_path / "replacements")
    with pytest.raises(InvalidRequestError):
        house(tmp_path, SETS).replacements.resolve("small", set_id)


async def test_headers_predict_memory_and_refuse_pickles(tmp_path):
    """6 numbers are 12 bytes as float16; garbage and pickles are refused before an engine is asked."""
    folder = write_set(tmp_path / "replacements")
    here = house(tmp_path, SETS)
    source = here.replacements.resolve("small")
    assert await here.replacements.predict(source) == 12
    weights = folder / "layer_0" / "sae_weights.safetensors"
    weights.write_bytes(b"\x80\x04")
    with pytest.raises(BrokenReplacementError, match="sae_weights"):
        await here.replacements.predict(source)
    weights.rename(weights.with_name("sae_weights.pt"))
    with pytest.raises(UnsafeReplacementError, match=r"sae_weights\.pt.*with the library that wrote it"):
        await here.replacements.predict(source)


async def test_the_model_of_a_load_stays_what_it_is(tmp_path):
    """A restored set does not change what the model says of itself."""
    here = await loaded(tmp_path)
    here.launcher.latest.lose()
    assert await here.models.info("tiny") == model_info()

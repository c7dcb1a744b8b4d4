"""Loading, finding, losing and refusing models."""

from __future__ import annotations

import asyncio
import os
import struct

import pytest

from tests.fakes.engine import Script
from tests.unit.app.house import House, house, model_folder, model_info
from trephine.domain.commands import Progress
from trephine.domain.errors import (
    AlreadyExistsError,
    BrokenCheckpointError,
    DeadlinePassedError,
    EngineLostError,
    InvalidRequestError,
    ModelNotFoundError,
    ModelNotReadyError,
    OverBudgetError,
    PathDeniedError,
    UnsafeCheckpointError,
)
from trephine.domain.generation import Generate, Row
from trephine.domain.models import LoadModel
from trephine.domain.tokens import RenderChat, Text


def ignore(_: Progress) -> None:
    """Nobody listens."""


async def asked(here: House, command: type) -> None:
    """Wait until an engine has been given a command of this type."""
    while not any(isinstance(one, command) for engine in here.launcher.engines for one in engine.commands):
        await asyncio.sleep(0.001)


async def loaded(root) -> House:
    """A house whose model `tiny` is loaded."""
    here = house(root, {RenderChat: Text(text="chat")})
    await here.models.load(here.models.resolve("tiny"), ignore)
    return here


async def test_concurrent_loads_share_one_engine(tmp_path):
    """Two loads of one source launch one engine and both hear its progress."""
    hold = asyncio.Event()
    step = Progress(stage="load", done=1, total=2)
    here = house(tmp_path, {LoadModel: Script(events=(step,), hold=hold, result=model_info())})
    source, heard = here.models.resolve("tiny"), []
    first = asyncio.create_task(here.models.load(source, heard.append))
    second = asyncio.create_task(here.models.load(source, heard.append))
    await asked(here, LoadModel)
    assert here.models.get("tiny").state == "loading"
    hold.set()
    assert await first == await second == model_info()
    assert len(here.launcher.engines) == 1
    assert heard == [step, step]
    assert here.models.get("tiny").state == "loaded"


async def test_one_of_two_loads_may_be_cancelled_without_harm(tmp_path):
    """The load goes on for the one who still waits, and ends with the last."""
    hold = asyncio.Event()
    here = house(tmp_path, {LoadModel: Script(hold=hold, result=model_info())})
    source = here.models.resolve("tiny")
    first, second = (asyncio.create_task(here.models.load(source, ignore)) for _ in range(2))
    await asked(here, LoadModel)
    first.cancel()
    await asyncio.sleep(0.01)
    assert not here.launcher.latest.cancelled
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert len(here.launcher.latest.cancelled) == 1
    assert not here.launcher.latest.alive
    assert here.models.get("tiny").state == "available"


async def test_name_with_another_source_is_a_conflict(tmp_path):
    """A name that serves one source is not silently given to another."""
    here = await loaded(tmp_path)
    model_folder(tmp_path / "models", "other")
    with pytest.raises(AlreadyExistsError):
        await here.models.load(here.models.resolve("other", "tiny"), ignore)
    with pytest.raises(AlreadyExistsError):
        await here.models.check(here.models.resolve("tiny", dtype="bfloat16"))


async def test_lost_engine_comes_back_with_the_next_command(tmp_path):
    """A command that loses its engine fails; the next one runs on a fresh engine with the model."""
    here = await loaded(tmp_path)
    engine = here.models.engine("tiny")
    here.launcher.engines[0].lose()
    assert await engine.run(RenderChat(messages=())) == Text(text="chat")
    assert len(here.launcher.engines) == 2
    assert isinstance(here.launcher.latest.commands[0], LoadModel)


async def test_command_whose_engine_dies_says_so(tmp_path):
    """The loss in the middle of a command is an EngineLostError of that command."""
    here = await loaded(tmp_path)
    here.launcher.scripts[RenderChat] = Script(hold=asyncio.Event(), result=Text(text=""))
    call = asyncio.create_task(here.models.engine("tiny").run(RenderChat(messages=())))
    await asked(here, RenderChat)
    here.launcher.latest.lose()
    with pytest.raises(EngineLostError):
        await call


async def test_next_server_loads_remembered_models_on_demand(tmp_path):
    """After a restart a model that was loaded answers without being loaded by hand."""
    await loaded(tmp_path)
    again = house(tmp_path, {RenderChat: Text(text="chat")})
    assert again.models.get("tiny").state == "available"
    assert await again.models.engine("tiny").run(RenderChat(messages=())) == Text(text="chat")


async def test_unloaded_model_is_not_remembered(tmp_path):
    """Unloading ends the engine and is a decision that outlives the server."""
    here = await loaded(tmp_path)
    await here.models.unload("tiny")
    assert not here.launcher.latest.alive
    for models in (here.models, house(tmp_path).models):
        with pytest.raises(ModelNotReadyError):
            models.engine("tiny")


async def test_unloading_while_it_loads_tells_those_who_wait(tmp_path):
    """A load that somebody else unloads ends with an error, not with a cancellation out of nowhere."""
    here = house(tmp_path, {LoadModel: Script(hold=asyncio.Event(), result=model_info())})
    load = asyncio.create_task(here.models.load(here.models.resolve("tiny"), ignore))
    await asked(here, LoadModel)
    await here.models.unload("tiny")
    with pytest.raises(ModelNotReadyError):
        await load


async def test_failed_load_leaves_no_engine_and_no_entry(tmp_path):
    """A load that fails ends its engine, and the name is free again."""
    here = house(tmp_path, {LoadModel: BrokenCheckpointError("no shard")})
    with pytest.raises(BrokenCheckpointError):
        await here.models.load(here.models.resolve("tiny"), ignore)
    assert not here.launcher.latest.alive
    with pytest.raises(ModelNotReadyError):
        here.models.engine("tiny")


async def test_deadline_covers_the_wait(tmp_path):
    """A deadline that passes while the model loads is a DeadlinePassedError."""
    here = await loaded(tmp_path)
    here.launcher.scripts[LoadModel] = Script(hold=asyncio.Event(), result=model_info())
    here.launcher.latest.lose()
    with pytest.raises(DeadlinePassedError):
        await here.models.engine("tiny").run(RenderChat(messages=()), deadline_seconds=0.05)


async def test_command_over_budget_never_reaches_the_engine(tmp_path):
    """A call whose predicted memory exceeds the budget is refused before any work."""
    here = await loaded(tmp_path)
    command = Generate(rows=(Row(prompt="x" * 300),) * 100_000, max_new_tokens=10)
    before = len(here.launcher.latest.commands)
    with pytest.raises(OverBudgetError):
        await here.models.engine("tiny").run(command)
    with pytest.raises(OverBudgetError):
        await here.models.predict_command("tiny", command)
    assert len(here.launcher.latest.commands) == before


def test_unknown_model_names_what_there_is(tmp_path):
    """The error for a wrong name lists the right ones."""
    with pytest.raises(ModelNotFoundError, match="tiny"):
        house(tmp_path).models.resolve("tinny")
    with pytest.raises(ModelNotFoundError, match="tiny"):
        house(tmp_path).models.get("tinny")


@pytest.mark.parametrize("source", ["../tiny", "..", ".hidden", "a/b", "tiny/../../x", "", "a\0b", "/a\0b"])
def test_names_that_are_paths_find_nothing(tmp_path, source):
    """A name is a name: no separators, no parents."""
    with pytest.raises((ModelNotFoundError, PathDeniedError)):
        house(tmp_path).models.resolve(source)


def test_folders_outside_the_roots_are_denied(tmp_path):
    """An absolute path is taken only inside a root, whatever dots or links it goes through."""
    here = house(tmp_path)
    outside = model_folder(tmp_path / "elsewhere")
    os.symlink(outside, tmp_path / "models" / "link")
    inner = model_folder(tmp_path / "models", "inner")
    os.symlink(outside / "model.safetensors", inner / "extra.safetensors")
    for source in (str(outside), str(tmp_path / "models" / ".." / "elsewhere" / "tiny"), "link", "inner"):
        with pytest.raises(PathDeniedError):
            here.models.resolve(source)
    with pytest.raises(PathDeniedError):
        here.models.resolve("tiny", adapter=str(outside))
    here.models.add_root(tmp_path / "elsewhere")
    assert here.models.resolve(str(outside)).folder == str(outside)
    assert here.models.resolve("link").name == "tiny"


def test_a_link_inside_a_folder_that_is_linked_to_is_looked_at_as_well(tmp_path):
    """An export copies what lies there; and two folders that link to each other are looked at once."""
    here = house(tmp_path)
    inner, other = model_folder(tmp_path / "models", "inner"), tmp_path / "models" / "other"
    other.mkdir()
    os.symlink(other, inner / "more")
    os.symlink(inner, other / "back")
    assert here.models.resolve("inner").folder == str(inner)
    os.symlink("/etc/hostname", other / "host")
    with pytest.raises(PathDeniedError, match="'host' lies outside"):
        here.models.resolve("inner")


def test_published_export_is_a_source(tmp_path):
    """`exports/NAME` is found in the export root and nowhere else."""
    here = house(tmp_path)
    folder = model_folder(tmp_path / "published", "edited")
    assert here.models.resolve("exports/edited").folder == str(folder)
    with pytest.raises(ModelNotFoundError):
        here.models.resolve("exports/none")
    with pytest.raises(InvalidRequestError):
        here.models.resolve("exports/../models/tiny")


@pytest.mark.parametrize(("field", "value"), [("dtype", "int4"), ("device", "tpu"), ("model_id", "../x")])
def test_senseless_options_are_refused(tmp_path, field, value):
    """dtype, device and model_id are checked before anything is read."""
    with pytest.raises(InvalidRequestError):
        house(tmp_path).models.resolve("tiny", **{field: value})


async def test_prediction_counts_parameters_from_headers(tmp_path):
    """validate_only reads 2 x 3 float32 from the header: 6 parameters, 24 bytes; half as bfloat16."""
    here = house(tmp_path)
    predicted = await here.models.predict(here.models.resolve("tiny"))
    assert (predicted.n_parameters, predicted.memory_bytes) == (6, 24)
    assert (await here.models.predict(here.models.resolve("tiny", dtype="bfloat16"))).memory_bytes == 12
    assert not here.launcher.engines


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda folder: (folder / "config.json").unlink(), BrokenCheckpointError),
        (lambda folder: (folder / "model.safetensors").unlink(), BrokenCheckpointError),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04pickle"), BrokenCheckpointError),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60)),
            BrokenCheckpointError,
        ),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            UnsafeCheckpointError,
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"w": "model-00001-of-00002.safetensors"}}'
            ),
            BrokenCheckpointError,
        ),
    ],
    ids=["config", "weights", "garbage", "endless-header", "pickle", "missing-shard"],
)
async def test_damaged_folders_are_refused_before_loading(tmp_path, damage, error):
    """Missing parts and pickles are told from headers, without an engine."""
    here = house(tmp_path)
    source = here.models.resolve("tiny")
    damage(tmp_path / "models" / "tiny")
    with pytest.raises(error):
        await here.models.check(source)
    assert not here.launcher.engines


async def test_load_over_budget_is_refused_before_work(tmp_path):
    """A model that cannot fit is refused from its header."""
    here = house(tmp_path)
    header = b'{"w":{"dtype":"F32","shape":[1000000,1000000]}}'
    file = tmp_path / "models" / "tiny" / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(OverBudgetError):
        await here.models.check(here.models.resolve("tiny"))

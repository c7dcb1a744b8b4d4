"""Measuring and fitting replacement sets: uploads, stored results, one rename, what a crash leaves."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.engine import Script
from tests.unit.app.house import House, house
from tests.unit.app.sets.test_replacements import SETS, asked, ignore, loaded
from tests.unit.replacement_values import evaluation, fit_report, write_set
from trephine.app.jobs.requests import EvaluateSetRequest, FitSetRequest
from trephine.domain.errors import (
    AlreadyExistsError,
    BrokenCorpusError,
    EngineLostError,
    FitFailedError,
    InvalidRequestError,
    LayerOutOfRangeError,
    ReplacementNotFoundError,
    ResourceNotFoundError,
)
from trephine.domain.fitting import FitRecipe, FitReplacementSet, PredictedFit, PredictFit
from trephine.domain.operations import OperationState
from trephine.domain.replacements import EvaluateReplacementSet

COMMAND = EvaluateReplacementSet(name="small", text="", text_name="built-in")


async def uploaded(here: House, data: bytes, media_type: str = "text/plain") -> str:
    """The resource name of an uploaded artifact."""
    return f"artifacts/{(await here.artifacts.put(data, media_type=media_type)).sha256}"


# --- evaluations ---------------------------------------------------------------------------------


async def test_an_evaluation_is_an_operation_with_a_stored_result(tmp_path):
    """The uploaded text reaches the engine; a second run of the operation does not measure again."""
    here = await loaded(tmp_path, {EvaluateReplacementSet: evaluation()})
    await here.operations.open()
    request = EvaluateSetRequest(model="tiny", command=COMMAND, text=await uploaded(here, b"held out"))
    started = await here.operations.start("EvaluateReplacementSet", request, request_id="r")
    ended = await here.operations.wait(started.id)
    assert ended.result == f"evaluations/{started.id}"
    stored = await here.evaluations.get(ended.result)
    assert stored.evaluation == evaluation()
    await here.evaluations.run(request, ignore, evaluation_id=started.id)
    [command] = asked(here, EvaluateReplacementSet)
    assert (command.text, command.control_text) == ("held out", "")
    await here.operations.close()


@pytest.mark.parametrize(
    ("form", "media_type", "begins"),
    [("json", "application/json", "{"), ("csv", "text/csv", "scope,"), ("html", "text/html", "<!doctype")],
)
async def test_an_evaluation_is_rendered(tmp_path, form, media_type, begins):
    """Each form is a file of its kind."""
    here = await loaded(tmp_path, {EvaluateReplacementSet: evaluation()})
    request = EvaluateSetRequest(model="tiny", command=COMMAND)
    await here.evaluations.run(request, ignore, evaluation_id="e")
    info = await here.evaluations.render("evaluations/e", form)
    assert info.media_type.startswith(media_type)
    assert (await here.artifacts.read(info.sha256)).decode().startswith(begins)
    with pytest.raises(ResourceNotFoundError):
        await here.evaluations.get("none")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\xff\xfe broken", "byte 0; convert it first"),
        (b"one\n\xc3\xa4\0", r"in line 2 \(byte 6\).*give plain UTF-8 text"),
        (b"  \n ", "blank; give one with words"),
    ],
)
async def test_what_is_no_text_is_refused_at_once(tmp_path, data, says):
    """Binary junk and blanks never reach the engine; the error says where it is and what to give."""
    here = await loaded(tmp_path)
    request = EvaluateSetRequest(model="tiny", command=COMMAND, text=await uploaded(here, data))
    with pytest.raises(BrokenCorpusError, match=says):
        await here.evaluations.check(request)


async def test_what_cannot_be_measured_is_refused_at_once(tmp_path):
    """Sets that are not loaded, layers that they lack, texts that were not uploaded."""
    here = await loaded(tmp_path)
    layered = EvaluateReplacementSet(name="small", text="", text_name="x", layers=(0, 5))
    other = EvaluateReplacementSet(name="other", text="", text_name="x")
    for command, text, error, says in (
        (other, "", ReplacementNotFoundError, "Name one of these, or load it first"),
        (layered, "", LayerOutOfRangeError, r"does not cover layer 5; it has .*Name some of these"),
        (COMMAND, "artifacts/" + "0" * 64, ResourceNotFoundError, "no artifact"),
    ):
        with pytest.raises(error, match=says):
            await here.evaluations.check(EvaluateSetRequest(model="tiny", command=command, text=text))
    _, cost = await here.evaluations.predict(EvaluateSetRequest(model="tiny", command=COMMAND))
    assert cost.tokens > 0


# --- fits ----------------------------------------------------------------------------------------


def fitting(command: FitReplacementSet) -> Any:
    """What an engine does: a set in its folder, something beside its checkpoints."""
    write_set(Path(command.folder).parent, Path(command.folder).name)
    Path(command.checkpoints, "step-1").write_text("weights")
    return fit_report(command.recipe)


FITS = {
    **SETS,
    FitReplacementSet: fitting,
    PredictFit: PredictedFit(seconds=1, memory_bytes=2, disk_bytes=3),
}
REQUEST = FitSetRequest(model="tiny", set_id="mine", recipe=FitRecipe(d_sae=3, k=1))


def in_root(here: House) -> list[str]:
    """Names in the replacement root, temporary ones included."""
    return sorted(path.name for path in (here.root / "replacements").iterdir())


def kept(here: House) -> list[Path]:
    """Checkpoints in the state folder."""
    return sorted((here.root / "state" / "fitting").rglob("step-1"))


async def test_a_fit_is_published_by_name_and_can_be_loaded(tmp_path):
    """The set appears whole under its name; corpus and checkpoints stay outside and are removed."""
    here = await loaded(tmp_path, FITS)
    await here.operations.open()
    corpus = await uploaded(here, b'{"text": "a"}\n', "application/jsonl")
    request = FitSetRequest(
        model="tiny", set_id="mine", recipe=REQUEST.recipe, corpus=corpus, corpus_name="c"
    )
    started = await here.operations.start("FitReplacementSet", request, request_id="r")
    ended = await here.operations.wait(started.id)
    assert ended.state is OperationState.SUCCEEDED, ended.failure
    assert in_root(here) == ["mine", "small"]
    stored = await here.fits.get(ended.result)
    assert (stored.set_id, stored.report) == ("mine", fit_report(REQUEST.recipe))
    [command] = asked(here, FitReplacementSet)
    assert command.corpus.endswith("corpus.jsonl")
    assert not kept(here)
    assert here.replacements.resolve("mine").name == "mine"
    await here.operations.close()


async def test_a_published_fit_is_not_fitted_again(tmp_path):
    """The same operation after a crash returns what it did; another one is refused by name."""
    here = await loaded(tmp_path, FITS)
    first = await here.fits.run(REQUEST, ignore, fit_id="f")
    assert await here.fits.run(REQUEST, ignore, fit_id="f") == first
    await here.fits.check(REQUEST, operation_id="f")
    assert len(asked(here, FitReplacementSet)) == 1
    for refused in (here.fits.check(REQUEST, operation_id="g"), here.fits.run(REQUEST, ignore, fit_id="g")):
        with pytest.raises(AlreadyExistsError, match="mine"):
            await refused


async def test_a_killed_fit_goes_on_from_its_checkpoints(tmp_path):
    """Checkpoints outlive engine, server and operation; nothing half-made is left in the root."""

    def killed(command: FitReplacementSet) -> Exception:
        fitting(command)
        return EngineLostError("killed")

    here = await loaded(tmp_path, {**FITS, FitReplacementSet: killed})
    with pytest.raises(EngineLostError):
        await here.fits.run(REQUEST, ignore, fit_id="f")
    assert in_root(here) == ["small"]
    (before,) = kept(here)
    again = house(tmp_path, {**FITS, FitReplacementSet: FitFailedError("the loss is not finite")})
    with pytest.raises(FitFailedError):
        await again.fits.run(REQUEST, ignore, fit_id="f")
    assert kept(again) == [before]
    last = house(tmp_path, FITS)
    await last.fits.run(REQUEST, ignore, fit_id="another-operation")
    [command] = asked(last, FitReplacementSet)
    assert command.checkpoints == str(before.parent)
    assert not kept(last)


async def test_a_server_that_died_leaves_nothing_in_the_root(tmp_path):
    """At start the folders of known operations are swept; others' are left alone."""
    here = await loaded(tmp_path, FITS)
    for name in (".trephine-tmp-mine", ".trephine-tmp-other"):
        (tmp_path / "replacements" / name).mkdir()
    here.fits.sweep({"mine"})
    assert in_root(here) == [".trephine-tmp-other", "small"]


async def test_two_fits_of_one_name_do_not_meet(tmp_path):
    """The second waits, and is told that the name is taken."""
    hold = asyncio.Event()
    here = await loaded(tmp_path, {**FITS, FitReplacementSet: Script(hold=hold, result=fitting)})
    runs = [asyncio.create_task(here.fits.run(REQUEST, ignore, fit_id=name)) for name in "fg"]
    while not asked(here, FitReplacementSet):
        await asyncio.sleep(0.001)
    hold.set()
    first, second = await asyncio.gather(*runs, return_exceptions=True)
    assert not isinstance(first, BaseException)
    assert isinstance(second, AlreadyExistsError)
    assert len(asked(here, FitReplacementSet)) == 1


async def test_a_corpus_is_text_or_a_folder_that_may_be_read(tmp_path):
    """NULs are refused, absent artifacts too; a shared datasets folder is passed on by path."""
    here = await loaded(tmp_path, FITS)
    junk = await uploaded(here, b"a\n" * (1 << 19) + b"b\nc\0")  # behind the first piece that is copied
    with pytest.raises(BrokenCorpusError, match=r"line 524290 \(byte 1048579\).*JSONL with a `text` column"):
        await here.fits.run(
            FitSetRequest(model="tiny", set_id="x", recipe=REQUEST.recipe, corpus=junk), ignore, fit_id="x"
        )
    absent = FitSetRequest(model="tiny", set_id="x", recipe=REQUEST.recipe, corpus="artifacts/" + "0" * 64)
    with pytest.raises(ResourceNotFoundError):
        await here.fits.check(absent, operation_id="x")
    (tmp_path / "datasets").mkdir()
    here.replacements.share(tmp_path / "datasets")
    folder = str(tmp_path / "datasets")
    shared = FitSetRequest(model="tiny", set_id="x", recipe=REQUEST.recipe, corpus=folder)
    await here.fits.run(shared, ignore, fit_id="y")
    assert asked(here, FitReplacementSet)[-1].corpus == folder


async def test_a_set_of_another_root_is_not_hidden_by_a_fit_of_its_name(tmp_path, monkeypatch):
    """Names are looked up in the first root first, which is where fits are published."""
    here = await loaded(tmp_path, FITS)
    write_set(tmp_path / "elsewhere", "mine")
    roots = here.fits._roots
    monkeypatch.setattr(roots, "_roots", (*roots._roots, (tmp_path / "elsewhere").resolve()))
    with pytest.raises(AlreadyExistsError, match="mine exists in a replacement root"):
        await here.fits.validate(REQUEST)
    with pytest.raises(AlreadyExistsError):
        await here.fits.run(REQUEST, ignore, fit_id="f")
    assert not asked(here, FitReplacementSet)


async def test_a_prediction_checks_name_and_corpus(tmp_path):
    """What would be refused `validate_only` refuses too; without a name only the recipe is predicted."""
    here = await loaded(tmp_path, FITS)
    assert (await here.fits.validate(replace(REQUEST, set_id=""))).seconds == 1
    assert (await here.fits.validate(REQUEST)).memory_bytes == 2
    for changes, error in (
        ({"set_id": "small"}, AlreadyExistsError),
        ({"set_id": "no/name"}, InvalidRequestError),
        ({"corpus": "artifacts/" + "0" * 64}, ResourceNotFoundError),
    ):
        with pytest.raises(error):
            await here.fits.validate(replace(REQUEST, **changes))
    assert not asked(here, FitReplacementSet)

"""Operations: started once, watched by many, cancelled, retried, numbered."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import replace

import pytest

from tests.fakes.engine import FakeEngine, Script
from tests.unit.app.house import House, discover_command, house, small_circuit
from trephine.app.jobs.requests import AuditRequest, DiscoverRequest, LoadRequest
from trephine.app.storage.records import encode
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.commands import Progress
from trephine.domain.errors import (
    DrainingError,
    EngineLostError,
    InvalidRequestError,
    ModelNotFoundError,
    ModelNotReadyError,
    OperationNotDoneError,
    PromptTooLongError,
    RequestIdReusedError,
    ResourceNotFoundError,
)
from trephine.domain.findings import AuditSpec
from trephine.domain.operations import OperationState

REQUEST = DiscoverRequest(model="tiny", command=discover_command())


def step(done: int) -> Progress:
    """One step of progress."""
    return Progress(stage="attribution", done=done, total=9)


async def ready(root, discover=None) -> House:
    """A house with `tiny` loaded and operations open."""
    here = house(root, None if discover is None else {DiscoverCircuit: discover})
    await here.models.load(here.models.resolve("tiny"), lambda _: None)
    await here.operations.open()
    return here


async def running(here: House) -> str:
    """Start a discovery and wait until the engine has it."""
    record = await here.operations.start("DiscoverCircuit", REQUEST, request_id="r")
    while not isinstance(here.launcher.latest.commands[-1], DiscoverCircuit):
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    return record.id


async def test_operation_ends_with_the_name_of_its_result(tmp_path):
    """A discovery ends as SUCCEEDED with a circuit that can be read."""
    here = await ready(tmp_path)
    started = await here.operations.start("DiscoverCircuit", REQUEST, request_id="r")
    assert started.state in {OperationState.QUEUED, OperationState.RUNNING}
    record = await here.operations.wait(started.id)
    assert (record.state, record.attempts, record.failure) == (OperationState.SUCCEEDED, 1, None)
    assert record.end_time is not None
    assert (await here.circuits.get(record.result)).circuit.prompt == small_circuit().prompt


async def test_same_request_id_is_the_same_operation(tmp_path):
    """Asking again starts nothing; another tenant or method is another operation."""
    here = await ready(tmp_path)
    first = await here.operations.start("DiscoverCircuit", REQUEST, request_id="r")
    await here.operations.wait(first.id)
    again = await here.operations.start("DiscoverCircuit", REQUEST, request_id="r")
    assert again.id == first.id
    assert sum(isinstance(command, DiscoverCircuit) for command in here.launcher.latest.commands) == 1
    other = await here.operations.start("DiscoverCircuit", REQUEST, request_id="r", tenant="other")
    assert other.id != first.id


async def test_request_id_with_another_request_is_refused(tmp_path):
    """A reused id is a conflict, also after a restart, and starts nothing."""
    here = await ready(tmp_path)
    first = await here.operations.start("DiscoverCircuit", REQUEST, request_id="r")
    await here.operations.wait(first.id)
    changed = replace(REQUEST, command=replace(REQUEST.command, seed=1))
    for operations in (here.operations, (await ready(tmp_path)).operations):
        with pytest.raises(RequestIdReusedError):
            await operations.start("DiscoverCircuit", changed, request_id="r")
        assert len(operations.list()) == 1


async def test_empty_request_id_is_always_new(tmp_path):
    """Without an id nothing is shared."""
    here = await ready(tmp_path)
    ids = {(await here.operations.start("DiscoverCircuit", REQUEST, request_id="")).id for _ in range(2)}
    assert len(ids) == 2


async def test_what_cannot_succeed_is_refused_before_an_operation_exists(tmp_path):
    """Unknown and unloaded models, and requests of another kind, leave no record."""
    here = house(tmp_path)
    await here.operations.open()
    with pytest.raises(ModelNotReadyError):
        await here.operations.start("DiscoverCircuit", REQUEST, request_id="r")
    with pytest.raises(ModelNotFoundError):
        await here.operations.start("DiscoverCircuit", replace(REQUEST, model="none"), request_id="r")
    with pytest.raises(InvalidRequestError):
        await here.operations.start("LoadModel", REQUEST, request_id="r")
    assert here.operations.list() == ()


async def test_failure_is_kept_with_its_reason_and_context(tmp_path):
    """A typed error of the work becomes the operation's failure, field and all."""
    error = PromptTooLongError("too long; shorten it", field="prompt", tokens=99)
    here = await ready(tmp_path, error)
    record = await here.operations.start("DiscoverCircuit", REQUEST, request_id="r")
    record = await here.operations.wait(record.id)
    assert record.state is OperationState.FAILED
    assert record.failure.reason == "PROMPT_TOO_LONG"
    assert record.failure.context == {"field": "prompt", "tokens": 99}


async def test_a_full_disk_is_told_wherever_nobody_expected_it(tmp_path):
    """Its own error, which says what to do, and none of a defect; other errors of the system are defects."""
    for number, reason in ((errno.ENOSPC, "DISK_FULL"), (errno.EIO, "INTERNAL")):
        here = await ready(tmp_path / reason, OSError(number, os.strerror(number)))
        record = await here.operations.start("DiscoverCircuit", REQUEST, request_id="r")
        record = await here.operations.wait(record.id)
        assert record.failure.reason == reason
        assert ("make room" in record.failure.message) == (reason == "DISK_FULL")


async def test_defect_fails_without_leaking(tmp_path):
    """An exception that is none of ours becomes INTERNAL and says nothing about its inside."""
    here = await ready(tmp_path, RuntimeError("secret detail"))
    record = await here.operations.start("DiscoverCircuit", REQUEST, request_id="r")
    record = await here.operations.wait(record.id)
    assert record.failure.reason == "INTERNAL"
    assert "secret" not in record.failure.message


async def test_lost_engine_is_restarted_and_the_work_repeated(tmp_path):
    """The second attempt runs on a fresh engine and succeeds; both are counted."""
    here = await ready(tmp_path, Script(hold=asyncio.Event(), result=small_circuit()))
    identifier = await running(here)
    lost = here.launcher.latest
    here.launcher.scripts[DiscoverCircuit] = small_circuit()
    lost.lose()
    record = await here.operations.wait(identifier)
    assert (record.state, record.attempts) == (OperationState.SUCCEEDED, 2)
    assert len(here.launcher.engines) == 2


async def test_work_that_kills_every_engine_is_given_up_after_three(tmp_path):
    """Two retries, then the loss is the operation's failure."""
    here = await ready(tmp_path, EngineLostError("gone"))
    record = await here.operations.start("DiscoverCircuit", REQUEST, request_id="r")
    record = await here.operations.wait(record.id)
    assert (record.failure.reason, record.attempts) == ("ENGINE_LOST", 3)
    assert len(here.launcher.engines) == 3


async def test_work_that_kills_every_server_is_given_up(tmp_path):
    """After ten servers were lost in a row the operation fails instead of taking the eleventh along."""
    here = await ready(tmp_path)
    record = await here.operations.start("DiscoverCircuit", REQUEST, request_id="r")
    await here.operations.wait(record.id)
    stored = here.journal.find(record.id)
    file = tmp_path / "state" / "operations" / f"{record.id}.json"
    dying = replace(stored, record=replace(stored.record, state=OperationState.RUNNING), unended=10)
    file.write_bytes(encode(dying))
    after = await ready(tmp_path)
    record = await after.operations.wait(record.id)
    assert (record.state, record.failure.reason) == (OperationState.FAILED, "ENGINE_LOST")


async def test_cancel_reaches_the_engine(tmp_path):
    """Cancelling ends the command in the engine, and the operation as CANCELLED; again is no error."""
    here = await ready(tmp_path, Script(hold=asyncio.Event(), result=small_circuit()))
    identifier = await running(here)
    record = await here.operations.cancel(f"operations/{identifier}")
    assert record.state is OperationState.CANCELLED
    assert isinstance(here.launcher.latest.cancelled[0], DiscoverCircuit)
    assert here.launcher.latest.alive
    assert await here.operations.cancel(identifier) == record


async def test_cancel_before_the_work_starts(tmp_path):
    """A queued operation that is cancelled never reaches the engine."""
    here = await ready(tmp_path, Script(hold=asyncio.Event(), result=small_circuit()))
    ids = [(await here.operations.start("DiscoverCircuit", REQUEST, request_id=f"r{n}")).id for n in range(9)]
    while _discoveries(here) < 8:
        await asyncio.sleep(0.001)
    assert here.operations.get(ids[8]).state is OperationState.QUEUED
    assert (await here.operations.cancel(ids[8])).state is OperationState.CANCELLED
    await here.operations.cancel(ids[0])
    await asyncio.sleep(0.05)
    assert _discoveries(here) == 8


def _discoveries(here: House) -> int:
    return sum(isinstance(command, DiscoverCircuit) for command in here.launcher.latest.commands)


async def test_shutdown_leaves_work_to_be_resumed(tmp_path):
    """Closing stops the work without ending the operation; the next server finishes it."""
    here = await ready(tmp_path, Script(hold=asyncio.Event(), result=small_circuit()))
    identifier = await running(here)
    await here.operations.close()
    assert not here.operations.get(identifier).state.is_final
    with pytest.raises(DrainingError):
        await here.operations.start("DiscoverCircuit", REQUEST, request_id="other")
    after = house(tmp_path)
    await after.operations.open()
    record = await after.operations.wait(identifier)
    assert (record.state, record.attempts) == (OperationState.SUCCEEDED, 2)


async def test_cancel_requested_before_a_crash_is_honoured_after_it(tmp_path):
    """A wish to cancel is durable: the next server does not start the work again."""
    here = await ready(tmp_path, Script(hold=asyncio.Event(), result=small_circuit()))
    identifier = await running(here)
    await here.journal.request_cancel(identifier)
    after = house(tmp_path)
    await after.operations.open()
    record = await after.operations.wait(identifier)
    assert record.state is OperationState.CANCELLED
    assert not after.launcher.engines
    await here.operations.close()


async def test_published_result_is_not_made_twice(tmp_path):
    """A crash between publishing and the final record costs one look, no second discovery."""
    here = await ready(tmp_path, Script(hold=asyncio.Event(), result=small_circuit()))
    identifier = await running(here)
    await here.circuits.save(small_circuit(), circuit_id=identifier)
    after = house(tmp_path)
    await after.operations.open()
    record = await after.operations.wait(identifier)
    assert (record.state, record.result) == (OperationState.SUCCEEDED, f"circuits/{identifier}")
    assert not after.launcher.engines
    await here.operations.close()


async def test_watch_replays_and_ends_with_the_final_event(tmp_path):
    """Late watchers get every remembered event in order; numbers grow by one; the last is final."""
    here = await ready(tmp_path, Script(events=tuple(step(n) for n in range(5)), result=small_circuit()))
    record = await here.operations.start("DiscoverCircuit", REQUEST, request_id="r")
    await here.operations.wait(record.id)
    events = [event async for event in here.operations.watch(record.id)]
    numbers = [event.record.sequence for event in events]
    assert numbers == list(range(1, len(numbers) + 1))
    done = [event.record.progress.done for event in events if event.record.progress]
    assert done[:5] == [0, 1, 2, 3, 4]
    assert events[-1].record.state is OperationState.SUCCEEDED
    resumed = [event async for event in here.operations.watch(record.id, numbers[-3])]
    assert [event.record.sequence for event in resumed] == numbers[-2:]
    late = [event async for event in here.operations.watch(record.id, 10**9)]
    assert [event.record.state for event in late] == [OperationState.SUCCEEDED]


async def test_leaving_a_watch_cancels_nothing(tmp_path):
    """A watcher that goes away leaves the work running."""
    hold = asyncio.Event()
    here = await ready(tmp_path, Script(events=(step(1),), hold=hold, result=small_circuit()))
    identifier = await running(here)
    watcher = asyncio.create_task(anext(aiter(here.operations.watch(identifier, 10))))
    await asyncio.sleep(0.01)
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    assert here.operations.get(identifier).state is OperationState.RUNNING
    hold.set()
    assert (await here.operations.wait(identifier)).state is OperationState.SUCCEEDED


async def test_silence_is_filled_with_heartbeats(tmp_path):
    """After 10 s without news a heartbeat comes; it has no number of its own."""
    here = await ready(tmp_path, Script(hold=asyncio.Event(), result=small_circuit()))
    identifier = await running(here)
    sequence = here.operations.get(identifier).sequence
    stream = aiter(here.operations.watch(identifier, sequence))
    beat = asyncio.create_task(anext(stream))
    await here.clock.sleepers(1)
    await here.clock.advance(9.0)
    assert not beat.done()
    await here.clock.advance(1.0)
    event = await asyncio.wait_for(beat, 60)
    assert (event.heartbeat, event.record.sequence) == (True, sequence)
    await here.operations.cancel(identifier)


async def test_numbers_never_repeat_across_a_crash(tmp_path):
    """A new server continues above every number that the old one can have shown."""
    here = await ready(
        tmp_path, Script(events=tuple(step(n) for n in range(50)), hold=asyncio.Event(), result=None)
    )
    identifier = await running(here)
    shown = here.operations.get(identifier).sequence
    after = house(tmp_path)
    assert after.operations.get(identifier).sequence > shown
    assert after.operations.get(identifier).state is OperationState.QUEUED
    await here.operations.close()


async def test_progress_is_stored_at_most_once_a_second(tmp_path, monkeypatch):
    """A thousand steps within a second are one write, and the newest is shown at once."""
    here = await ready(tmp_path, Script(hold=asyncio.Event(), result=small_circuit()))
    identifier = await running(here)
    writes: list[str] = []
    real = here.journal._records.write
    monkeypatch.setattr(
        here.journal._records, "write", lambda key, value: (writes.append(key), real(key, value))
    )
    for n in range(1000):
        here.journal.progress(identifier, step(n))
    await here.journal.settle()
    assert here.operations.get(identifier).progress == step(999)
    assert len(writes) == 0
    await here.clock.advance(1.5)
    for n in range(1000):
        here.journal.progress(identifier, step(n))
    await here.journal.settle()
    assert len(writes) == 1
    await here.operations.close()


async def test_wait_ends_with_its_time(tmp_path):
    """Waiting returns the running operation once the time is over."""
    here = await ready(tmp_path, Script(hold=asyncio.Event(), result=small_circuit()))
    identifier = await running(here)
    waiting = asyncio.create_task(here.operations.wait(identifier, 5.0))
    await here.clock.sleepers(1)
    await here.clock.advance(5.0)
    assert (await waiting).state is OperationState.RUNNING
    await here.operations.close()


async def test_only_ended_operations_are_deleted(tmp_path):
    """Deleting a running operation is refused; a deleted one is gone, and its id free."""
    here = await ready(tmp_path, Script(hold=asyncio.Event(), result=small_circuit()))
    identifier = await running(here)
    with pytest.raises(OperationNotDoneError):
        here.operations.delete(identifier)
    await here.operations.cancel(identifier)
    here.operations.delete(identifier)
    with pytest.raises(ResourceNotFoundError):
        here.operations.get(identifier)
    assert (await ready(tmp_path)).operations.list() == ()


async def test_load_is_an_operation(tmp_path):
    """LoadModel ends with the model's name."""
    here = house(tmp_path)
    await here.operations.open()
    request = LoadRequest(source=here.models.resolve("tiny"))
    record = await here.operations.start("LoadModel", request, request_id="r")
    assert (await here.operations.wait(record.id)).result == "models/tiny"
    assert isinstance(here.launcher.latest, FakeEngine)


async def test_audit_is_an_operation(tmp_path):
    """RunAudit stores a report, and renders as an artifact."""
    here = await ready(tmp_path)
    request = AuditRequest(model="tiny", spec=AuditSpec(auditor="fake"))
    record = await here.operations.start("RunAudit", request, request_id="r")
    record = await here.operations.wait(record.id)
    report = await here.audits.get(record.result)
    assert (report.auditor.name, report.model, report.weight_hash) == ("fake", "tiny", "w" * 64)
    info = await here.audits.render(record.result, "sarif")
    assert await here.artifacts.read(info.sha256) == f"sarif {report.id}".encode()


async def test_unknown_auditor_names_the_installed_ones(tmp_path):
    """The failure of an audit by nobody lists who there is."""
    here = await ready(tmp_path)
    request = AuditRequest(model="tiny", spec=AuditSpec(auditor="nobody"))
    record = await here.operations.start("RunAudit", request, request_id="r")
    record = await here.operations.wait(record.id)
    assert record.failure.reason == "AUDITOR_NOT_FOUND"
    assert "fake" in record.failure.message
    assert not here.host.runs

from __future__ import annotations

import pytest

from tests.fakes.grpc_server import FakeService
from trephine.client import Circuit, Trephine, operations
from trephine.client.aio import connect as connect_async
from trephine.client.errors import CancelledByCallerError, DeadlinePassedError, ServerUnreachableError
from trephine.client.types import Progress


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "RECONNECT_PAUSES", (0.01, 0.01))


def test_result_is_the_typed_resource_with_progress_before_it(fake: FakeService, trephine: Trephine):
    """`discover` watches to the end, reports every step, and returns a circuit that can be asked."""
    steps: list[Progress] = []
    model = trephine.model("tiny")
    circuit = model.discover("Mary", target=" Mary", on_progress=steps.append)
    assert isinstance(circuit, Circuit)
    assert [step.done for step in steps] == [1, 2, 3, 4]
    assert circuit.nodes()[0].feature is not None


def test_a_broken_watch_resumes_where_it_broke(fake: FakeService, trephine: Trephine):
    """After UNAVAILABLE the watch goes on after the last sequence: nothing is seen twice or missed."""
    fake.watch_breaks = 1
    operation = trephine.model("tiny").start_discover("Mary", target=" Mary")
    seen = [update.metadata.sequence for update in operation.watch()]
    assert seen == [1, 2, 3, 4]
    assert fake.watched_after == [0, 2]


def test_a_server_that_stays_away_ends_the_watch_with_what_to_do(fake: FakeService, trephine: Trephine):
    """When all attempts are used up the error says that the work is durable and how to come back."""
    operation = trephine.model("tiny").start_discover("Mary", target=" Mary")
    trephine._wire.endpoint = operation._wire.endpoint
    gone = Trephine(type(trephine._wire)(type(trephine._wire.endpoint)(address="127.0.0.1:1")))
    lost = type(operation)(gone._wire, operation.message, lambda message: message)
    with pytest.raises(ServerUnreachableError, match="operations wait operations/1"):
        lost.result()
    gone.close()


def test_leaving_a_watch_cancels_nothing_and_cancel_does(fake: FakeService, trephine: Trephine):
    """A watch that is left is no cancellation; `cancel` is, and `result` then says so."""
    fake.endless = True
    operation = trephine.model("tiny").start_discover("Mary", target=" Mary")
    next(iter(operation.watch()))
    assert not fake.cancelled.is_set()
    operation.cancel()
    with pytest.raises(CancelledByCallerError):
        operation.result()


def test_a_time_limit_ends_the_wait_not_the_work(fake: FakeService, trephine: Trephine):
    """`timeout_seconds` raises; the operation was not cancelled."""
    fake.endless = True
    operation = trephine.model("tiny").start_discover("Mary", target=" Mary")
    with pytest.raises(
        DeadlinePassedError, match="operations/1 is not done yet; it goes on, wait for it again"
    ):
        operation.result(timeout_seconds=0.3)
    assert not fake.cancelled.is_set()


def test_request_ids_are_fresh_unless_given(fake: FakeService, trephine: Trephine):
    """Two calls are two requests; a given id is sent as it is."""
    model = trephine.model("tiny")
    for given in (None, None, "11111111-1111-4111-8111-111111111111"):
        model.start_discover("Mary", target=" Mary", request_id=given)
    first, second, third = (request.request_id for request in fake.requests[-3:])
    assert first != second
    assert third == "11111111-1111-4111-8111-111111111111"


def test_operations_are_found_by_name_with_their_typed_result(fake: FakeService, trephine: Trephine):
    """A handle made from a name alone ends with the same kind of value."""
    name = trephine.model("tiny").start_discover("Mary", target=" Mary").name
    assert isinstance(trephine.operations.get(name).result(), Circuit)
    assert [operation.name for operation in trephine.operations.list()] == [name]


async def test_the_async_watch_resumes_too(fake: FakeService, address: str):
    """The async client has the same guarantee."""
    fake.watch_breaks = 1
    async with await connect_async(address) as trephine:
        model = await trephine.model("tiny")
        operation = await model.start_discover("Mary", target=" Mary")
        seen = [update.metadata.sequence async for update in operation.watch()]
    assert seen == [1, 2, 3, 4]
    assert fake.watched_after == [0, 2]

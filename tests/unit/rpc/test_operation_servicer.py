"""How long a wait for an operation may take."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from google.longrunning import operations_pb2 as longrunning
from google.protobuf.duration_pb2 import Duration

from trephine.domain.errors import InvalidRequestError
from trephine.rpc.operation_servicer import LongrunningServicer


async def waited(seconds: int | None, deadline: float | None) -> float | None:
    """The time that the use case is given for a request's timeout and a call's deadline."""
    given: list[float | None] = []

    class Operations:
        async def wait(self, name: str, timeout_seconds: float | None) -> None:
            given.append(timeout_seconds)

    class Writer:
        async def write(self, record: None) -> longrunning.Operation:
            return longrunning.Operation()

    service: Any = SimpleNamespace(operations=Operations())
    writer: Any = Writer()
    context: Any = SimpleNamespace(time_remaining=lambda: deadline)
    request = longrunning.WaitOperationRequest(name="operations/o")
    if seconds is not None:
        request.timeout.CopyFrom(Duration(seconds=seconds))
    await LongrunningServicer(service, writer).WaitOperation(request, context)
    [only] = given
    return only


@pytest.mark.parametrize(
    ("seconds", "deadline", "expected"),
    [
        (None, None, None),
        (7, None, 7.0),
        (0, None, 0.0),
        (7, 60.0, 7.0),
        (None, 60.0, 59.8),
        (90, 60.0, 59.8),
        (None, 0.1, 0.0),
    ],
)
async def test_the_answer_comes_before_the_callers_deadline(
    seconds: int | None, deadline: float | None, expected: float | None
):
    """The shorter of the request's time and the call's, which is cut so that the answer is still heard."""
    assert await waited(seconds, deadline) == (None if expected is None else pytest.approx(expected))


async def test_negative_times_are_refused():
    """A time that cannot be waited for is the caller's error."""
    with pytest.raises(InvalidRequestError) as caught:
        await waited(-1, None)
    assert caught.value.context["field"] == "timeout"

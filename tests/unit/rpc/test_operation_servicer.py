"""How long a wait for an operation may take, and which operations a filter names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from google.longrunning import operations_pb2 as longrunning
from google.protobuf.duration_pb2 import Duration

from trephine.domain.errors import InvalidRequestError
from trephine.rpc.operation_servicer import LongrunningServicer, _filters


async def waited(seconds: int | None, deadline: float | None, nanos: int = 0) -> float | None:
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
        request.timeout.CopyFrom(Duration(seconds=seconds, nanos=nanos))
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


async def test_the_longest_duration_is_waited_for():
    """Python's own timedelta ends before the contract's."""
    assert await waited(315_576_000_000, None) == 315_576_000_000.0


@pytest.mark.parametrize(
    ("seconds", "nanos", "words"),
    [
        (-1, 0, "must not be negative"),
        (0, -1, "must not be negative"),
        (2**62, 0, "at most 315576000000 seconds"),
        (-(2**62), 0, "at most 315576000000 seconds"),
        (0, 2_000_000_000, "nanos below a second"),
    ],
)
async def test_times_that_nobody_can_wait_are_refused(seconds: int, nanos: int, words: str):
    """A time that is no duration, or a negative one, is the caller's error."""
    with pytest.raises(InvalidRequestError, match=words) as caught:
        await waited(seconds, None, nanos)
    assert caught.value.context["field"] == "timeout"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", {}),
        ("  ", {}),
        ("state=running", {"state": "running"}),
        (
            'method = "DiscoverCircuit"  AND state=failed',
            {"method": "DiscoverCircuit", "state": "failed"},
        ),
    ],
)
def test_a_filter_is_read(text: str, wanted: dict[str, str]):
    """Blanks and quotes change nothing."""
    assert _filters(text) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("color=red", "state=S and method=M"),
        ("state", "state=S and method=M"),
        ("state=running AND ", "knows no state 'running AND'"),
        ("state=runing", "no state 'runing'; state is one of queued, running, succeeded, failed, cancelled"),
        ("state=", "knows no state ''"),
        ("method=Discover", "method is one of LoadModel, DiscoverCircuit"),
        ("method = DiscoverCircuit and state=succeeded", "AND, in capitals"),
        ("state=running AND state=failed", "names state twice"),
    ],
)
def test_a_filter_that_nothing_could_match_is_refused(text: str, words: str):
    """An empty list would look like an answer."""
    with pytest.raises(InvalidRequestError, match=words) as caught:
        _filters(text)
    assert caught.value.context["field"] == "filter"

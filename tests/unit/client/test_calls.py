"""Ctrl-C at any instruction of the caller leaves the channel working: none of gRPC's code runs there."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import grpc
import pytest

from trephine.client import calls as calls_module
from trephine.client.calls import Calls
from trephine.client.errors import ConnectionClosedError, ModelNotFoundError, ServerUnreachableError
from trephine.v1 import (
    generation_service_pb2,
    generation_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)

TINY = model_service_pb2.GetModelRequest(name="models/tiny")
ROWS = generation_service_pb2.GenerateRequest(rows=[generation_service_pb2.GenerationRow()])


@pytest.fixture
def calls(address: str) -> Iterator[Calls]:
    with Calls(grpc.insecure_channel(address)) as calls:
        yield calls


def ask(calls: Calls) -> str:
    """Ask once."""
    stub = model_service_pb2_grpc.ModelServiceStub(calls.channel)
    return str(calls.ask(stub.GetModel, TINY, timeout=20).name)


def read(calls: Calls) -> str:
    """Read a stream to its end."""
    stub = generation_service_pb2_grpc.GenerationServiceStub(calls.channel)
    return " ".join(str(one.WhichOneof("event")) for one in calls.stream(stub.Generate, ROWS, timeout=20))


ANSWERS: dict[Callable[[Calls], str], str] = {ask: "models/tiny", read: "token token finished"}


@pytest.mark.parametrize("use", ANSWERS)
def test_none_of_grpcs_code_runs_on_the_callers_thread(use: Callable[[Calls], str], address: str):
    """Nor any Python lock: a call, a stream and closing touch queues written in C alone."""
    entered: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            entered.add(str(frame.f_globals.get("__name__")))
        elif event == "c_call":
            entered.add(str(getattr(argument, "__module__", None) or type(argument.__self__).__module__))

    calls = Calls(grpc.insecure_channel(address))
    stub = model_service_pb2_grpc.ModelServiceStub(calls.channel)
    texts = generation_service_pb2_grpc.GenerationServiceStub(calls.channel)
    sys.setprofile(note)
    try:
        if use is ask:
            calls.ask(stub.GetModel, TINY, timeout=20)
        else:
            list(calls.stream(texts.Generate, ROWS, timeout=20))
        calls.close()
    finally:
        sys.setprofile(None)
    assert calls_module.__name__ in entered
    assert "_queue" in entered
    touched = {name for name in entered if name.partition(".")[0] in {"grpc", "threading", "concurrent"}}
    assert not touched


@pytest.mark.parametrize("use", ANSWERS)
def test_interrupted_at_any_instruction_the_channel_goes_on(use: Callable[[Calls], str], calls: Calls):
    """Ctrl-C at the first, second, third... instruction of a call: the next call is answered each time."""
    place = 0
    while interrupted_at(place, lambda: use(calls)):
        assert use(calls) == ANSWERS[use]
        place += 1
    assert place > 50


def interrupted_at(place: int, work: Callable[[], object]) -> bool:
    """Run something, with Ctrl-C at an instruction of `calls.py`; return whether it came that far."""
    passed = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal passed
        if frame.f_code.co_filename != calls_module.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            passed += 1
            if passed > place:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("use", ANSWERS)
def test_a_wait_of_many_slices_is_one_wait(
    use: Callable[[Calls], str], calls: Calls, monkeypatch: pytest.MonkeyPatch
):
    """A slice that ends without an answer ends nothing."""
    monkeypatch.setattr(calls_module, "_SLICE_SECONDS", 0.0)
    assert use(calls) == ANSWERS[use]


def test_errors_come_as_they_mean(calls: Calls):
    """A refusal is the typed error, whose cause is what gRPC raised; a closed channel says so."""
    stub = model_service_pb2_grpc.ModelServiceStub(calls.channel)
    with pytest.raises(ModelNotFoundError, match="no model models/other") as refused:
        calls.ask(stub.GetModel, model_service_pb2.GetModelRequest(name="models/other"), timeout=20)
    assert isinstance(refused.value.__cause__, grpc.RpcError)
    with pytest.raises(ServerUnreachableError):
        calls.ask(stub.GetCapabilities, model_service_pb2.GetCapabilitiesRequest(), timeout=20)
    texts = generation_service_pb2_grpc.GenerationServiceStub(calls.channel)
    calls.close()
    with pytest.raises(ConnectionClosedError):
        calls.ask(stub.GetModel, TINY)
    with pytest.raises(ConnectionClosedError):
        list(calls.stream(texts.Generate, ROWS))


def test_a_defect_in_rebuilding_an_error_reaches_who_waits(calls: Calls, monkeypatch: pytest.MonkeyPatch):
    """It is raised where an answer is awaited: gRPC swallows what its callbacks raise."""

    def defect(failure: grpc.RpcError) -> Exception:
        raise KeyError("ours")

    monkeypatch.setattr(calls_module, "error_of_call", defect)
    stub = model_service_pb2_grpc.ModelServiceStub(calls.channel)
    with pytest.raises(KeyError, match="ours") as raised:
        calls.ask(stub.GetModel, model_service_pb2.GetModelRequest(name="models/none"), timeout=20)
    assert isinstance(raised.value.__cause__, grpc.RpcError)


def test_a_stream_that_is_left_ends_on_the_server(fake: Any, calls: Calls):
    """Closing the iterator, after one message, cancels an endless answer."""
    fake.generate_forever = True
    stub = generation_service_pb2_grpc.GenerationServiceStub(calls.channel)
    messages = calls.stream(stub.Generate, ROWS)
    assert next(messages).WhichOneof("event") == "token"
    messages.close()
    assert fake.generation_ended.wait(20)


def test_its_thread_ends_with_it(address: str):
    """Calls that are dropped leave no thread behind."""
    before = threading.enumerate()  # those of calls that are not collected yet
    calls = Calls(grpc.insecure_channel(address))
    ask(calls)
    (thread,) = [one for one in threading.enumerate() if one.name == "trephine-calls" and one not in before]
    calls.close()
    del calls
    thread.join(20)
    assert not thread.is_alive()

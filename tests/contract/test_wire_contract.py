"""The wire contract only grows, and everything in it is served."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2

from tests.contract.snapshot import FILE, contract, files
from tests.integration.server_house import edge
from trephine.rpc.registration import SERVICES

SNAPSHOT: dict[str, Any] = json.loads(FILE.read_text())


@pytest.mark.parametrize("section", ["messages", "enums", "services"])
def test_nothing_was_removed_renumbered_or_retyped(section: str):
    """Every field number, enum value and method of the snapshot is there, as it was."""
    now = contract()[section]
    for owner, parts in SNAPSHOT[section].items():
        for key, what in parts.items():
            assert now.get(owner, {}).get(key) == what, f"{owner} {key}: was {what}"


def test_the_snapshot_is_current():
    """What was added is in the snapshot too: run `python -m tests.contract.snapshot` and commit it."""
    assert contract() == SNAPSHOT


def test_every_enum_begins_with_unspecified():
    """Zero means unset, so that an absent enum is never a choice."""
    for name, values in contract()["enums"].items():
        assert values["0"].endswith("_UNSPECIFIED"), name


def test_every_service_of_the_protos_is_registered():
    """No service of the contract is forgotten at registration."""
    declared = {service.full_name for file in files() for service in file.services_by_name.values()}
    assert declared | {"google.longrunning.Operations"} == set(SERVICES)


async def test_no_method_is_unimplemented(tmp_path):
    """An empty request to every method meets our code: success or a typed error, never UNIMPLEMENTED."""
    methods = [
        method for file in files() for service in file.services_by_name.values() for method in service.methods
    ]
    methods += operations_pb2.DESCRIPTOR.services_by_name["Operations"].methods
    seen = {}
    async with edge(tmp_path) as server:
        for method in methods:
            seen[method.full_name] = await _code(server.channel, method)
    assert len(seen) >= 40
    assert not [name for name, code in seen.items() if code == grpc.StatusCode.UNIMPLEMENTED]
    assert not [name for name, code in seen.items() if code == grpc.StatusCode.INTERNAL]


async def _code(channel: grpc.aio.Channel, method: Any) -> grpc.StatusCode:
    """Call with empty requests, whichever of the four kinds the method is."""
    kinds = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    path = f"/{method.containing_service.full_name}/{method.name}"
    call = kinds[method.client_streaming, method.server_streaming](
        path, request_serializer=lambda data: data, response_deserializer=lambda data: data
    )
    request: Any = iter([b""]) if method.client_streaming else b""
    answer = call(request, timeout=60)
    try:
        if method.server_streaming:
            async for _ in answer:
                pass
        else:
            await answer
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK

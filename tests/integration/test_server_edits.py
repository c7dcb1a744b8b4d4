"""Edits through a real gRPC server and the async client, over a scripted engine."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from tests.integration.server_house import edge, field, loaded_engine
from trephine.client.aio.edits import AsyncEdits
from trephine.client.aio.wire import AsyncWire
from trephine.client.endpoint import Endpoint
from trephine.client.errors import (
    EditChangedError,
    FeatureOutOfRangeError,
    InvalidRequestError,
    ResourceNotFoundError,
)
from trephine.client.evidence import EvidenceWarning
from trephine.client.interventions import feature
from trephine.v1 import edit_history_pb2 as pb
from trephine.v1.edit_service_pb2_grpc import EditServiceStub

pytestmark = [pytest.mark.integration]


@pytest_asyncio.fixture
async def edits(tmp_path) -> AsyncIterator[AsyncEdits]:
    """The edits of a server on which `tiny` is loaded."""
    async with edge(tmp_path, [loaded_engine()]) as server:
        await server.load()
        yield AsyncEdits(AsyncWire(Endpoint(address=server.address)))


async def test_an_edit_lives_through_versions(edits):
    """Created, updated, reverted, listed and read by version; what is passed as value must be the latest."""
    first = await edits.create("quiet", [feature(1, 2).ablate()], model="tiny", reason="a test")
    evidence = ("audits/a#f1", "circuits/3f", f"names@sha256:{'0' * 64}")
    with pytest.warns(EvidenceWarning):
        second = await edits.update(
            first, [feature(1, 2).scale(0.5)], reason="gentler", evidence=(*evidence, evidence[0])
        )
    assert (second.version, second.reason, second.evidence) == (2, "gentler", evidence)
    assert second.interventions[0].change.value == 0.5
    with pytest.raises(EditChangedError, match="at version 2 now"):
        await edits.update(first, reason="unseen")
    third = await edits.revert("quiet", 1)
    assert third.interventions == first.interventions
    assert (third.version, third.reverted_from, third.content_hash) == (3, 1, first.content_hash)
    assert [one.version for one in await edits.versions("quiet")] == [3, 2, 1]
    assert await edits.get("quiet@2") == second
    assert (await edits.get("quiet")).reference == "edits/quiet@3"
    await edits.delete(third)
    with pytest.raises(ResourceNotFoundError):
        await edits.get("quiet@1")


async def test_bad_updates_name_what_is_wrong(edits):
    """Unknown edits and versions, features that are not there, an update of nothing."""
    await edits.create("quiet", [feature(1, 2).ablate()], model="tiny")
    for name in ("nobody", "quiet@7"):
        with pytest.raises(ResourceNotFoundError):
            await edits.get(name)
    with pytest.raises(FeatureOutOfRangeError) as caught:
        await edits.update("quiet", [feature(1, 64).ablate()])
    assert caught.value.field == "interventions[0].target.feature.index"
    for evidence in ("my notes", "circuits/", "audits/a#", "models/tiny", "news@sha256:abc"):
        with pytest.raises(InvalidRequestError, match="for one finding") as caught:
            await edits.update("quiet", evidence=["audits/a", evidence])
        assert caught.value.field == "evidence[1]"
    with pytest.raises(InvalidRequestError, match="say what changes"):
        await edits.update("quiet")
    with pytest.raises(InvalidRequestError, match="versions never change"):
        await edits.update("quiet@1", reason="x")


async def test_fields_of_an_update_are_checked_at_the_edge(tmp_path):
    """A mask may name what can be replaced only, and without one something must be given."""
    async with edge(tmp_path, [loaded_engine()]) as server:
        await server.load()
        stub = server.stub(EditServiceStub)
        mask = {"paths": ["name"]}
        for request, where in (
            (pb.UpdateEditRequest(name="edits/quiet", update_mask=mask), "update_mask"),
            (pb.UpdateEditRequest(name="edits/quiet"), "update_mask"),
            (pb.UpdateEditRequest(name="edits/quiet", reason="x", expected_version=0), "expected_version"),
            (pb.UpdateEditRequest(name="quiet", reason="x"), "name"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.UpdateEdit(request)
            assert field(caught.value) == where

"""What edits rest on is looked up: told where it is not here, refused where a record says otherwise."""

from __future__ import annotations

import asyncio
import hashlib
import warnings
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.integration.server_house import Edge, edge, loaded_engine
from tests.unit.auditors.reports import report
from trephine.client.aio.edits import AsyncEdits
from trephine.client.aio.wire import AsyncWire
from trephine.client.edits import Edits
from trephine.client.endpoint import Endpoint
from trephine.client.errors import InvalidRequestError
from trephine.client.evidence import EvidenceWarning
from trephine.client.interventions import feature
from trephine.client.wire import Wire
from trephine.domain.edits import EditProposal
from trephine.domain.findings import Verdict

pytestmark = [pytest.mark.integration]
TEXT = b"what was looked at"
CHANGE = [feature(1, 2).ablate()]
PROPOSAL = EditProposal(
    baseline=1.0, curve=(), ranking=(), chosen=0, why="", retain_tokens=0, retain_text="", model="tiny",
    weight_hash="w",
)  # fmt: skip


@pytest_asyncio.fixture
async def server(tmp_path) -> AsyncIterator[Edge]:
    """A server with a model, an audit with one finding, a proposal and an upload."""
    async with edge(tmp_path, [loaded_engine()]) as server:
        await server.load()
        service = server.house.service
        service.audits._records.write("a", report(Verdict.FAIL))
        await service.proposals.save(PROPOSAL, proposal_id="p")
        await service.artifacts.put(TEXT, media_type="text/plain")
        yield server


def references() -> tuple[list[str], list[str]]:
    """What is on that server, and what is not."""
    here = [
        f"audits/a#{'f' * 64}",
        "audits/a",
        "proposals/p",
        "edits/base@1",
        f"texts@sha256:{hashlib.sha256(TEXT).hexdigest()}",
    ]
    away = [
        *(f"{name}/x" for name in ("circuits", "datasetCircuits", "circuitVerifications", "evaluations")),
        *(f"{name}/x" for name in ("proposals", "exports", "featureIndexes", "spuriousRemovals", "audits")),
        *("audits/x#f1", "edits/base@2", "edits/base/evaluations/x", f"sha256:{'0' * 64}"),
    ]
    return here, away


async def test_every_reference_that_is_not_here_is_told_and_kept(server):
    """Of each kind; what is here is not told; by name as well, but not in lists."""
    edits = AsyncEdits(AsyncWire(Endpoint(address=server.address)))
    await edits.create("base", CHANGE, model="tiny")
    here, away = references()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (await edits.create("sure", CHANGE, model="tiny", evidence=here)).evidence_warnings == ()
    with pytest.warns(EvidenceWarning) as told:
        made = await edits.create("unsure", CHANGE, model="tiny", evidence=[*here, *away])
    assert made.evidence == (*here, *away)
    assert tuple(str(one.message) for one in told) == made.evidence_warnings
    assert {one.filename for one in told} == {__file__}
    for name, warning in zip(away, made.evidence_warnings, strict=True):
        assert warning.startswith(name)
        assert "update the edit's evidence" in warning
    assert (await edits.get("unsure")).evidence_warnings == made.evidence_warnings
    assert {one.evidence_warnings for one in await edits.list()} == {()}


async def test_updates_and_compositions_tell_it_too_in_the_sync_client(server):
    """Each warns where it was called."""
    edits = Edits(Wire(Endpoint(address=server.address)))

    def calls() -> list[tuple[str, ...]]:
        edits.create("base", CHANGE, model="tiny")
        with pytest.warns(EvidenceWarning, match="circuits/x is not on this server"):
            updated = edits.update("base", evidence=["circuits/x"])
        with pytest.warns(EvidenceWarning) as both:
            composed = edits.compose("both", ["base"], evidence=["audits/y"])
        assert sorted(str(one.message).split()[0] for one in both) == ["audits/y", "circuits/x"]
        with pytest.warns(EvidenceWarning, match="sha256sum"):
            created = edits.create("last", CHANGE, model="tiny", evidence=[f"sha256:{'1' * 64}"])
        return [one.evidence_warnings for one in (updated, composed, created)]

    told = await asyncio.to_thread(calls)
    assert [len(one) for one in told] == [1, 2, 1]  # a composition rests on what its parts rest on


async def test_a_finding_that_an_audit_does_not_hold_is_refused(server):
    """The audit is here, so that it must know; nothing is stored, and what it has is listed."""
    edits = AsyncEdits(AsyncWire(Endpoint(address=server.address)))
    await edits.create("base", CHANGE, model="tiny")
    wrong = ["audits/a", "audits/a#f1"]
    for call in (
        edits.create("other", CHANGE, model="tiny", evidence=wrong),
        edits.update("base", evidence=wrong),
        edits.compose("other", ["base"], evidence=wrong),
    ):
        with pytest.raises(InvalidRequestError, match=f"has no finding f1; it has {'f' * 64}") as refused:
            await call
        assert refused.value.field == "evidence[1]"
    assert [one.reference for one in await edits.list()] == ["edits/base@1"]

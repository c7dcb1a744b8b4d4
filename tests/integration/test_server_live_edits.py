"""Stored edits served by a real server over a real engine process with a tiny model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import grpc
import pytest
import pytest_asyncio

from tests.builders import tiny_folder
from tests.integration.server_house import Edge, edge, field, reason
from trephine.client.aio.model import AsyncModel
from trephine.client.aio.trephine import AsyncTrephine
from trephine.client.aio.wire import AsyncWire
from trephine.client.endpoint import Endpoint
from trephine.client.errors import (
    EditConflictError,
    EditInUseError,
    InvalidRequestError,
    NothingMatchedError,
    PositionOutOfRangeError,
)
from trephine.client.interventions import feature
from trephine.client.requests import AnyEdit, Row, ScoreRow
from trephine.client.types import (
    EditConflictKind,
    EditUse,
    Intervention,
    InterventionChangeKind,
    RowScore,
    Where,
)
from trephine.ipc.engine_proxy import SubprocessEngineLauncher
from trephine.v1 import live_edits_pb2
from trephine.v1.edit_service_pb2_grpc import EditServiceStub

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
PROMPT, CONTINUATION = "When Mary and John went to", " the store gave a drink"
QUIET, WARM = feature(1, 7).set(3.0), feature(2, 5).add(6.0)


@dataclass(frozen=True)
class Served:
    """A server with a tiny Llama and the edits `quiet` and `warm`."""

    server: Edge
    trephine: AsyncTrephine
    model: AsyncModel

    async def score(self, *rows: ScoreRow) -> tuple[RowScore, ...]:
        """Score rows in one batch."""
        return (await self.model.score(rows)).rows


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """The server."""
    folder = tmp_path_factory.mktemp("edge")
    tiny_folder("llama", folder / "roots" / "tiny")
    async with edge(folder, launcher=SubprocessEngineLauncher(threads=1)) as server:
        await server.load()
        trephine = AsyncTrephine(AsyncWire(Endpoint(address=server.address)))
        await trephine.edits.create("quiet", [QUIET], model="tiny", author="me")
        await trephine.edits.create("warm", [WARM], model="tiny", author="me")
        yield Served(server, trephine, await trephine.model("tiny"))


def row(*interventions: Intervention, edits: Sequence[AnyEdit] = (), plain: bool = False) -> ScoreRow:
    """The text of these tests."""
    return ScoreRow(PROMPT, CONTINUATION, interventions, edits, plain)


def same(one: RowScore, other: RowScore) -> bool:
    """Equal log-probabilities up to what a batch of another shape rounds."""
    return one.log_probabilities == pytest.approx(other.log_probabilities, abs=2e-5)


async def test_each_row_of_a_batch_has_its_own_edits_and_strengths(served):
    """Beside plain rows; each equals what its interventions do by hand, and echoes versions and writes."""
    halfway = feature(1, 7).scale(0.5)  # what half of an ablation is
    await served.trephine.edits.create("gone", [feature(1, 7).ablate()], model="tiny")
    rows = await served.score(
        row(plain=True),
        row(edits=["warm"]),
        row(edits=[EditUse(edit="gone", strength=0.5), EditUse(edit="warm", strength=0.25)]),
        row(halfway, feature(2, 5).add(1.5)),
        row(feature(0, 3).ablate(), edits=["quiet"]),
        row(QUIET, feature(0, 3).ablate()),
        row(edits=[EditUse(edit="warm", strength=0.0)]),
        row(WARM),
    )
    plain, warm, both, by_hand, beside, by_hand_beside, nothing, warm_by_hand = rows
    assert same(both, by_hand)
    assert same(beside, by_hand_beside)
    assert same(warm, warm_by_hand)
    assert same(nothing, plain)
    assert not same(warm, plain)
    assert not same(both, warm)
    assert plain.kl == pytest.approx([0.0] * len(plain.kl), abs=1e-6)
    assert max(warm.kl) > 1e-3
    assert plain.edits == ()
    assert [(one.edit, one.strength) for one in both.edits] == [("edits/gone@1", 0.5), ("edits/warm@1", 0.25)]
    assert [echo.index for one in both.edits for echo in one.applied] == [0, 0]
    assert [echo.mean_change for echo in warm.edits[0].applied] == pytest.approx([6.0])
    assert [echo.index for echo in beside.applied] == [0]
    assert beside.applied[0].layer == 0


async def test_other_peoples_rows_do_not_feel_an_edit(served):
    """Requests at the same time, with and without edits, in one generation and in many scorings."""
    alone = (await served.score(row(plain=True)))[0]

    async def scored(*edits: str) -> RowScore:
        return (await served.score(row(edits=edits, plain=not edits)))[0]

    async def written(rows: list[Row]) -> tuple[str, ...]:
        async with served.model.generate(rows, max_new_tokens=12) as stream:
            async for _ in stream:
                pass
            result = await stream.result()
        return tuple(one.text for one in result.completions)

    mine = [Row(PROMPT, plain=True), Row(PROMPT, edits=["warm"]), Row(PROMPT, edits=["quiet", "warm"])]
    *scores, texts, only = await asyncio.gather(
        *(scored(*edits) for edits in ((), ("warm",), (), ("quiet", "warm"), ())),
        written(mine),
        written([Row(PROMPT, plain=True)]),
    )
    assert [same(alone, one) for one in scores] == [True, False, True, False, True]
    assert texts[0] == only[0]
    assert len(set(texts)) > 1


async def test_a_default_serves_requests_that_name_none(served):
    """Set, overruled, left out, followed through update and reversion, ended; measurements never see it."""
    model, edits = served.model, served.trephine.edits
    plain, quiet, warm = await served.score(row(plain=True), row(edits=["quiet"]), row(edits=["warm"]))
    measured = await model.ablate(PROMPT, [WARM], target=" Mary", controls=0)
    setting = await model.set_live_edits([EditUse(edit="quiet")])
    assert [use.edit for use in setting.edits] == ["edits/quiet"]
    assert await model.live_edits() == setting
    unnamed, named, without = await served.score(row(), row(edits=["warm"]), row(plain=True))
    assert [same(unnamed, quiet), same(named, warm), same(without, plain)] == [True, True, True]
    assert [one.edit for one in unnamed.edits] == ["edits/quiet@1"]
    again = await model.ablate(PROMPT, [WARM], target=" Mary", controls=0)
    assert again.effects[0].change == pytest.approx(measured.effects[0].change)
    async with model.side_by_side(PROMPT, max_new_tokens=4) as stream:
        both = (await stream.result()).completions
    assert [[one.edit for one in completion.edits] for completion in both] == [[], ["edits/quiet@1"]]
    await edits.update("quiet", [feature(1, 7).set(-3.0)])
    (updated,) = await served.score(row())
    assert [one.edit for one in updated.edits] == ["edits/quiet@2"]
    assert not same(updated, quiet)
    await edits.revert("quiet", 1)
    (reverted,) = await served.score(row())
    assert [one.edit for one in reverted.edits] == ["edits/quiet@3"]
    assert same(reverted, quiet)
    with pytest.raises(EditInUseError, match=r"models/tiny \(served live\)"):
        await edits.delete("quiet")
    assert (await model.set_live_edits([])).edits == ()
    (ended,) = await served.score(row())
    assert same(ended, plain)


async def test_ablation_measures_several_edits_together(served):
    """As their interventions would be measured; what is echoed is apart per edit."""
    stacked = await served.model.ablate(
        PROMPT, target=" Mary", edits=["quiet", EditUse(edit="warm", strength=0.5)], controls=0
    )
    by_hand = await served.model.ablate(PROMPT, [QUIET, feature(2, 5).add(3.0)], target=" Mary", controls=0)
    assert stacked.effects[0].change == pytest.approx(by_hand.effects[0].change, abs=1e-5)
    assert [(one.edit.partition("@")[0], len(one.applied)) for one in stacked.edits] == [
        ("edits/quiet", 1),
        ("edits/warm", 1),
    ]


async def test_composed_compared_and_in_conflict(served):
    """One edit out of two equals both; what differs is told; conflicts are listed, and refused everywhere."""
    edits = served.trephine.edits
    whole = await edits.compose("whole", ["quiet", EditUse(edit="warm", strength=0.5)], author="me")
    assert [(part.edit, part.strength) for part in whole.parts] == [
        (f"{(await edits.get('quiet')).reference}", 1.0),
        ("edits/warm@1", 0.5),
    ]
    stacked, composed = await served.score(
        row(edits=["quiet", EditUse(edit="warm", strength=0.5)]), row(edits=[whole])
    )
    assert stacked.log_probabilities == composed.log_probabilities
    found = await edits.diff("warm", whole)
    assert [(one.kind, one.fields) for one in found.changes] == [
        (InterventionChangeKind.CHANGED, ("operation",)),
        (InterventionChangeKind.ADDED, ()),
    ]
    assert not found.same_content
    (conflict,) = await edits.conflicts(["warm", whole])
    assert (conflict.kind, conflict.target) == (EditConflictKind.VALUES, "neurons:2:5")
    assert (conflict.first_intervention, conflict.second_intervention) == (0, 1)
    pair = ["warm", "whole"]
    with pytest.raises(EditConflictError, match="neurons:2:5"):
        await edits.compose("never", pair)
    with pytest.raises(EditConflictError):
        await served.model.set_live_edits(pair)
    with pytest.raises(EditConflictError) as caught:
        await served.score(row(plain=True), row(edits=pair))
    assert caught.value.context["target"] == "neurons:2:5"


async def test_an_edit_that_matches_nothing_here_is_no_error(served):
    """Edits are made for more than one text; a row's own intervention must match all the same."""
    far = feature(1, 9).ablate(at=Where(positions=(200,)))
    await served.trephine.edits.create("far", [far], model="tiny")
    plain, far_away = await served.score(row(plain=True), row(edits=["far"]))
    assert same(plain, far_away)
    assert [echo.positions for echo in far_away.edits[0].applied] == [0]
    with pytest.raises(PositionOutOfRangeError) as caught:
        await served.score(row(plain=True), row(far, edits=["quiet"]))
    assert caught.value.field == "rows[1].interventions[0].selector.positions"
    never = feature(1, 9).ablate(at=Where(tokens=(3,)))
    with pytest.raises(NothingMatchedError, match="intervention 1 matched no position") as caught:
        await served.score(row(plain=True), row(QUIET, never, edits=["warm"]))
    assert caught.value.field == "rows[1].interventions[1].selector"
    with pytest.raises(NothingMatchedError) as caught:
        async with served.model.generate([Row(PROMPT), Row(PROMPT, [never], ["warm"])]) as stream:
            await stream.result()
    assert caught.value.field == "rows[1].interventions[0].selector"


async def test_bad_uses_are_refused_at_the_edge(served):
    """Every message names the field: unknown edits, twice the same, strengths that mean nothing."""
    for edits, message, where in (
        (["nobody"], "nobody", "rows[1].edits[0].edit"),
        (["quiet@7"], "versions 1 to", "rows[1].edits[0].edit"),
        (["warm", "quiet", "warm@1"], "named twice", "rows[1].edits[2].edit"),
        ([EditUse(edit="warm", strength=-1.0)], "must not be negative", "rows[1].edits[0].strength"),
        ([EditUse(edit="warm", strength=float("nan"))], "finite", "rows[1].edits[0].strength"),
    ):
        with pytest.raises(Exception, match=message) as caught:
            await served.score(row(plain=True), row(edits=edits))
        assert caught.value.field == where
    with pytest.raises(InvalidRequestError, match="not both"):
        await served.model.ablate(PROMPT, target=" Mary", edit="quiet", edits=["warm"])
    stub = served.server.stub(EditServiceStub)
    requests = live_edits_pb2.SetLiveEditsRequest, live_edits_pb2.DiffEditsRequest
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.SetLiveEdits(requests[0](model="models/none", edits=[{"edit": "edits/warm"}]))
    assert reason(caught.value) in ("MODEL_NOT_FOUND", "MODEL_NOT_READY")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.DiffEdits(requests[1](first="edits/warm", second="warm"))
    assert field(caught.value) == "second"

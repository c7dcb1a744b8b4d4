"""Choosing and pruning at discovery: what the options send, and what is said of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.fakes.grpc_server import FakeService
from tests.unit.client.test_cli import run
from trephine.client import Trephine, aio
from trephine.client.cli.discover import hierarchy_words
from trephine.client.decoding import decode
from trephine.client.types import HierarchicalAttribution, Pruning
from trephine.v1 import circuit_service_pb2 as pb

__all__ = ["run"]


def sent(fake: FakeService) -> Any:
    """The last discovery that was asked for."""
    return [one for one in fake.requests if isinstance(one, pb.DiscoverCircuitRequest)][-1]


def test_options_choose_and_prune(fake: FakeService, run: Any):
    """Each option is one field; without any nothing is pruned and influence chooses."""
    words = ("discover", "Mary", "--target", " Mary", "--model", "tiny")
    assert run(*words, "--min-attribution", "0.05", "--max-edges", "300", "--node-threshold", "0.9") == 0
    request = sent(fake)
    assert request.min_attribution == 0.05
    assert (request.pruning.max_edges, request.pruning.node_threshold) == (300, 0.9)
    assert not request.pruning.HasField("edge_threshold")
    assert not request.pruning.HasField("max_nodes")
    assert run(*words) == 0
    assert not sent(fake).HasField("pruning")
    assert not sent(fake).HasField("min_attribution")


def test_both_clients_send_the_same(fake: FakeService, trephine: Trephine, address: str):
    """The async surface has the same options."""
    options: dict[str, Any] = {
        "target": " Mary",
        "min_attribution": 0.0,
        "prune": Pruning(max_nodes=7),
        "request_id": "11111111-1111-4111-8111-111111111111",
    }
    trephine.model("tiny").start_discover("Mary", **options)
    first = sent(fake)

    async def ask() -> None:
        async with await aio.connect(address, token="secret") as client:
            await (await client.model("tiny")).start_discover("Mary", **options)

    asyncio.run(ask())
    assert sent(fake) == first
    assert first.HasField("min_attribution")
    assert first.pruning.max_nodes == 7


@pytest.mark.parametrize(("asked", "raised"), [(0.05, ""), (0.01, ", raised from 0.01")])
def test_what_was_stopped_is_said(asked: float, raised: str):
    """Survivors, threshold, and how much of the target was stopped."""
    message = pb.HierarchicalAttribution(
        threshold=0.05, asked_threshold=asked, root=2.0, stopped=0.5, stopped_mass=3.0, survivors=12
    )
    said = hierarchy_words(decode(HierarchicalAttribution, message))
    assert said == (
        f"hierarchically: 12 features of at least 0.05{raised}; stopped 0, +0.500 of +2.000 "
        "(3.000 in absolute terms)"
    )


def test_a_prediction_is_asked_for_and_nothing_is_printed_but_it(
    fake: FakeService, run: Any, capsys: pytest.CaptureFixture[str]
):
    """`--predict` sends the same request with `validate_only`; tokens, time and memory are told."""
    words = ("discover", "Mary", "--target", " Mary", "--model", "tiny")
    assert run(*words, "--max-edges", "5", "--predict") == 0
    assert sent(fake).validate_only
    assert sent(fake).pruning.max_edges == 5
    out = capsys.readouterr().out
    assert "would take" in out
    assert "of one core" in out
    assert "circuits/c1" not in out
    assert run(*words) == 0
    assert not sent(fake).validate_only

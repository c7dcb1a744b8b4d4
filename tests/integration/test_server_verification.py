"""VerifyCircuit through a real gRPC server over a real engine process with a tiny model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio

from tests.builders import tiny_folder
from tests.integration.server_house import edge
from trephine.client.aio.circuit import AsyncCircuit, AsyncCircuits
from trephine.client.aio.wire import AsyncWire
from trephine.client.endpoint import Endpoint
from trephine.client.errors import CancelledByCallerError, InvalidRequestError, ResourceNotFoundError
from trephine.client.types import Standing, Substitute
from trephine.ipc.engine_proxy import SubprocessEngineLauncher
from trephine.v1 import circuit_service_pb2 as circuits
from trephine.v1 import circuit_targets_pb2 as targets
from trephine.v1 import common_pb2 as common
from trephine.v1.circuit_service_pb2_grpc import CircuitServiceStub

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
QUICK = {"nodes": 100, "groups": 4, "depth_nodes": 8, "adversary_steps": 2, "bootstrap": 100}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def circuit(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncCircuit]:
    """A circuit over the neurons of a tiny Llama, through the async client."""
    folder = tmp_path_factory.mktemp("edge")
    tiny_folder("llama", folder / "roots" / "tiny")
    async with edge(folder, launcher=SubprocessEngineLauncher(threads=1)) as server:
        await server.load()
        asked = circuits.DiscoverCircuitRequest(
            model="models/tiny",
            prompt="When Mary and John went to the store, John gave a drink to",
            target=targets.GraphTarget(logit=common.LogitTarget(token=" Mary", against=" John")),
            request_id=str(uuid4()),
            max_feature_nodes=40,
            verify_nodes=0,
        )
        done = await server.wait(await server.stub(CircuitServiceStub).DiscoverCircuit(asked))
        name = f"circuits/{done.name.partition('/')[2]}"
        wire = AsyncWire(Endpoint(address=server.address))
        yield await AsyncCircuits(wire).get(name)


async def test_verification_is_kept_with_its_circuit(circuit):
    """Progress is told; the result is decoded, kept, listed and read again by name."""
    told = []
    found = await circuit.verify(on_progress=lambda update: told.append(update), **QUICK)
    assert found.circuit == circuit.name
    assert found.version.weight_hash == circuit.info.version.weight_hash
    assert found.control is None
    assert found.control_note.startswith("not applicable")
    assert [one.substitute for one in found.given.faithfulness] == [Substitute.ZERO, Substitute.MEAN]
    assert found.given.worst_case.steps == 2
    assert {one.standing for one in found.given.comparisons} <= set(Standing) - {Standing.UNSPECIFIED}
    assert sum(m.ablations == "single nodes" for m in found.given.measurements) == 100
    assert [one.name for one in await circuit.verifications()] == [found.name]
    again = await AsyncCircuits(circuit._wire).verification(found.name)
    assert json.loads(again.to_json()) == json.loads(found.to_json())
    assert told


async def test_prediction_measures_nothing(circuit):
    """`validate_only` says time and memory, and stores nothing."""
    before = await circuit.verifications()
    found = await circuit.predict_verify(nodes=500)
    assert found.seconds > 0
    assert found.peak_extra_bytes > 0
    assert found.name == ""
    assert await circuit.verifications() == before


async def test_a_verification_is_cancelled_between_quanta(circuit):
    """A cancelled verification ends soon and leaves nothing; the engine goes on serving."""
    before = await circuit.verifications()
    started = await circuit.start_verify(nodes=5000, random_circuits=2000, adversary_steps=100)
    await started.cancel()
    with pytest.raises(CancelledByCallerError):
        await started.result()
    assert await circuit.verifications() == before
    assert (await circuit.predict_verify()).seconds > 0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"nodes": 5}, "nodes"),
        ({"substitutes": ["half"]}, "substitutes"),
        ({"substitutes": ["resample"]}, "counterfactual"),
        ({"node_threshold": 1.5}, "node_threshold"),
        ({"error_term": "gone"}, "error_term"),
    ],
)
async def test_bad_options_name_their_field(circuit, options, field):
    """Nothing is started."""
    with pytest.raises(InvalidRequestError) as refused:
        await circuit.start_verify(**options)
    assert refused.value.field == field


async def test_unknown_verifications_are_not_found(circuit):
    """By the error of everything that is not there."""
    with pytest.raises(ResourceNotFoundError):
        await AsyncCircuits(circuit._wire).verification("none")

"""The whole service over a real engine process that hosts a tiny real model."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio
from google.longrunning import operations_pb2 as longrunning
from google.longrunning.operations_pb2_grpc import OperationsStub
from google.protobuf.empty_pb2 import Empty
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.builders import tiny_folder
from tests.integration.server_house import Edge, detail, edge, field, reason, status_of
from trephine.domain.models import AskStatus
from trephine.ipc.engine_proxy import SubprocessEngineLauncher
from trephine.v1 import circuit_service_pb2 as circuits
from trephine.v1 import circuit_targets_pb2 as targets
from trephine.v1 import common_pb2 as common
from trephine.v1 import edit_service_pb2 as edits
from trephine.v1 import generation_service_pb2 as generation
from trephine.v1 import intervention_service_pb2 as ablation
from trephine.v1 import interventions_pb2 as iv
from trephine.v1 import model_service_pb2 as models
from trephine.v1.circuit_service_pb2_grpc import CircuitServiceStub
from trephine.v1.edit_service_pb2_grpc import EditServiceStub
from trephine.v1.generation_service_pb2_grpc import GenerationServiceStub
from trephine.v1.intervention_service_pb2_grpc import InterventionServiceStub
from trephine.v1.model_service_pb2_grpc import ModelServiceStub

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
PROMPT = "When Mary and John went to the store, John gave a drink to"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    """A server over real engine processes: one for the module, since starting an engine takes seconds."""
    folder = tmp_path_factory.mktemp("edge")
    tiny_folder("llama", folder / "roots" / "tiny")
    tiny_folder("llama", folder / "roots" / "slow", n_layers=12, d_model=256)
    async with edge(folder, launcher=SubprocessEngineLauncher(threads=1)) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def server(shared: Edge) -> Edge:
    """That server, with the tiny Llama loaded."""
    await shared.load()
    return shared


def ablate(layer: int, index: int) -> iv.Intervention:
    return iv.Intervention(
        target=iv.InterventionTarget(feature=common.FeatureRef(layer=layer, index=index)),
        operation=iv.InterventionOperation(ablate=Empty()),
    )


async def error_of(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def drained(call) -> list:
    return [one async for one in call]


async def test_a_model_is_loaded_and_asked(server: Edge):
    """Load, tokenize, generate plain beside intervened, score, ablate with controls; then typed refusals."""
    stub = server.stub(ModelServiceStub)
    model = await stub.GetModel(models.GetModelRequest(name="models/tiny"))
    assert (model.architecture, model.n_layers, len(model.weight_hash)) == ("LlamaForCausalLM", 3, 64)
    split = await stub.Tokenize(models.TokenizeRequest(model="models/tiny", text=PROMPT))
    assert b"".join(token.raw for token in split.tokens).decode() == PROMPT
    assert (await stub.GetCapabilities(models.GetCapabilitiesRequest(model="models/tiny"))).capabilities
    await _generates_side_by_side(server)
    await _ablates_with_controls(server)
    await _refuses_bad_input(server)


async def _generates_side_by_side(server: Edge) -> None:
    rows = [
        generation.GenerationRow(prompt=PROMPT),
        generation.GenerationRow(prompt=PROMPT, interventions=[ablate(1, 3), ablate(2, 5)]),
    ]
    request = generation.GenerateRequest(model="models/tiny", rows=rows, max_new_tokens=6)
    messages = await drained(server.stub(GenerationServiceStub).Generate(request))
    plain, intervened = messages[-1].finished.completions
    assert not plain.applied
    assert [echo.layer for echo in intervened.applied] == [1, 2]
    streamed = [one.token.token.id for one in messages[:-1] if one.token.row == 0]
    assert streamed == list(plain.token_ids)


async def _ablates_with_controls(server: Edge) -> None:
    request = ablation.AblateRequest(
        model="models/tiny",
        prompt=PROMPT,
        target=common.LogitTarget(token=" Mary", against=" John"),
        interventions=[ablate(1, 3)],
        controls=ablation.MatchedControls(sets=9, norm_factor=8.0),
        bound_positions=[-1],
    )
    report = await server.stub(InterventionServiceStub).Ablate(request)
    assert [effect.name for effect in report.effects] == ["as_given", "position_bound"]
    assert (report.target.display, report.against.display) == (" Mary", " John")
    assert len(report.controls.changes) + len(report.controls.unmatched) > 0
    assert report.retain_tokens > 0


async def _refuses_bad_input(server: Edge) -> None:
    texts = server.stub(GenerationServiceStub)
    effects = server.stub(InterventionServiceStub)

    def generate(prompt: str, *interventions: iv.Intervention):
        row = generation.GenerationRow(prompt=prompt, interventions=interventions)
        return texts.Generate(generation.GenerateRequest(model="models/tiny", rows=[row]))

    def measure(token: str, *interventions: iv.Intervention):
        return effects.Ablate(
            ablation.AblateRequest(
                model="models/tiny",
                prompt=PROMPT,
                target=common.LogitTarget(token=token),
                interventions=interventions or [ablate(1, 3)],
                without_controls=True,
            )
        )

    assert reason(await error_of(drained(generate("a" * 5000)))) == "PROMPT_TOO_LONG"
    assert reason(await error_of(drained(generate("a", ablate(9, 0))))) == "LAYER_OUT_OF_RANGE"
    assert reason(await error_of(drained(generate("a", ablate(0, 10**6))))) == "FEATURE_OUT_OF_RANGE"
    split = await error_of(measure(" Mary and John"))
    assert reason(split) == "TARGET_NOT_ONE_TOKEN"
    assert "Mary" in str(detail(status_of(split), ErrorInfo).metadata)


def discover(
    prompt: str = PROMPT, model: str = "models/tiny", **fields: Any
) -> circuits.DiscoverCircuitRequest:
    return circuits.DiscoverCircuitRequest(
        model=model,
        prompt=prompt,
        target=targets.GraphTarget(logit=common.LogitTarget(token=" Mary", against=" John")),
        request_id=str(uuid4()),
        **fields,
    )


async def test_a_circuit_is_found_paged_rendered_and_edited(server: Edge):
    """Discovery ends in a circuit that is read in pages and rendered; an edit of it is stored and planned."""
    stub = server.stub(CircuitServiceStub)
    started = await stub.DiscoverCircuit(discover(max_feature_nodes=24, verify_nodes=8))
    done, circuit = await server.wait(started), circuits.Circuit()
    assert done.response.Unpack(circuit), done
    nodes = await _all_nodes(stub, circuit.name)
    assert len(nodes) == circuit.n_nodes
    assert [node.influence for node in nodes] == sorted((n.influence for n in nodes), reverse=True)
    edges = await stub.ListEdges(circuits.ListEdgesRequest(circuit=circuit.name, target=nodes[0].index))
    assert all(edge.target == nodes[0].index for edge in edges.edges)
    html = circuits.ExportCircuitRequest(name=circuit.name, format=circuits.CIRCUIT_FORMAT_HTML)
    assert (await stub.ExportCircuit(html)).artifact.startswith("artifacts/")
    await _edits(server, circuit.name)


async def _all_nodes(stub, name: str) -> list[circuits.Node]:
    nodes, token = [], ""
    while True:
        page = await stub.ListNodes(circuits.ListNodesRequest(circuit=name, page_size=7, page_token=token))
        nodes += page.nodes
        token = page.next_page_token
        if not token:
            return nodes


async def _edits(server: Edge, evidence: str) -> None:
    stub = server.stub(EditServiceStub)
    request = edits.CreateEditRequest(
        edit_id="no-mary",
        model="models/tiny",
        interventions=[ablate(1, 3)],
        reason="a test",
        evidence=[evidence],
        request_id=str(uuid4()),
    )
    edit = await stub.CreateEdit(request)
    assert (await stub.CreateEdit(request)).content_hash == edit.content_hash
    plan = await stub.PlanExport(edits.PlanExportRequest(edit=edit.name))
    assert plan.changed_tensors == ["model.layers.1.mlp.down_proj.weight"]
    bound = ablate(1, 3)
    bound.selector.positions.append(2)
    request.edit_id, request.request_id = "bound", str(uuid4())
    request.interventions.append(bound)
    await stub.CreateEdit(request)
    refused = await error_of(stub.PlanExport(edits.PlanExportRequest(edit="edits/bound")))
    assert reason(refused) == "EDIT_NOT_EXPRESSIBLE"
    assert "interventions[1]" in field(refused)


async def test_health_answers_during_a_real_attribution(shared: Edge):
    """While a discovery really runs, health and a generation answer; cancelling ends it within quanta."""
    await shared.load("slow")
    stub = shared.stub(CircuitServiceStub)
    # Seconds of work, of which a few quanta are needed: it never ends by itself before it is cancelled.
    long = discover(PROMPT * 7, "models/slow", max_feature_nodes=190, verify_nodes=190)
    started = await stub.DiscoverCircuit(long)
    engine = shared.house.service.models.engine("slow")
    health = shared.stub(health_pb2_grpc.HealthStub)
    async with asyncio.timeout(60):
        while (await engine.run(AskStatus())).jobs < 2:
            await asyncio.sleep(0.01)
        operations = shared.stub(OperationsStub)
        get = longrunning.GetOperationRequest(name=started.name)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        row = generation.GenerationRow(prompt="When")
        request = generation.GenerateRequest(model="models/slow", rows=[row], max_new_tokens=2)
        assert await drained(shared.stub(GenerationServiceStub).Generate(request))
        during = await operations.GetOperation(get)
        await operations.CancelOperation(longrunning.CancelOperationRequest(name=started.name))
        done = await shared.wait(started)
        while (await engine.run(AskStatus())).jobs > 1:
            await asyncio.sleep(0.01)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert not during.done
    assert detail(done.error, ErrorInfo).reason == "CANCELLED"


async def test_a_lost_engine_is_unavailable_and_comes_back_until_it_is_unloaded(server: Edge):
    """A killed engine is UNAVAILABLE for the call it lost; the next has a fresh one, once unloaded none."""
    engine = server.house.service.models.engine("tiny")
    row = generation.GenerationRow(prompt=PROMPT)
    request = generation.GenerateRequest(model="models/tiny", rows=[row], max_new_tokens=200)
    call = server.stub(GenerationServiceStub).Generate(request)
    await call.read()
    os.kill(engine.pid, signal.SIGKILL)

    async def rest() -> None:
        while await call.read() is not grpc.aio.EOF:
            pass

    lost = await error_of(rest())
    assert (lost.code(), reason(lost)) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_LOST")
    stub = server.stub(ModelServiceStub)
    tokenize = models.TokenizeRequest(model="models/tiny", text="a")
    assert (await stub.Tokenize(tokenize)).tokens
    await stub.UnloadModel(models.UnloadModelRequest(name="models/tiny"))
    assert reason(await error_of(stub.Tokenize(tokenize))) == "MODEL_NOT_READY"

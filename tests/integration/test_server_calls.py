"""Calls through a real gRPC server on a Unix socket."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.longrunning import operations_pb2 as longrunning
from google.longrunning.operations_pb2_grpc import OperationsStub
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.rpc.error_details_pb2 import ErrorInfo, ResourceInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from tests.fakes.engine import Script
from tests.integration.server_house import (
    INFO,
    detail,
    edge,
    field,
    loaded_engine,
    reason,
    status_of,
    word,
)
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.errors import PromptTooLongError
from trephine.domain.generation import Completion, Generate, Generation, Score, TokenEvent
from trephine.domain.interventions import Applied
from trephine.v1 import artifact_service_pb2 as artifacts
from trephine.v1 import circuit_service_pb2 as circuits
from trephine.v1 import circuit_targets_pb2 as targets
from trephine.v1 import common_pb2 as common
from trephine.v1 import generation_service_pb2 as generation
from trephine.v1 import interventions_pb2 as iv
from trephine.v1 import model_service_pb2 as models
from trephine.v1 import operation_service_pb2 as operations
from trephine.v1.artifact_service_pb2_grpc import ArtifactServiceStub
from trephine.v1.circuit_service_pb2_grpc import CircuitServiceStub
from trephine.v1.generation_service_pb2_grpc import GenerationServiceStub
from trephine.v1.model_service_pb2_grpc import ModelServiceStub
from trephine.v1.operation_service_pb2_grpc import OperationServiceStub

pytestmark = pytest.mark.integration

HANG_SECONDS = 60.0
"""Nothing here takes a second; only a machine that stands still needs more."""

GENERATION = Generation(
    completions=(
        Completion(
            text=" a\ud83d",
            token_ids=(1, 2),
            finish_reason="length",
            applied=(Applied(index=0, layer=1, positions=2, mean_change=0.5, max_change=1.0),),
            n_prompt_tokens=3,
        ),
    ),
    model="tiny",
    weight_hash="w" * 64,
)
EVENTS = tuple(
    TokenEvent(row=0, step=step, token=word(" a"), text=" a", log_probability=-0.5) for step in range(100)
)


def generate(prompt: str = "a b c", **fields: Any) -> generation.GenerateRequest:
    return generation.GenerateRequest(
        model="models/tiny", rows=[generation.GenerationRow(prompt=prompt)], **fields
    )


def discover(**fields: Any) -> circuits.DiscoverCircuitRequest:
    return circuits.DiscoverCircuitRequest(
        model="models/tiny",
        prompt="a b c",
        target=targets.GraphTarget(logit=common.LogitTarget(token=" d")),
        **fields,
    )


async def test_loading_is_an_operation_that_ends_in_a_model(tmp_path):
    """LoadModel answers with an operation whose response is the loaded model."""
    async with edge(tmp_path, [loaded_engine()]) as server:
        stub = server.stub(ModelServiceStub)
        before = await stub.GetModel(models.GetModelRequest(name="models/tiny"))
        model = await server.load()
        listed = await stub.ListModels(models.ListModelsRequest())
    assert before.state == models.MODEL_STATE_AVAILABLE
    assert (model.name, model.state) == ("models/tiny", models.MODEL_STATE_LOADED)
    assert model.weight_hash == INFO.weight_hash
    assert not model.HasField("bos_token_id")
    assert [one.name for one in listed.models] == ["models/tiny"]


async def test_a_revision_of_a_plain_folder_is_refused_at_once(tmp_path):
    """LoadModel names the field; no operation is made of a request that cannot succeed."""
    async with edge(tmp_path, [loaded_engine()]) as server:
        stub = server.stub(ModelServiceStub)
        with pytest.raises(grpc.aio.AioRpcError, match="has no revisions") as caught:
            await stub.LoadModel(models.LoadModelRequest(source="tiny", revision="main"))
        listed = await server.stub(OperationsStub).ListOperations(longrunning.ListOperationsRequest())
    assert (reason(caught.value), field(caught.value)) == ("INVALID_REQUEST", "revision")
    assert not listed.operations


async def test_tokens_stream_in_order_and_end_with_the_whole(tmp_path):
    """Generate streams every event, then one `finished` with echoes; half an emoji does no harm."""
    engine = loaded_engine(also={Generate: Script(events=EVENTS, result=GENERATION)})
    async with edge(tmp_path, [engine]) as server:
        await server.load()
        messages = [one async for one in server.stub(GenerationServiceStub).Generate(generate())]
    assert [one.token.step for one in messages[:-1]] == list(range(100))
    finished = messages[-1].finished
    assert finished.completions[0].text == " a�"
    assert finished.completions[0].applied[0].positions == 2
    assert finished.version.model == "models/tiny"


async def test_leaving_a_stream_ends_its_work(tmp_path):
    """The command is cancelled as soon as the client cancels; nobody else's is."""
    engine = loaded_engine(
        also={Generate: Script(events=EVENTS[:1], hold=asyncio.Event(), result=GENERATION)}
    )
    async with edge(tmp_path, [engine]) as server:
        await server.load()
        call = server.stub(GenerationServiceStub).Generate(generate())
        await call.read()
        call.cancel()
        async with asyncio.timeout(HANG_SECONDS):
            while not engine.cancelled:
                await asyncio.sleep(0.01)
        assert isinstance(engine.cancelled[0], Generate)
        assert await server.stub(ModelServiceStub).Tokenize(
            models.TokenizeRequest(model="models/tiny", text="a")
        )


async def test_slow_readers_hold_back_their_own_command(tmp_path):
    """A client that does not read stops its engine's events after a bounded buffer."""
    sent = []

    class Counted(tuple):
        def __iter__(self) -> Iterator[Any]:
            for event in super().__iter__():
                sent.append(event)
                yield event

    big = "x" * 60_000
    events = Counted(
        TokenEvent(row=0, step=n, token=word("a"), text=big, log_probability=0.0) for n in range(500)
    )
    engine = loaded_engine(also={Generate: Script(events=events, result=GENERATION)})
    async with edge(tmp_path, [engine]) as server:
        await server.load()
        call = server.stub(GenerationServiceStub).Generate(generate())
        await call.read()
        others = server.stub(ModelServiceStub)
        for _ in range(50):  # each answer gives the engine another turn to run ahead
            await others.Tokenize(models.TokenizeRequest(model="models/tiny", text="a"))
        assert len(sent) < 400
        read = 1
        while await call.read() is not grpc.aio.EOF:
            read += 1
    assert read == 501


async def test_deadlines_travel_to_the_engine(tmp_path):
    """The engine is told what is left of the caller's deadline, if there is one; a held call ends at it."""
    engine = loaded_engine(also={Generate: GENERATION})
    async with edge(tmp_path, [engine]) as server:
        await server.load()
        stub = server.stub(GenerationServiceStub)
        for seconds in (None, 1e4, 1e6):
            assert [one async for one in stub.Generate(generate(), timeout=seconds)]
        engine.scripts[Generate] = Script(hold=asyncio.Event(), result=GENERATION)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Generate(generate(), timeout=0.4):
                pass
    told = [
        seconds
        for command, seconds in zip(engine.commands, engine.deadlines, strict=True)
        if isinstance(command, Generate)
    ]
    assert told[0] is None
    assert 0 < told[1] < 2e4 < told[2] < 2e6, "which deadline it was, not how fast this machine is"
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_typed_errors_arrive_whole(tmp_path):
    """An error of the engine keeps reason, message and context on unary and streaming calls."""
    error = PromptTooLongError("shorten the prompt to 256 tokens", tokens=300, limit=256)
    engine = loaded_engine(also={Generate: error, Score: error})
    async with edge(tmp_path, [engine]) as server:
        await server.load()
        stub = server.stub(GenerationServiceStub)
        with pytest.raises(grpc.aio.AioRpcError) as streaming:
            async for _ in stub.Generate(generate()):
                pass
        row = generation.ScoreRow(prompt="a", continuation=" b")
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await stub.Score(generation.ScoreRequest(model="models/tiny", rows=[row]))
    for caught in (streaming.value, unary.value):
        info = detail(status_of(caught), ErrorInfo)
        assert caught.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (info.reason, info.metadata["limit"]) == ("PROMPT_TOO_LONG", "256")
        assert caught.details() == "shorten the prompt to 256 tokens"


async def test_bad_fields_are_named_by_path(tmp_path):
    """A NaN strength is refused with its path, before any engine is asked."""
    engine = loaded_engine()
    async with edge(tmp_path, [engine]) as server:
        await server.load()
        nan = iv.Intervention(
            target=iv.InterventionTarget(feature=common.FeatureRef(layer=1, index=2)),
            operation=iv.InterventionOperation(scale=math.nan),
        )
        request = generate()
        request.rows[0].interventions.extend([nan])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in server.stub(GenerationServiceStub).Generate(request):
                pass
    assert reason(caught.value) == "NON_FINITE_VALUE"
    assert field(caught.value) == "rows[0].interventions[0].operation.scale"
    assert not [one for one in engine.commands if isinstance(one, Generate)]


async def test_unknown_and_unready_models(tmp_path):
    """A model that is nowhere is NOT_FOUND with its name, one on disk is FAILED_PRECONDITION."""
    async with edge(tmp_path) as server:
        stub = server.stub(ModelServiceStub)
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await stub.Tokenize(models.TokenizeRequest(model="models/none", text="a"))
        with pytest.raises(grpc.aio.AioRpcError) as unready:
            await stub.Tokenize(models.TokenizeRequest(model="models/tiny", text="a"))
    assert (missing.value.code(), reason(missing.value)) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert detail(status_of(missing.value), ResourceInfo).resource_name == "none"
    assert reason(unready.value) == "MODEL_NOT_READY"


async def test_defects_stay_inside(tmp_path):
    """An unexpected exception shows the client a request id and nothing else; the log has the frames."""
    engine = loaded_engine(also={Generate: RuntimeError("prompt was: my secret")})
    async with edge(tmp_path, [engine]) as server:
        await server.load()
        with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in server.stub(GenerationServiceStub).Generate(
                generate(), metadata=(("x-request-id", "call-7"),)
            ):
                pass
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "call-7" in caught.value.details()
    assert "secret" not in caught.value.details() + str(logs)
    (defect,) = [line for line in logs if line["event"] == "defect"]
    assert (defect["error"], defect["request_id"]) == ("RuntimeError", "call-7")
    assert any("server_house" not in frame for frame in defect["frames"])


async def test_one_line_per_call_and_never_a_prompt(tmp_path):
    """Each call logs method, id, resources, status and time once; prompts are not in any line."""
    engine = loaded_engine(also={Generate: Script(events=EVENTS[:3], result=GENERATION)})
    async with edge(tmp_path, [engine]) as server:
        await server.load()
        with capture_logs() as logs:
            call = server.stub(GenerationServiceStub).Generate(
                generate("my private prompt"), metadata=(("x-request-id", "abc-1"),)
            )
            assert len([one async for one in call]) == 4
            trailers = await call.trailing_metadata()
    (line,) = [one for one in logs if one["event"] == "rpc"]
    assert line["method"] == "/trephine.v1.GenerationService/Generate"
    assert (line["request_id"], line["model"], line["code"]) == ("abc-1", "models/tiny", "OK")
    assert (line["messages"], line["seconds"] > 0) == (4, True)
    assert "private" not in str(logs)
    assert ("x-request-id", "abc-1") in tuple(trailers)


async def test_text_that_is_no_utf8_is_refused(tmp_path):
    """Bytes that are no message of the type are INVALID_REQUEST, not a crash of the server."""
    async with edge(tmp_path) as server:
        call = server.channel.unary_unary(
            "/trephine.v1.ModelService/GetModel",
            request_serializer=lambda data: data,
            response_deserializer=models.Model.FromString,
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\x0a\x02\xff\xfe")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason(caught.value) == "INVALID_REQUEST"


async def test_messages_are_capped(tmp_path):
    """A request above 8 MiB is RESOURCE_EXHAUSTED and the server lives on."""
    async with edge(tmp_path, [loaded_engine()]) as server:
        await server.load()
        stub = server.stub(ModelServiceStub)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Tokenize(models.TokenizeRequest(model="models/tiny", text="a" * (9 << 20)))
        assert await stub.Tokenize(models.TokenizeRequest(model="models/tiny", text="a"))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_validate_only_predicts_and_starts_nothing(tmp_path):
    """LoadModel and DiscoverCircuit answer at once with predictions; no operation is made."""
    engine = loaded_engine()
    async with edge(tmp_path, [engine]) as server:
        stub = server.stub(ModelServiceStub)
        request = models.LoadModelRequest(source="tiny", validate_only=True)
        checked, model = await stub.LoadModel(request), models.Model()
        assert checked.done
        assert checked.response.Unpack(model)
        assert (model.n_parameters, model.memory_bytes) == (16, 64)
        await server.load()
        found = await server.stub(CircuitServiceStub).DiscoverCircuit(discover(validate_only=True))
        circuit = circuits.Circuit()
        assert found.response.Unpack(circuit)
        assert [token.display for token in circuit.tokens] == ["a", "b", "c"]
        assert circuit.peak_extra_bytes > 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.stub(CircuitServiceStub).DiscoverCircuit(discover(validate_only=True, layers=[3]))
        listed = await server.stub(OperationsStub).ListOperations(longrunning.ListOperationsRequest())
    assert (reason(caught.value), field(caught.value)) == ("LAYER_OUT_OF_RANGE", "layers[0]")
    assert len(listed.operations) == 1
    assert not [one for one in engine.commands if isinstance(one, DiscoverCircuit)]


async def test_request_ids_make_operations_once(tmp_path):
    """The same id gives the same operation; with another request it is ALREADY_EXISTS."""
    hold = asyncio.Event()
    engine = loaded_engine(also={DiscoverCircuit: Script(hold=hold, result=None)})
    async with edge(tmp_path, [engine]) as server:
        await server.load()
        stub, request_id = server.stub(CircuitServiceStub), str(uuid4())
        first = await stub.DiscoverCircuit(discover(request_id=request_id))
        again = await stub.DiscoverCircuit(discover(request_id=request_id.upper()))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.DiscoverCircuit(discover(request_id=request_id, max_feature_nodes=7))
    assert first.name == again.name
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert reason(caught.value) == "REQUEST_ID_REUSED"


async def test_failed_operations_carry_the_typed_error(tmp_path):
    """GetOperation of a failed one has a google.rpc.Status with ErrorInfo, and Watch ends with it."""
    error = PromptTooLongError("shorten it", limit=256)
    engine = loaded_engine(also={DiscoverCircuit: error})
    async with edge(tmp_path, [engine]) as server:
        await server.load()
        started = await server.stub(CircuitServiceStub).DiscoverCircuit(discover())
        done = await server.wait(started)
        watched = [
            one
            async for one in server.stub(OperationServiceStub).Watch(
                operations.WatchRequest(name=started.name)
            )
        ]
    info = detail(done.error, ErrorInfo)
    assert done.done
    assert (info.reason, info.metadata["limit"]) == ("PROMPT_TOO_LONG", "256")
    assert watched[-1].operation.error.code == done.error.code
    assert watched[-1].metadata.state == "failed"


async def test_operations_are_listed_cancelled_and_deleted(tmp_path):
    """google.longrunning.Operations works: filter, cancel, refuse to delete what runs, delete."""
    engine = loaded_engine(also={DiscoverCircuit: Script(hold=asyncio.Event(), result=None)})
    async with edge(tmp_path, [engine]) as server:
        await server.load()
        stub = server.stub(OperationsStub)
        started = await server.stub(CircuitServiceStub).DiscoverCircuit(discover())
        with pytest.raises(grpc.aio.AioRpcError) as running:
            await stub.DeleteOperation(longrunning.DeleteOperationRequest(name=started.name))
        await stub.CancelOperation(longrunning.CancelOperationRequest(name=started.name))
        done = await server.wait(started)
        asked = longrunning.ListOperationsRequest(filter="state=cancelled AND method=DiscoverCircuit")
        listed = await stub.ListOperations(asked)
        await stub.DeleteOperation(longrunning.DeleteOperationRequest(name=started.name))
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await stub.GetOperation(longrunning.GetOperationRequest(name=started.name))
        with pytest.raises(grpc.aio.AioRpcError) as confused:
            await stub.ListOperations(longrunning.ListOperationsRequest(filter="color=red"))
    assert reason(running.value) == "OPERATION_NOT_DONE"
    assert detail(done.error, ErrorInfo).reason == "CANCELLED"
    assert [one.name for one in listed.operations] == [started.name]
    assert gone.value.code() is grpc.StatusCode.NOT_FOUND
    assert field(confused.value) == "filter"


async def test_leaving_a_watch_cancels_nothing(tmp_path):
    """A watcher that leaves leaves the work running; waiting for a moment returns what still runs."""
    hold = asyncio.Event()
    engine = loaded_engine(also={DiscoverCircuit: Script(hold=hold, result=PromptTooLongError("x"))})
    async with edge(tmp_path, [engine]) as server:
        await server.load()
        started = await server.stub(CircuitServiceStub).DiscoverCircuit(discover())
        watch = server.stub(OperationServiceStub).Watch(operations.WatchRequest(name=started.name))
        await watch.read()
        watch.cancel()
        waited = await server.stub(OperationsStub).WaitOperation(
            longrunning.WaitOperationRequest(name=started.name, timeout=Duration(nanos=1_000_000))
        )
        assert not waited.done
        assert not engine.cancelled
        hold.set()
        assert (await server.wait(started)).done


async def test_health_answers_during_long_work(tmp_path):
    """While a discovery holds the engine, health and lists answer at once."""
    engine = loaded_engine(also={DiscoverCircuit: Script(hold=asyncio.Event(), result=None)})
    async with edge(tmp_path, [engine]) as server:
        await server.load()
        await server.stub(CircuitServiceStub).DiscoverCircuit(discover())
        health = server.stub(health_pb2_grpc.HealthStub)
        for name in ("", "trephine.v1.CircuitService", "google.longrunning.Operations"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=HANG_SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(health_pb2.HealthCheckRequest(service="nonsense"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_uploads_resume_and_are_read_back(tmp_path):
    """An upload continues where it was committed; a wrong digest keeps nothing; reads take an offset."""
    data, upload = bytes(range(256)) * 4000, str(uuid4())
    digest = hashlib.sha256(data).hexdigest()

    async def pieces(begin: int, end: int, **last: Any):
        for place in range(begin, end, 1 << 19):
            piece = data[place : min(place + (1 << 19), end)]
            yield artifacts.WriteRequest(upload_id=upload, offset=place, data=piece, media_type="a/b")
        if last:
            yield artifacts.WriteRequest(upload_id=upload, offset=end, finish=True, **last)

    async def question():
        yield artifacts.WriteRequest(upload_id=upload)

    async with edge(tmp_path) as server:
        stub = server.stub(ArtifactServiceStub)
        half = await stub.Write(pieces(0, 600_000))
        asked = await stub.Write(question())
        whole = await stub.Write(pieces(asked.committed, len(data), sha256=digest))
        read = [one async for one in stub.Read(artifacts.ReadRequest(name=whole.artifact.name, offset=1000))]
        with pytest.raises(grpc.aio.AioRpcError) as behind:
            async for _ in stub.Read(artifacts.ReadRequest(name=whole.artifact.name, offset=len(data) + 1)):
                pass
    assert half.committed == asked.committed == 600_000
    assert (whole.artifact.name, whole.artifact.size) == (f"artifacts/{digest}", len(data))
    assert b"".join(one.data for one in read) == data[1000:]
    assert max(len(one.data) for one in read) <= 1 << 20
    assert field(behind.value) == "offset"


async def test_empty_messages_are_refused_where_something_is_required(tmp_path):
    """A bare AblateRequest or WriteRequest stream is a typed refusal."""
    async with edge(tmp_path) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.stub(ArtifactServiceStub).Write(iter(()))
        call = server.channel.unary_unary(
            "/trephine.v1.InterventionService/Ablate",
            request_serializer=Empty.SerializeToString,
            response_deserializer=Empty.FromString,
        )
        with pytest.raises(grpc.aio.AioRpcError) as bare:
            await call(Empty())
    assert field(caught.value) == "upload_id"
    assert field(bare.value) == "model"

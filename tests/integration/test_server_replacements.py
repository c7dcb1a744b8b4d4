"""Replacement sets over a real engine process that hosts a tiny real model."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from google.longrunning import operations_pb2 as longrunning
from google.protobuf.empty_pb2 import Empty

from tests.builders import tiny_folder, tiny_hosted
from tests.integration.server_house import Edge, edge, reason
from tests.replacement_sets import write_transcoders
from trephine.ipc.engine_proxy import SubprocessEngineLauncher
from trephine.v1 import artifact_service_pb2 as artifacts
from trephine.v1 import circuit_service_pb2 as circuits
from trephine.v1 import circuit_targets_pb2 as targets
from trephine.v1 import circuit_verification_pb2 as verification
from trephine.v1 import common_pb2 as common
from trephine.v1 import edit_service_pb2 as edits
from trephine.v1 import feature_service_pb2 as features
from trephine.v1 import generation_service_pb2 as generation
from trephine.v1 import intervention_service_pb2 as ablation
from trephine.v1 import interventions_pb2 as iv
from trephine.v1 import replacement_service_pb2 as pb
from trephine.v1.artifact_service_pb2_grpc import ArtifactServiceStub
from trephine.v1.circuit_service_pb2_grpc import CircuitServiceStub
from trephine.v1.edit_service_pb2_grpc import EditServiceStub
from trephine.v1.feature_service_pb2_grpc import FeatureServiceStub
from trephine.v1.generation_service_pb2_grpc import GenerationServiceStub
from trephine.v1.intervention_service_pb2_grpc import InterventionServiceStub
from trephine.v1.replacement_service_pb2_grpc import ReplacementServiceStub

pytestmark = pytest.mark.integration
PROMPT = "When Mary and John went to the store, John gave a drink to"
SET = "models/tiny/replacements/small"


@asynccontextmanager
async def hosted(tmp_path: Path) -> AsyncIterator[Edge]:
    """A server with a tiny Llama loaded, and a set for two of its layers in the replacement root."""
    if not (tmp_path / "sets").exists():
        tiny_folder("llama", tmp_path / "roots" / "tiny")
        write_transcoders(tiny_hosted("llama"), tmp_path / "sets" / "small", layers=(0, 1))
    launcher = SubprocessEngineLauncher(threads=1)
    async with edge(tmp_path, launcher=launcher, replacement_roots=(tmp_path / "sets",)) as server:
        await server.load()
        yield server


async def loaded(server: Edge, **options: object) -> longrunning.Operation:
    """Load the set; return the finished operation."""
    request = pb.LoadReplacementSetRequest(
        model="models/tiny", source="small", request_id=str(uuid4()), **options
    )
    started = await server.stub(ReplacementServiceStub).LoadReplacementSet(request)
    return started if started.done else await server.wait(started)


async def described(server: Edge) -> pb.ReplacementSet:
    """The set as the server says it is now."""
    return await server.stub(ReplacementServiceStub).GetReplacementSet(pb.GetReplacementSetRequest(name=SET))


async def ablated(server: Edge) -> ablation.AblateResponse:
    """Ablate one feature of the set."""
    feature = common.FeatureRef(replacement="small", layer=1, index=3)
    request = ablation.AblateRequest(
        model="models/tiny",
        prompt=PROMPT,
        target=common.LogitTarget(token=" Mary", against=" John"),
        interventions=[
            iv.Intervention(
                target=iv.InterventionTarget(feature=feature),
                operation=iv.InterventionOperation(ablate=Empty()),
            )
        ],
        without_controls=True,
    )
    return await server.stub(InterventionServiceStub).Ablate(request)


def engine_of(server: Edge) -> int:
    """Process id of the model's engine."""
    return server.house.service.models.engine("tiny").pid


async def test_a_set_is_loaded_used_lost_and_there_again(tmp_path):
    """Load, ablate a feature over RPC, kill -9 the engine: the next call finds the set beside the model."""
    async with hosted(tmp_path) as server:
        operation = await loaded(server)
        found = pb.ReplacementSet()
        assert operation.response.Unpack(found), operation
        assert (found.name, found.degraded, len(found.layers)) == (SET, False, 2)
        before = await ablated(server)
        pid = engine_of(server)
        os.kill(pid, signal.SIGKILL)
        after = await _after_the_loss(server)
        assert [one.change for one in after.effects] == [one.change for one in before.effects]
        assert engine_of(server) != pid
        assert (await described(server)).content_hash == found.content_hash


async def _after_the_loss(server: Edge) -> ablation.AblateResponse:
    """Ablate again; a call that was on the way when the death was noticed fails, and the next one works."""
    try:
        return await ablated(server)
    except grpc.aio.AioRpcError as error:
        if reason(error) != "ENGINE_LOST":
            raise
        return await ablated(server)


async def test_a_changed_folder_is_reported_by_the_next_server(tmp_path):
    """After a restart the model answers, the changed set is lost with its reason, and is not used."""
    async with hosted(tmp_path) as server:
        assert (await loaded(server)).response.value
    write_transcoders(tiny_hosted("llama"), tmp_path / "sets" / "small", layers=(0, 1), seed=9)
    async with hosted(tmp_path) as server:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ablated(server)
        assert reason(refused.value) == "REPLACEMENT_NOT_FOUND"
        assert "changed since" in str(refused.value.details())
        found = await described(server)
        assert found.state == pb.REPLACEMENT_STATE_LOST
        assert "changed since" in found.why
        assert (await loaded(server)).response.value
        assert (await ablated(server)).effects


async def test_a_set_is_predicted_evaluated_rendered_and_unloaded(tmp_path):
    """validate_only loads nothing; figures are stored and rendered in three forms; unloading forgets."""
    async with hosted(tmp_path) as server:
        stub = server.stub(ReplacementServiceStub)
        predicted = pb.ReplacementSet()
        assert (await loaded(server, validate_only=True)).response.Unpack(predicted)
        await loaded(server)
        found = await described(server)
        assert predicted.residency.total_bytes == found.residency.total_bytes
        evaluation = await _evaluated(server)
        assert evaluation.replacement_set.content_hash == found.content_hash
        assert {score.layer for score in evaluation.layers} == {0}
        assert len(evaluation.claims) > 0
        await _rendered(server, evaluation.name)
        await stub.UnloadReplacementSet(pb.UnloadReplacementSetRequest(name=SET))
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await described(server)
        assert reason(gone.value) == "REPLACEMENT_NOT_FOUND"
        again = await stub.GetEvaluation(pb.GetEvaluationRequest(name=evaluation.name))
        assert again == evaluation


async def _evaluated(server: Edge) -> pb.ReplacementEvaluation:
    request = pb.EvaluateReplacementSetRequest(
        name=SET,
        layers=[0],
        max_contexts=2,
        context_tokens=16,
        controls=[pb.DICTIONARY_RANDOM],
        bootstrap=100,
        perturbations=2,
        request_id=str(uuid4()),
    )
    stub = server.stub(ReplacementServiceStub)
    checked = pb.EvaluateReplacementSetRequest()
    checked.CopyFrom(request)
    checked.validate_only = True
    prediction, evaluation = pb.ReplacementEvaluation(), pb.ReplacementEvaluation()
    assert (await stub.EvaluateReplacementSet(checked)).response.Unpack(prediction)
    assert prediction.seconds > 0
    done = await server.wait(await stub.EvaluateReplacementSet(request))
    assert done.response.Unpack(evaluation), done
    return evaluation


async def _rendered(server: Edge, name: str) -> None:
    stub, store = server.stub(ReplacementServiceStub), server.stub(ArtifactServiceStub)
    for form, begins in (("JSON", b"{"), ("CSV", b"scope,"), ("HTML", b"<!doctype html>")):
        number = pb.EvaluationFormat.Value(f"EVALUATION_FORMAT_{form}")
        rendered = await stub.RenderEvaluation(pb.RenderEvaluationRequest(name=name, format=number))
        pieces = [piece.data async for piece in store.Read(artifacts.ReadRequest(name=rendered.artifact))]
        assert b"".join(pieces).startswith(begins)


async def test_a_refused_set_names_its_figures(tmp_path):
    """A set of another model's activations fails admission with its figures, unless that is accepted."""
    async with hosted(tmp_path) as server:
        write_transcoders(tiny_hosted("llama", seed=5), tmp_path / "sets" / "small", layers=(0, 1), seed=3)
        done = await loaded(server)
        assert done.HasField("error")
        assert "FVU" in done.error.message
        accepted = pb.ReplacementSet()
        assert (await loaded(server, accept_degraded=True)).response.Unpack(accepted)
        assert accepted.degraded
        assert not accepted.admission.passed


async def test_every_answer_of_a_degraded_set_says_so(tmp_path):
    """Accepted though it failed admission: effects, texts, features, circuits, exports, all of them tell."""
    async with hosted(tmp_path) as server:
        write_transcoders(tiny_hosted("llama", seed=5), tmp_path / "sets" / "small", layers=(0, 1), seed=3)
        assert (await loaded(server, accept_degraded=True)).response.value
        (effect,) = (await ablated(server)).effects
        assert [one.degraded for one in effect.applied] == [True]
        assert await _flags_of_texts(server) == [True, True]
        assert await _flags_of_features(server, "small") == [True] * 5
        assert await _flags_of_features(server, "neurons") == [False] * 5
        why = (await described(server)).admission.why
        said = f"The set small failed admission and was accepted all the same: {why}"
        told = [*await _caveats_of_circuits(server), await _caveats_of_a_plan(server)]
        assert [caveats.count(said) for caveats in told] == [1] * 3


async def _caveats_of_circuits(server: Edge) -> list[list[str]]:
    """Of a circuit over the set, and of its verification."""
    stub = server.stub(CircuitServiceStub)
    asked = circuits.DiscoverCircuitRequest(
        model="models/tiny",
        prompt=PROMPT,
        target=targets.GraphTarget(logit=common.LogitTarget(token=" Mary", against=" John")),
        replacement="small",
        max_feature_nodes=12,
        verify_nodes=0,
        request_id=str(uuid4()),
    )
    circuit, verified = circuits.Circuit(), verification.CircuitVerification()
    done = await server.wait(await stub.DiscoverCircuit(asked))
    assert done.response.Unpack(circuit), done
    brief = verification.VerifyCircuitRequest(
        circuit=circuit.name,
        groups=2,
        depth_nodes=2,
        adversary_steps=0,
        control=False,
        bootstrap=100,
        request_id=str(uuid4()),
    )
    done = await server.wait(await stub.VerifyCircuit(brief))
    assert done.response.Unpack(verified), done
    return [list(circuit.caveats), list(verified.caveats)]


async def _caveats_of_a_plan(server: Edge) -> list[str]:
    """Of an export that is planned of an edit of one of the set's features."""
    stub = server.stub(EditServiceStub)
    feature = common.FeatureRef(replacement="small", layer=1, index=3)
    change = iv.Intervention(
        target=iv.InterventionTarget(feature=feature), operation=iv.InterventionOperation(ablate=Empty())
    )
    asked = edits.CreateEditRequest(
        edit_id="quiet", model="models/tiny", interventions=[change], reason="a test", request_id=str(uuid4())
    )
    edit = await stub.CreateEdit(asked)
    return list((await stub.PlanExport(edits.PlanExportRequest(edit=edit.name))).caveats)


async def _flags_of_texts(server: Edge) -> list[bool]:
    """What generating and scoring say of an intervention that only its condition ties to the set."""
    change = iv.Intervention(
        target=iv.InterventionTarget(feature=common.FeatureRef(layer=1, index=3)),
        operation=iv.InterventionOperation(ablate=Empty()),
        condition=iv.Condition(
            feature=common.FeatureRef(replacement="small", layer=0, index=3), at_least=0.0
        ),
    )
    stub = server.stub(GenerationServiceStub)
    row = generation.GenerationRow(prompt=PROMPT, interventions=[change])
    asked = generation.GenerateRequest(model="models/tiny", rows=[row], max_new_tokens=1)
    finished = [one.finished async for one in stub.Generate(asked) if one.HasField("finished")]
    scored = generation.ScoreRow(prompt=PROMPT, continuation=" Mary", interventions=[change])
    scores = await stub.Score(generation.ScoreRequest(model="models/tiny", rows=[scored]))
    return [
        finished[0].completions[0].applied[0].degraded,
        scores.rows[0].applied[0].degraded,
    ]


async def _flags_of_features(server: Edge, replacement: str) -> list[bool]:
    stub, model = server.stub(FeatureServiceStub), "models/tiny"
    feature = common.FeatureRef(replacement=replacement, layer=1, index=3)
    read = await stub.GetActivations(
        features.GetActivationsRequest(model=model, text=PROMPT, features=[feature])
    )
    ranked = [
        await stub.TopFeatures(
            features.TopFeaturesRequest(model=model, text=PROMPT, replacement=replacement, scope=scope)
        )
        for scope in (features.TOP_SCOPE_TEXT, features.TOP_SCOPE_TOKEN)
    ]
    hits = await stub.SearchFeatures(
        features.SearchFeaturesRequest(model=model, replacement=replacement, text=PROMPT)
    )
    contrast = await stub.ContrastFeatures(
        features.ContrastFeaturesRequest(
            model=model,
            replacement=replacement,
            first=["Mary went", "a dog"],
            second=["the store", "a drink to"],
            permutations=99,
        )
    )
    return [
        read.features[0].degraded,
        *(one.degraded for one in ranked),
        hits.features[0].degraded,
        contrast.degraded,
    ]


async def test_answers_say_that_a_text_lacks_the_first_token_of_training(tmp_path):
    """A set trained with a token in front: rankings, activations, searches and effects say where it lacks."""
    async with hosted(tmp_path) as server:
        model = tiny_hosted("llama")
        write_transcoders(model, tmp_path / "sets" / "small", layers=(0, 1), prepend_bos=True)
        assert (await loaded(server)).response.value
        begins = (await described(server)).admission.begins_with
        assert begins == model.tokenizer.eos_token
        (said,) = {tuple(caveats) for caveats in await _caveats(server, "small", PROMPT)}
        assert said == (f"The set small was trained on texts that begin with {begins}; this text does not.",)
        assert await _caveats(server, "small", begins + PROMPT) == [[]] * 4
        assert await _caveats(server, "neurons", PROMPT) == [[]] * 4
        assert tuple((await ablated(server)).caveats) == said


async def _caveats(server: Edge, replacement: str, text: str) -> list[list[str]]:
    stub, model = server.stub(FeatureServiceStub), "models/tiny"
    feature = common.FeatureRef(replacement=replacement, layer=1, index=3)
    asked = features.GetActivationsRequest(model=model, text=text, features=[feature])
    found = [list((await stub.GetActivations(asked)).caveats)]
    for scope in (features.TOP_SCOPE_TEXT, features.TOP_SCOPE_TOKEN):
        top = features.TopFeaturesRequest(model=model, text=text, replacement=replacement, scope=scope)
        found.append(list((await stub.TopFeatures(top)).caveats))
    search = features.SearchFeaturesRequest(model=model, replacement=replacement, text=text)
    return [*found, list((await stub.SearchFeatures(search)).caveats)]

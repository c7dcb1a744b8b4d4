"""FeatureService over a real edge; a tiny real model answers in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio
from google.longrunning import operations_pb2 as longrunning

from tests.builders import tiny_hosted
from tests.fakes.engine import FakeEngine, Script
from tests.integration.server_house import Edge, edge, field, reason
from tests.thinking_engine import thinking_scripts
from trephine.domain.features import ContrastFeatures
from trephine.v1 import artifact_service_pb2 as artifacts
from trephine.v1 import feature_service_pb2 as pb
from trephine.v1.artifact_service_pb2_grpc import ArtifactServiceStub
from trephine.v1.common_pb2 import FeatureRef
from trephine.v1.feature_service_pb2_grpc import FeatureServiceStub

pytestmark = pytest.mark.integration
MODEL = "models/tiny"
TEXT = " Mary and John went to the store"
FEATURE = FeatureRef(layer=1, index=5)


@pytest.fixture(scope="module")
def scripts() -> dict[type, Any]:
    return dict(thinking_scripts(tiny_hosted("llama")))


@pytest_asyncio.fixture
async def server(tmp_path, scripts) -> AsyncIterator[Edge]:
    engine = FakeEngine(scripts)
    engine.scripts = dict(scripts)
    async with edge(tmp_path, [engine]) as served:
        await served.load()
        yield served


def stub(server: Edge) -> Any:
    return server.stub(FeatureServiceStub)


async def built(server: Edge, **options: Any) -> longrunning.Operation:
    request = pb.BuildFeatureIndexRequest(model=MODEL, context_tokens=64, request_id=str(uuid4()), **options)
    return await server.wait(await stub(server).BuildFeatureIndex(request))


def index_of(operation: longrunning.Operation) -> pb.FeatureIndex:
    index = pb.FeatureIndex()
    assert operation.response.Unpack(index), operation
    return index


async def test_an_index_is_built_listed_used_and_deleted(server):
    """The operation answers with the index; describing uses it; deleting forgets it."""
    index = index_of(await built(server, max_tokens=300))
    assert index.name.startswith("featureIndexes/")
    assert index.tokens >= 290
    assert (index.corpus, index.features, list(index.layers)) == ("built-in", 192, [0, 1, 2])
    assert not index.HasField("seconds")
    features = stub(server)
    listed = await features.ListFeatureIndexes(pb.ListFeatureIndexesRequest())
    assert [one.name for one in listed.indexes] == [index.name]
    assert await features.GetFeatureIndex(pb.GetFeatureIndexRequest(name=index.name)) == index
    asked = pb.DescribeFeatureRequest(model=MODEL, feature=FEATURE, tokens=3, neighbours=2)
    found = await features.DescribeFeature(asked)
    assert found.index.name == index.name
    assert found.statistics.count == sum(found.statistics.histogram_counts)
    assert (len(found.promotes), len(found.neighbours)) == (3, 2)
    hits = await features.SearchFeatures(pb.SearchFeaturesRequest(model=MODEL, token=" the", page_size=2))
    assert len(hits.features) == 2
    await features.DeleteFeatureIndex(pb.DeleteFeatureIndexRequest(name=index.name))
    assert not (await features.DescribeFeature(asked)).HasField("statistics")


async def test_validation_predicts_and_builds_nothing(server):
    """`validate_only` answers at once with what it would take."""
    request = pb.BuildFeatureIndexRequest(model=MODEL, layers=[1], validate_only=True)
    operation = await stub(server).BuildFeatureIndex(request)
    assert operation.done
    predicted = index_of(operation)
    assert predicted.features == 64
    assert predicted.seconds > 0
    assert predicted.memory_bytes > 0
    assert (await stub(server).ListFeatureIndexes(pb.ListFeatureIndexesRequest())).indexes == []


async def test_activations_and_rankings_agree(server):
    """The strongest feature of a text has, at its position, the activation that reading it gives."""
    features = stub(server)
    top = await features.TopFeatures(pb.TopFeaturesRequest(model=MODEL, text=TEXT, scope=pb.TOP_SCOPE_TEXT))
    best = top.features[0]
    assert len(top.features) == 20
    read = await features.GetActivations(
        pb.GetActivationsRequest(model=MODEL, text=TEXT, features=[FEATURE, best.feature])
    )
    assert [token.display for token in read.tokens] == [token.display for token in top.tokens]
    assert read.features[1].values[best.position] == pytest.approx(best.activation, rel=1e-5)
    per_token = await features.TopFeatures(
        pb.TopFeaturesRequest(model=MODEL, text=TEXT, scope=pb.TOP_SCOPE_TOKEN, count=2)
    )
    assert [one.position for one in per_token.features] == [p for p in range(1, 7) for _ in range(2)]


async def test_an_answer_that_no_message_can_hold_is_refused(server):
    """Too many features times tokens is OVER_BUDGET with its field, not a broken stream."""
    request = pb.GetActivationsRequest(model=MODEL, text=TEXT, features=[FEATURE] * 150_000)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(server).GetActivations(request)
    assert reason(caught.value) == "OVER_BUDGET"
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_labels_reach_every_answer(server):
    """A label that was set comes with activations, rankings and searches, and goes out as JSONL."""
    features = stub(server)
    top = await features.TopFeatures(pb.TopFeaturesRequest(model=MODEL, text=TEXT, scope=pb.TOP_SCOPE_TEXT))
    best = top.features[0].feature
    label = await features.SetFeatureLabel(
        pb.SetFeatureLabelRequest(model=MODEL, feature=best, text="shops", author="ann")
    )
    assert label.create_time.endswith("Z")
    again = await features.TopFeatures(pb.TopFeaturesRequest(model=MODEL, text=TEXT, scope=pb.TOP_SCOPE_TEXT))
    assert again.features[0].label == "shops"
    found = await features.SearchFeatures(pb.SearchFeaturesRequest(model=MODEL, label="SHOP"))
    assert [one.feature for one in found.features] == [best]
    exported = await features.ExportFeatureLabels(pb.ExportFeatureLabelsRequest(model=MODEL))
    pieces = server.stub(ArtifactServiceStub).Read(artifacts.ReadRequest(name=exported.artifact))
    lines = b"".join([piece.data async for piece in pieces])
    await features.DeleteFeatureLabel(pb.DeleteFeatureLabelRequest(model=MODEL, feature=best))
    assert (await features.ListFeatureLabels(pb.ListFeatureLabelsRequest(model=MODEL))).labels == []
    stored = await features.ImportFeatureLabels(pb.ImportFeatureLabelsRequest(model=MODEL, lines=lines))
    assert (stored.stored, exported.n_labels) == (1, 1)
    (label,) = (await features.ListFeatureLabels(pb.ListFeatureLabelsRequest(model=MODEL))).labels
    assert (label.text, label.author) == ("shops", "ann")


async def test_a_contrast_is_answered_and_ends_with_its_deadline(server, scripts):
    """Texts that differ in a word have features with small p; a passed deadline is one, not an answer."""
    sides = {
        side: [f"The {word} gave a drink to {who}" for word in ("cat", "dog", "store", "Paris", "capital")]
        for side, who in (("first", "Mary"), ("second", "John"))
    }
    request = pb.ContrastFeaturesRequest(model=MODEL, count=3, permutations=99, **sides)
    found = await stub(server).ContrastFeatures(request)
    assert len(found.features) == 3
    assert found.features[0].p_value <= found.features[2].p_value <= 1
    assert found.compared > 0
    engine = server.house.service.models.engine("tiny")
    engine._berth.engine.scripts[ContrastFeatures] = Script(result=None, hold=asyncio.Event())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(server).ContrastFeatures(request, timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_page_is_an_artifact(server):
    """Rendering answers with an artifact and the name that other pages link to."""
    rendered = await stub(server).RenderFeature(pb.RenderFeatureRequest(model=MODEL, feature=FEATURE))
    assert rendered.file_name == "neurons-1-5.html"
    pieces = server.stub(ArtifactServiceStub).Read(artifacts.ReadRequest(name=rendered.artifact))
    assert b"".join([piece.data async for piece in pieces]).startswith(b"<!doctype html>")


ABSENT, SIDES = FeatureRef(layer=1, index=64), {"first": ["ab", "bc"], "second": ["ab", "bc"]}
BAD = [
    ("GetActivations", {"text": TEXT}, "INVALID_REQUEST", "features"),
    ("GetActivations", {"features": [FEATURE]}, "EMPTY_PROMPT", "text"),
    ("GetActivations", {"text": TEXT, "features": [ABSENT]}, "FEATURE_OUT_OF_RANGE", "features[0].index"),
    ("TopFeatures", {"text": TEXT}, "INVALID_REQUEST", "scope"),
    ("TopFeatures", {"text": TEXT, "scope": 2, "count": 101}, "INVALID_REQUEST", "count"),
    ("TopFeatures", {"text": TEXT, "scope": 2, "replacement": "nowhere"}, "REPLACEMENT_NOT_FOUND", None),
    ("TopFeatures", {"text": TEXT, "scope": 2, "layers": [1, 1]}, "INVALID_REQUEST", "layers"),
    ("DescribeFeature", {}, "INVALID_REQUEST", "feature"),
    ("DescribeFeature", {"feature": FeatureRef(layer=-1)}, "INVALID_REQUEST", "feature.layer"),
    ("DescribeFeature", {"feature": FeatureRef(layer=3)}, "LAYER_OUT_OF_RANGE", "feature.layer"),
    ("DescribeFeature", {"feature": FEATURE, "tokens": 101}, "INVALID_REQUEST", "tokens"),
    ("DescribeFeature", {"feature": FEATURE, "index": "indexes/x"}, "INVALID_REQUEST", "index"),
    ("SearchFeatures", {}, "INVALID_REQUEST", "query"),
    ("SearchFeatures", {"label": ""}, "INVALID_REQUEST", "label"),
    ("SearchFeatures", {"label": " "}, "INVALID_REQUEST", "label"),
    ("SearchFeatures", {"token": " the"}, "FEATURE_INDEX_NOT_FOUND", None),
    ("SearchFeatures", {"text": " the"}, "INVALID_REQUEST", "text"),
    ("ContrastFeatures", {"first": ["a"], "second": ["a", "b"]}, "INVALID_REQUEST", "first"),
    ("ContrastFeatures", {"first": ["ab", ""], "second": ["ab", "bc"]}, "EMPTY_PROMPT", "first[1]"),
    ("ContrastFeatures", {"first": ["ab", "bc"], "second": ["ab", "b"]}, "INVALID_REQUEST", "second[1]"),
    ("ContrastFeatures", {**SIDES, "permutations": 9}, "INVALID_REQUEST", "permutations"),
    ("BuildFeatureIndex", {"context_tokens": 1}, "INVALID_REQUEST", "context_tokens"),
    ("BuildFeatureIndex", {"window": 65}, "INVALID_REQUEST", "window"),
    ("BuildFeatureIndex", {"corpus": "artifacts/short"}, "INVALID_REQUEST", "corpus"),
    ("BuildFeatureIndex", {"corpus": "artifacts/" + "0" * 64}, "RESOURCE_NOT_FOUND", None),
    ("BuildFeatureIndex", {"layers": [7]}, "LAYER_OUT_OF_RANGE", "layers[0]"),
    ("SetFeatureLabel", {"feature": FEATURE, "text": "x" * 201}, "INVALID_REQUEST", "text"),
    ("SetFeatureLabel", {"feature": FEATURE, "text": "a\x07b"}, "INVALID_REQUEST", "text"),
    ("SetFeatureLabel", {"feature": FEATURE, "text": "a", "author": "b" * 101}, "INVALID_REQUEST", "author"),
    ("DeleteFeatureLabel", {"feature": FEATURE}, "RESOURCE_NOT_FOUND", None),
    ("ImportFeatureLabels", {"lines": b"junk"}, "INVALID_REQUEST", "lines"),
]  # fmt: skip


async def test_bad_requests_are_typed_and_name_their_field(server):
    """Every listed mistake is refused with its reason and field, and the service goes on."""
    features = stub(server)
    for method, fields, wanted, where in BAD:
        kind = getattr(pb, f"{method}Request")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(features, method)(kind(model=MODEL, **fields))
        assert reason(caught.value) == wanted, (method, fields, caught.value.details())
        if where is not None:
            assert field(caught.value) == where, (method, fields)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await features.GetFeatureIndex(pb.GetFeatureIndexRequest(name="featureIndexes/none"))
    assert reason(caught.value) == "FEATURE_INDEX_NOT_FOUND"

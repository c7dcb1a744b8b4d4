"""FeatureService."""

from __future__ import annotations

from collections.abc import Iterable

from google.longrunning.operations_pb2 import Operation
from google.protobuf.empty_pb2 import Empty

from trephine.app.features.feature_indexes import COLLECTION
from trephine.app.features.features import Hits, Question
from trephine.app.service import Service
from trephine.domain.activations import StrongestFeatures
from trephine.domain.errors import InvalidRequestError
from trephine.domain.features import FeaturesByToken, RankByToken
from trephine.domain.models import ModelInfo
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.pages.feature_page import feature_file
from trephine.rpc.calls import Context
from trephine.rpc.paging import Paging, page
from trephine.rpc.results import OperationWriter, validated
from trephine.rpc.streaming import remaining
from trephine.rpc.wire import features as wire
from trephine.rpc.wire.feature_indexes import build_from_wire, index_to_wire, predicted_to_wire
from trephine.rpc.wire.fields import at_least, required, resource_id
from trephine.v1 import feature_service_pb2 as pb
from trephine.v1.feature_service_pb2_grpc import FeatureServiceServicer

_HITS, _LABELS = Paging(default=20, largest=500), Paging(default=100, largest=1000)


class FeatureServicer(FeatureServiceServicer):
    """Features: looked at, indexed, labelled."""

    def __init__(self, service: Service, operations: OperationWriter) -> None:
        self._models = service.models
        self._sets = service.feature_sets
        self._features = service.features
        self._indexes = service.feature_indexes
        self._labels = service.labels
        self._artifacts = service.artifacts
        self._operations = operations

    async def GetActivations(
        self, request: pb.GetActivationsRequest, context: Context
    ) -> pb.GetActivationsResponse:
        """Read chosen features over a text."""
        model, command = _model(request), wire.activations_from_wire(request)
        found = await self._models.engine(model).run(command, deadline_seconds=remaining(context))
        names = await self._names(model, command.features)
        degraded = await self._degraded(model, {feature.replacement for feature in command.features})
        return wire.activations_to_wire(command, found, names, degraded, await self._info(model))

    async def TopFeatures(self, request: pb.TopFeaturesRequest, context: Context) -> pb.TopFeaturesResponse:
        """Rank features over a text or per token."""
        model, command = _model(request), wire.top_from_wire(request)
        engine, seconds = self._models.engine(model), remaining(context)
        found: StrongestFeatures | FeaturesByToken
        if isinstance(command, RankByToken):
            found = await engine.run(command, deadline_seconds=seconds)
        else:
            found = await engine.run(command, deadline_seconds=seconds)
        names = await self._names(model, (one[0] for one in wire.activity(found)))
        degraded = bool(await self._degraded(model, {command.replacement}))
        return wire.top_to_wire(found, names, degraded, await self._info(model))

    async def DescribeFeature(
        self, request: pb.DescribeFeatureRequest, context: Context
    ) -> pb.FeatureDescription:
        """Say everything that is known of a feature."""
        feature = wire.named_feature(request.feature, request.HasField("feature"))
        question = _question(request, feature.replacement, context)
        found = await self._features.describe(
            question,
            feature.layer,
            feature.index,
            tokens=at_least(request.tokens, 0, "tokens") if request.HasField("tokens") else 10,
            neighbours=at_least(request.neighbours, 0, "neighbours")
            if request.HasField("neighbours")
            else 10,
        )
        return wire.description_to_wire(found, await self._info(question.model))

    async def SearchFeatures(
        self, request: pb.SearchFeaturesRequest, context: Context
    ) -> pb.SearchFeaturesResponse:
        """Find features by token, by text or by label."""
        by = request.WhichOneof("query")
        if by is None:
            raise InvalidRequestError("search by token, by text or by label", field="query")
        asked = required(getattr(request, by), by)
        question = _question(request, request.replacement or NEURONS, context)
        hits = await self._found(question, by, asked)
        found = page(
            hits.features,
            size=request.page_size,
            token=request.page_token,
            question=("SearchFeatures", request.model, question.replacement, question.index, by, asked),
            rule=_HITS,
        )
        return wire.hits_to_wire(found.items, found.next_token, hits.caveats)

    async def ContrastFeatures(
        self, request: pb.ContrastFeaturesRequest, context: Context
    ) -> pb.ContrastFeaturesResponse:
        """Compare two sets of texts; ends with its caller."""
        model, command = _model(request), wire.contrast_from_wire(request)
        found = await self._models.engine(model).run(command, deadline_seconds=remaining(context))
        names = await self._names(model, (one.feature for one in found.features))
        degraded = bool(await self._degraded(model, {command.replacement}))
        return wire.contrast_to_wire(found, names, degraded, await self._info(model))

    async def RenderFeature(
        self, request: pb.RenderFeatureRequest, context: Context
    ) -> pb.RenderFeatureResponse:
        """Render a feature as an artifact."""
        feature = wire.named_feature(request.feature, request.HasField("feature"))
        question = _question(request, feature.replacement, context)
        beside = [(one.layer, one.index) for one in request.beside]
        info = await self._features.render(question, feature.layer, feature.index, beside)
        return pb.RenderFeatureResponse(artifact=f"artifacts/{info.sha256}", file_name=feature_file(feature))

    async def BuildFeatureIndex(self, request: pb.BuildFeatureIndexRequest, context: Context) -> Operation:
        """Build an index, or only check and predict."""
        wanted = build_from_wire(request)
        if request.validate_only:
            predicted = await self._indexes.predict(wanted)
            return validated("BuildFeatureIndex", predicted_to_wire(predicted, wanted))
        return await self._operations.start("BuildFeatureIndex", wanted, request.request_id)

    async def GetFeatureIndex(self, request: pb.GetFeatureIndexRequest, context: Context) -> pb.FeatureIndex:
        """Describe one index."""
        return index_to_wire(await self._indexes.get(resource_id(request.name, COLLECTION)))

    async def ListFeatureIndexes(
        self, request: pb.ListFeatureIndexesRequest, context: Context
    ) -> pb.ListFeatureIndexesResponse:
        """List indexes, newest first."""
        found = page(
            await self._indexes.list(),
            size=request.page_size,
            token=request.page_token,
            question=("ListFeatureIndexes",),
            key=lambda stored: stored.name,
        )
        indexes = [index_to_wire(stored) for stored in found.items]
        return pb.ListFeatureIndexesResponse(indexes=indexes, next_page_token=found.next_token)

    async def DeleteFeatureIndex(self, request: pb.DeleteFeatureIndexRequest, context: Context) -> Empty:
        """Forget an index."""
        await self._indexes.delete(resource_id(request.name, COLLECTION))
        return Empty()

    async def SetFeatureLabel(self, request: pb.SetFeatureLabelRequest, context: Context) -> pb.FeatureLabel:
        """Label a feature."""
        feature = wire.named_feature(request.feature, request.HasField("feature"))
        features = await self._sets.get(_model(request), feature.replacement)
        return wire.label_to_wire(await self._labels.set(features, feature, request.text, request.author))

    async def DeleteFeatureLabel(self, request: pb.DeleteFeatureLabelRequest, context: Context) -> Empty:
        """Forget a label."""
        feature = wire.named_feature(request.feature, request.HasField("feature"))
        await self._labels.delete(await self._sets.get(_model(request), feature.replacement), feature)
        return Empty()

    async def ListFeatureLabels(
        self, request: pb.ListFeatureLabelsRequest, context: Context
    ) -> pb.ListFeatureLabelsResponse:
        """List the labels of a set."""
        features = await self._sets.get(_model(request), request.replacement or NEURONS)
        layer = at_least(request.layer, 0, "layer") if request.HasField("layer") else None
        found = page(
            await self._labels.list(features, layer),
            size=request.page_size,
            token=request.page_token,
            question=("ListFeatureLabels", features.content_hash, layer),
            rule=_LABELS,
            key=lambda label: f"{label.feature.layer}:{label.feature.index}",
        )
        labels = [wire.label_to_wire(label) for label in found.items]
        return pb.ListFeatureLabelsResponse(labels=labels, next_page_token=found.next_token)

    async def ImportFeatureLabels(
        self, request: pb.ImportFeatureLabelsRequest, context: Context
    ) -> pb.ImportFeatureLabelsResponse:
        """Store labels from JSONL, all or none."""
        features = await self._sets.get(_model(request), request.replacement or NEURONS)
        stored = await self._labels.import_lines(features, request.lines, request.author)
        return pb.ImportFeatureLabelsResponse(stored=stored)

    async def ExportFeatureLabels(
        self, request: pb.ExportFeatureLabelsRequest, context: Context
    ) -> pb.ExportFeatureLabelsResponse:
        """Write the labels of a set as an artifact."""
        features = await self._sets.get(_model(request), request.replacement or NEURONS)
        lines = await self._labels.export_lines(features)
        info = await self._artifacts.put(lines, media_type="application/jsonl")
        return pb.ExportFeatureLabelsResponse(
            artifact=f"artifacts/{info.sha256}", n_labels=lines.count(b"\n")
        )

    async def _found(self, question: Question, by: str, asked: str) -> Hits:
        if by == "token":
            return await self._features.on_token(question, asked)
        if by == "text":
            return await self._features.in_text(question, asked)
        return Hits(features=await self._features.labelled(question, asked))

    async def _info(self, model: str) -> ModelInfo:
        return await self._models.info(model)

    async def _degraded(self, model: str, replacements: Iterable[str]) -> frozenset[str]:
        """Which of these sets failed admission and were accepted all the same."""
        found = [await self._sets.get(model, name) for name in replacements]
        return frozenset(features.name for features in found if features.degraded)

    async def _names(self, model: str, features: Iterable[FeatureRef]) -> dict[FeatureRef, str]:
        """What people call features of any sets."""
        names: dict[FeatureRef, str] = {}
        by_set: dict[str, list[FeatureRef]] = {}
        for feature in features:
            by_set.setdefault(feature.replacement, []).append(feature)
        for replacement, members in by_set.items():
            found = await self._labels.get(await self._sets.get(model, replacement), members)
            names |= {feature: label.text for feature, label in found.items()}
        return names


_OfModel = (
    pb.GetActivationsRequest
    | pb.TopFeaturesRequest
    | pb.ContrastFeaturesRequest
    | pb.SetFeatureLabelRequest
    | pb.DeleteFeatureLabelRequest
    | pb.ListFeatureLabelsRequest
    | pb.ImportFeatureLabelsRequest
    | pb.ExportFeatureLabelsRequest
    | pb.DescribeFeatureRequest
    | pb.SearchFeaturesRequest
    | pb.RenderFeatureRequest
)


def _model(request: _OfModel) -> str:
    return resource_id(request.model, "models", "model")


def _question(
    request: pb.DescribeFeatureRequest | pb.SearchFeaturesRequest | pb.RenderFeatureRequest,
    replacement: str,
    context: Context,
) -> Question:
    index = resource_id(request.index, COLLECTION, "index") if request.HasField("index") else ""
    return Question(
        model=_model(request), replacement=replacement, index=index, deadline_seconds=remaining(context)
    )

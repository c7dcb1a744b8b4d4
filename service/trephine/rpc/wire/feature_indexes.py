"""Feature indexes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trephine.app.features.feature_indexes import COLLECTION, PredictedIndex, StoredIndex
from trephine.app.jobs.requests import IndexRequest
from trephine.domain.errors import InvalidRequestError
from trephine.domain.features import BUILT_IN, FeatureIndexInfo, IndexFeatures
from trephine.domain.sites import NEURONS
from trephine.rpc.wire.artifacts import digest_from_wire
from trephine.rpc.wire.common import version_to_wire
from trephine.rpc.wire.fields import at_least, clean, printable, qualified, resource_id
from trephine.v1 import feature_service_pb2 as pb

_LONGEST_NAME = 100


def build_from_wire(request: pb.BuildFeatureIndexRequest) -> IndexRequest:
    """Read what is to be indexed, with the defaults that the contract states.

    Raises:
        InvalidRequestError: Naming the field.
    """
    if len(request.corpus_name) > _LONGEST_NAME:
        raise InvalidRequestError(f"corpus_name may have {_LONGEST_NAME} characters", field="corpus_name")
    chosen: dict[str, Any] = {
        name: at_least(getattr(request, name), 1, name)
        for name in ("context_tokens", "max_tokens", "contexts_per_feature", "window")
        if request.HasField(name)
    }
    corpus = digest_from_wire(request.corpus, "corpus") if request.HasField("corpus") else ""
    default = f"artifacts/{corpus}" if corpus else BUILT_IN
    command = IndexFeatures(
        replacement=request.replacement or NEURONS,
        corpus_name=printable(request.corpus_name) or default,
        path="",
        layers=tuple(sorted(at_least(layer, 0, "layers") for layer in request.layers)),
    )
    command = replace(command, **chosen)
    return IndexRequest(model=resource_id(request.model, "models", "model"), command=command, corpus=corpus)


def index_to_wire(stored: StoredIndex) -> pb.FeatureIndex:
    """Write a finished index."""
    message = info_to_wire(stored.info, stored.name)
    message.create_time = clean(stored.create_time)
    message.size_bytes = stored.size_bytes
    return message


def info_to_wire(info: FeatureIndexInfo, name: str) -> pb.FeatureIndex:
    """Write what an index says of itself."""
    return pb.FeatureIndex(
        name=qualified(COLLECTION, name),
        replacement=clean(info.replacement),
        content_hash=clean(info.content_hash),
        version=version_to_wire(info.model, info.weight_hash),
        corpus=clean(info.corpus),
        corpus_sha256=clean(info.corpus_sha256),
        tokens=info.tokens,
        contexts=info.contexts,
        documents=info.documents,
        layers=info.layers,
        features=info.features,
        fired=info.fired,
        degraded=info.degraded,
        begins_with=clean(info.begins_with),
        rule=clean(info.rule),
    )


def predicted_to_wire(predicted: PredictedIndex, request: IndexRequest) -> pb.FeatureIndex:
    """Write what building an index would take; counts, time, memory and size are predictions."""
    features = predicted.features
    return pb.FeatureIndex(
        replacement=clean(features.name),
        content_hash=clean(features.content_hash),
        version=version_to_wire(features.model.name, features.model.weight_hash),
        corpus=clean(request.command.corpus_name),
        tokens=predicted.tokens,
        layers=predicted.layers,
        features=sum(features.sizes[layer] for layer in predicted.layers),
        degraded=bool(features.degraded),
        size_bytes=predicted.disk_bytes,
        seconds=predicted.seconds,
        memory_bytes=predicted.memory_bytes,
    )

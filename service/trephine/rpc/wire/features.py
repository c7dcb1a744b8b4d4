"""What features do, read from requests and written to answers."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence

from trephine.domain.activations import Activations, RankActivity, ReadActivations, StrongestFeatures
from trephine.domain.errors import InvalidRequestError, OverBudgetError
from trephine.domain.features import (
    CoFiring,
    Contrast,
    ContrastFeatures,
    FeatureContext,
    FeatureDescription,
    FeatureLabel,
    FeaturesByToken,
    FeatureStatistics,
    FoundFeature,
    RankByToken,
)
from trephine.domain.models import ModelInfo
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.domain.tokens import Token
from trephine.rpc.wire.common import feature_from_wire, feature_to_wire, token_to_wire, version_to_wire
from trephine.rpc.wire.feature_indexes import info_to_wire
from trephine.rpc.wire.fields import at_least, clean, one_of, prompt, within
from trephine.v1 import common_pb2
from trephine.v1 import feature_service_pb2 as pb

Names = Mapping[FeatureRef, str]
"""What people call the features that are mentioned."""

_SCOPES: dict[pb.TopScope.ValueType, type[RankActivity] | type[RankByToken]] = {
    pb.TOP_SCOPE_TEXT: RankActivity,
    pb.TOP_SCOPE_TOKEN: RankByToken,
}
_LARGEST_COUNT = 100
_MOST_VALUES, _MOST_RANKED = 1 << 20, 50_000
"""Activations and ranked features of one answer: some 4 MB, of the 8 that a message may have."""


def layers_from_wire(layers: Sequence[int]) -> tuple[int, ...]:
    """Read layers; none means all.

    Raises:
        InvalidRequestError: If one is negative or named twice.
    """
    if len(set(layers)) < len(layers):
        raise InvalidRequestError("a layer is named twice", field="layers")
    return tuple(at_least(layer, 0, f"layers[{number}]") for number, layer in enumerate(layers))


def named_feature(message: common_pb2.FeatureRef, present: bool) -> FeatureRef:
    """Read the one feature that a request is about.

    Raises:
        InvalidRequestError: If there is none.
    """
    if not present:
        raise InvalidRequestError("feature is required: a layer and an index", field="feature")
    with within("feature"):
        return feature_from_wire(message)


def activations_from_wire(request: pb.GetActivationsRequest) -> ReadActivations:
    """Read which features are asked for.

    Raises:
        InvalidRequestError: Naming the field.
    """
    if not request.features:
        raise InvalidRequestError("at least one feature is needed", field="features")
    features = []
    for number, message in enumerate(request.features):
        with within(f"features[{number}]"):
            features.append(feature_from_wire(message))
    return ReadActivations(text=prompt(request.text, "text"), features=tuple(features))


def activations_to_wire(
    command: ReadActivations, found: Activations, names: Names, degraded: Collection[str], info: ModelInfo
) -> pb.GetActivationsResponse:
    """Write one row of activations per feature.

    Raises:
        OverBudgetError: If the answer would exceed a message.
    """
    _require_fits(len(command.features) * len(found.tokens), _MOST_VALUES, "features")
    values, width = array("f", found.values.data), len(found.tokens)
    return pb.GetActivationsResponse(
        tokens=[token_to_wire(token) for token in found.tokens],
        features=[
            pb.FeatureActivations(
                feature=feature_to_wire(feature),
                values=values[row * width : (row + 1) * width],
                label=clean(names.get(feature, "")),
                degraded=feature.replacement in degraded,
            )
            for row, feature in enumerate(command.features)
        ],
        version=version_to_wire(info.name, info.weight_hash),
        caveats=[clean(caveat) for caveat in found.caveats],
    )


def top_from_wire(request: pb.TopFeaturesRequest) -> RankActivity | RankByToken:
    """Read which ranking is asked for.

    Raises:
        InvalidRequestError: Naming the field.
    """
    kind = one_of(request.scope, _SCOPES, "scope")
    text, replacement = prompt(request.text, "text"), request.replacement or NEURONS
    layers = layers_from_wire(request.layers)
    count = _count(request.count, "count") if request.HasField("count") else None
    if kind is RankByToken:
        return RankByToken(text=text, replacement=replacement, layers=layers, count=count or 5)
    if layers:
        raise InvalidRequestError("layers are chosen per token only; leave them out", field="layers")
    return RankActivity(text=text, replacement=replacement, count=count or 20)


def top_to_wire(
    found: StrongestFeatures | FeaturesByToken, names: Names, degraded: bool, info: ModelInfo
) -> pb.TopFeaturesResponse:
    """Write a ranking.

    Raises:
        OverBudgetError: If the answer would exceed a message.
    """
    _require_fits(len(activity(found)), _MOST_RANKED, "count")
    return pb.TopFeaturesResponse(
        tokens=[token_to_wire(token) for token in found.tokens],
        features=[
            pb.FeatureActivity(
                feature=feature_to_wire(feature),
                position=position,
                activation=activation,
                contribution=contribution,
                label=clean(names.get(feature, "")),
            )
            for feature, position, activation, contribution in activity(found)
        ],
        version=version_to_wire(info.name, info.weight_hash),
        degraded=degraded,
        caveats=[clean(caveat) for caveat in found.caveats],
    )


def activity(found: StrongestFeatures | FeaturesByToken) -> list[tuple[FeatureRef, int, float, float]]:
    """Return (feature, position, activation, contribution) of either ranking, in its order."""
    if isinstance(found, StrongestFeatures):
        return [(one.feature, one.position, one.activation, one.contribution) for one in found.features]
    return [
        (feature, at.position, value, size) for at in found.positions for feature, value, size in at.features
    ]


def contrast_from_wire(request: pb.ContrastFeaturesRequest) -> ContrastFeatures:
    """Read a contrast, with the defaults that the contract states.

    Raises:
        InvalidRequestError: Naming the field.
    """
    for side in ("first", "second"):
        for number, text in enumerate(getattr(request, side)):
            prompt(text, f"{side}[{number}]")
    return ContrastFeatures(
        first=tuple(request.first),
        second=tuple(request.second),
        replacement=request.replacement or NEURONS,
        layers=layers_from_wire(request.layers),
        count=at_least(request.count, 1, "count") if request.HasField("count") else 20,
        permutations=request.permutations if request.HasField("permutations") else 999,
        seed=request.seed,
    )


def contrast_to_wire(
    found: Contrast, names: Names, degraded: bool, info: ModelInfo
) -> pb.ContrastFeaturesResponse:
    """Write a contrast."""
    return pb.ContrastFeaturesResponse(
        features=[
            pb.FeatureContrast(
                feature=feature_to_wire(one.feature),
                mean_difference=one.mean_difference,
                auroc=one.auroc,
                p_value=one.p_value,
                q_value=one.q_value,
                mean_first=one.mean_first,
                mean_second=one.mean_second,
                label=clean(names.get(one.feature, "")),
            )
            for one in found.features
        ],
        compared=found.compared,
        permutations=found.permutations,
        seed=found.seed,
        version=version_to_wire(info.name, info.weight_hash),
        degraded=degraded,
        caveats=map(clean, found.caveats),
    )


def hits_to_wire(
    found: Iterable[FoundFeature], next_token: str, caveats: Iterable[str]
) -> pb.SearchFeaturesResponse:
    """Write a page of hits."""
    return pb.SearchFeaturesResponse(
        features=[found_to_wire(one) for one in found],
        next_page_token=next_token,
        caveats=[clean(caveat) for caveat in caveats],
    )


def found_to_wire(found: FoundFeature) -> pb.FoundFeature:
    """Write a hit."""
    return pb.FoundFeature(
        feature=feature_to_wire(found.feature),
        score=found.score,
        why=clean(found.why),
        label=clean(found.label),
        degraded=found.degraded,
    )


def label_to_wire(label: FeatureLabel) -> pb.FeatureLabel:
    """Write a label."""
    return pb.FeatureLabel(
        feature=feature_to_wire(label.feature),
        text=clean(label.text),
        author=clean(label.author),
        create_time=clean(label.create_time),
    )


def description_to_wire(found: FeatureDescription, info: ModelInfo) -> pb.FeatureDescription:
    """Write everything that is known of a feature."""
    view, names = found.view, {label.feature: label.text for label in found.labels}
    return pb.FeatureDescription(
        feature=feature_to_wire(view.feature),
        promotes=_weights(view.promotes),
        suppresses=_weights(view.suppresses),
        neighbours=[
            pb.FeatureSimilarity(
                feature=feature_to_wire(feature), cosine=cosine, label=clean(names.get(feature, ""))
            )
            for feature, cosine in view.neighbours
        ],
        decoder_norm=view.decoder_norm,
        threshold=view.threshold,
        statistics=None if found.statistics is None else _statistics_to_wire(found.statistics, names),
        label=None if found.label is None else label_to_wire(found.label),
        index=None if found.index is None else info_to_wire(found.index, found.index_name),
        caveats=[clean(caveat) for caveat in found.caveats],
        version=version_to_wire(info.name, info.weight_hash),
        excited_by=_weights(view.excited_by),
        inhibited_by=_weights(view.inhibited_by),
    )


def _statistics_to_wire(found: FeatureStatistics, names: Names) -> pb.FeatureStatistics:
    return pb.FeatureStatistics(
        density=found.density,
        count=found.count,
        mean=found.mean,
        largest=found.largest,
        histogram_edges=found.histogram.edges,
        histogram_counts=found.histogram.counts,
        contexts=[_context_to_wire(context) for context in found.contexts],
        cofiring=[_cofiring_to_wire(one, names) for one in found.cofiring],
        tokens=_weights([(one.token, one.share) for one in found.tokens]),
    )


def _context_to_wire(context: FeatureContext) -> pb.FeatureContext:
    return pb.FeatureContext(
        tokens=[token_to_wire(token) for token in context.tokens],
        activations=context.activations,
        peak=context.peak,
        document=context.document,
        position=context.position,
    )


def _cofiring_to_wire(one: CoFiring, names: Names) -> pb.CoFiring:
    return pb.CoFiring(
        feature=feature_to_wire(one.feature),
        count=one.count,
        of=one.of,
        jaccard=one.jaccard,
        label=clean(names.get(one.feature, "")),
    )


def _weights(weights: Sequence[tuple[Token, float]]) -> list[pb.TokenWeight]:
    return [pb.TokenWeight(token=token_to_wire(token), weight=weight) for token, weight in weights]


def _require_fits(size: int, largest: int, field: str) -> None:
    if size > largest:
        raise OverBudgetError(
            f"the answer would hold {size} numbers and may hold {largest}; ask for less, or a shorter text",
            field=field,
            limit=largest,
        )


def _count(value: int, field: str) -> int:
    if not 1 <= value <= _LARGEST_COUNT:
        raise InvalidRequestError(f"{field} must be from 1 to {_LARGEST_COUNT}, got {value}", field=field)
    return value

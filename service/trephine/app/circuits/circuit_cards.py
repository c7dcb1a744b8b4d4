"""What is known of a circuit's features, for the side panel of its page."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from trephine.app.features.features import Features, Question
from trephine.domain.circuits import Circuit
from trephine.domain.errors import (
    FeatureOutOfRangeError,
    ModelNotReadyError,
    ParentChangedError,
    ResourceNotFoundError,
)
from trephine.domain.features import FeatureDescription
from trephine.domain.sites import NEURONS, FeatureRef


async def known_features(
    features: Features,
    circuit: Circuit,
    wanted: Collection[FeatureRef],
    *,
    deadline_seconds: float | None = None,
) -> tuple[FeatureDescription, ...]:
    """Describe what can be described: a page is no reason to load a model or a set that has gone.

    Of another set, or other weights, of the same name nothing is told: its features are not the circuit's.

    Args:
        features: Where to ask.
        circuit: Names the model.
        wanted: Features by the names that the circuit's nodes have.
        deadline_seconds: Of the whole.
    """
    known = []
    for feature in sorted(wanted, key=lambda one: (one.replacement, one.layer, one.index)):
        question = Question(
            model=circuit.model,
            replacement=feature.replacement,
            content_hash=_content_hash(circuit, feature),
            deadline_seconds=deadline_seconds,
        )
        try:
            found = await features.describe(question, feature.layer, feature.index, tokens=0, neighbours=0)
        except (ResourceNotFoundError, ModelNotReadyError, FeatureOutOfRangeError, ParentChangedError):
            continue
        known.append(replace(found, view=replace(found.view, feature=feature)))
    return tuple(known)


def _content_hash(circuit: Circuit, feature: FeatureRef) -> str:
    if feature.replacement == NEURONS:
        return circuit.weight_hash
    return {each.name: each.content_hash for each in circuit.sets}.get(feature.replacement, "")

"""Loaded replacement sets: by name, layer by layer, resident only while they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from trephine.domain.errors import (
    FeatureOutOfRangeError,
    LayerOutOfRangeError,
    ReplacementNotFoundError,
)
from trephine.domain.replacements import ReplacementLayerInfo, ReplacementSetInfo, Residency
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.layer import ReplacementLayer
from trephine.engine.replacements.neurons import neuron_layer, neuron_layer_info
from trephine.engine.replacements.positions import EVERYTHING, TrainedTokens


class Pager(Protocol):
    """Keeps layers of one set in memory within a budget."""

    def pinned(self, layers: Sequence[int]) -> AbstractContextManager[Mapping[int, ReplacementLayer]]:
        """Load layers if need be and keep them resident inside the block.

        Raises:
            OverBudgetError: If these layers alone exceed the budget.
            BrokenReplacementError: If a file has changed or cannot be read.
        """
        ...

    def residency(self) -> Residency:
        """Count what is resident."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacementSet:
    """One loaded set. Its weights come and go with the pager."""

    admitted: ReplacementSetInfo
    pager: Pager
    trained_on: TrainedTokens = EVERYTHING

    @property
    def info(self) -> ReplacementSetInfo:
        """What it is, with its present residency."""
        return replace(self.admitted, residency=self.pager.residency())

    @property
    def covered(self) -> tuple[int, ...]:
        """Layers that it has, ascending."""
        return tuple(layer.layer for layer in self.admitted.layers)

    def layer_info(self, layer: int) -> ReplacementLayerInfo:
        """Describe one of its layers without loading it.

        Raises:
            LayerOutOfRangeError: If the set does not cover the layer.
        """
        for info in self.admitted.layers:
            if info.layer == layer:
                return info
        raise LayerOutOfRangeError(
            f"replacement set {self.admitted.name} does not cover layer {layer}; it has "
            f"{', '.join(map(str, self.covered))}. Name one of these, or load a set that covers it",
            layer=layer,
            replacement=self.admitted.name,
        )


def require_set(hosted: HostedModel, name: str) -> ReplacementSet:
    """Return a loaded set.

    Raises:
        ReplacementNotFoundError: If there is none of that name; the message lists those there are.
    """
    found = hosted.replacements.get(name)
    if found is None:
        known = ", ".join((NEURONS, *sorted(hosted.replacements)))
        raise ReplacementNotFoundError(
            f"replacement set {name!r} is not loaded beside {hosted.info.name}; there are: {known}. "
            "Name one of these, or load it first",
            replacement=name,
        )
    return found


def is_degraded(hosted: HostedModel, name: str) -> bool:
    """Return whether a set failed admission and was accepted all the same; neurons never do.

    Raises:
        ReplacementNotFoundError: If there is no such set.
    """
    return name != NEURONS and require_set(hosted, name).admitted.degraded


def covered_layers(hosted: HostedModel, name: str) -> tuple[int, ...]:
    """Return the layers that a set covers, ascending; neurons cover all.

    Raises:
        ReplacementNotFoundError: If there is no such set.
    """
    return tuple(range(hosted.info.n_layers)) if name == NEURONS else require_set(hosted, name).covered


def layer_info(hosted: HostedModel, name: str, layer: int) -> ReplacementLayerInfo:
    """Describe one layer of a set, or a layer's own neurons, without loading weights.

    Raises:
        ReplacementNotFoundError: If there is no such set.
        LayerOutOfRangeError: If the model or the set does not have the layer.
    """
    if name == NEURONS:
        return neuron_layer_info(hosted.architecture, layer)
    return require_set(hosted, name).layer_info(layer)


def require_feature(hosted: HostedModel, feature: FeatureRef, *, field: str) -> ReplacementLayerInfo:
    """Return the layer of a feature that exists.

    Raises:
        ReplacementNotFoundError: If its set is not loaded.
        LayerOutOfRangeError: If its layer does not exist.
        FeatureOutOfRangeError: If its index does not.
    """
    try:
        info = layer_info(hosted, feature.replacement, feature.layer)
    except ReplacementNotFoundError as error:
        error.context.setdefault("field", f"{field}.replacement")
        raise
    except LayerOutOfRangeError as error:
        error.context.setdefault("field", f"{field}.layer")
        raise
    _require_index(info, feature, field)
    return info


def _require_index(info: ReplacementLayerInfo, feature: FeatureRef, field: str) -> None:
    if 0 <= feature.index < info.d_sae:
        return
    what = "neuron" if feature.replacement == NEURONS else "feature"
    raise FeatureOutOfRangeError(
        f"{what} {feature.index} does not exist; layer {feature.layer} of {feature.replacement} has "
        f"{what}s 0 to {info.d_sae - 1}; name one of these",
        field=f"{field}.index",
        index=feature.index,
        d_sae=info.d_sae,
    )


@contextmanager
def opened(hosted: HostedModel, name: str, layers: Sequence[int]) -> Iterator[Mapping[int, ReplacementLayer]]:
    """Hold layers of a set, or of the model's own neurons, resident inside the block.

    Must not span a quantum in which other jobs could need the memory.

    Raises:
        ReplacementNotFoundError: If there is no such set.
        LayerOutOfRangeError: If it does not cover a layer.
        OverBudgetError: If these layers together exceed the set's budget; ask for fewer at a time.
    """
    if name == NEURONS:
        yield {layer: neuron_layer(hosted.architecture, layer) for layer in layers}
        return
    found = require_set(hosted, name)
    for layer in layers:
        found.layer_info(layer)
    with found.pager.pinned(layers) as resident:
        yield resident

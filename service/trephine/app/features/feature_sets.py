"""Which features exist: of the model's own neurons, and of replacement sets that are loaded."""

from __future__ import annotations

from dataclasses import dataclass

from trephine.app.models.models import Models
from trephine.app.sets.replacements import Replacements
from trephine.domain.errors import FeatureOutOfRangeError, LayerOutOfRangeError
from trephine.domain.models import ModelInfo
from trephine.domain.sites import NEURONS, FeatureRef


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSet:
    """A set of features beside a loaded model."""

    name: str
    content_hash: str
    """Labels and indexes belong to it; of the model's own neurons it is the weights' hash."""
    model: ModelInfo
    sizes: dict[int, int]
    """Features by layer, ascending."""
    degraded: str = ""
    """Why it failed admission and was accepted all the same; empty if it passed."""

    def require(self, feature: FeatureRef, *, field: str) -> FeatureRef:
        """Return a feature that exists.

        Raises:
            LayerOutOfRangeError: If the set does not cover its layer.
            FeatureOutOfRangeError: If the layer has no such feature.
        """
        self.require_layer(feature.layer, field=f"{field}.layer")
        d_sae = self.sizes[feature.layer]
        if not 0 <= feature.index < d_sae:
            raise FeatureOutOfRangeError(
                f"layer {feature.layer} of {self.name} has features 0 to {d_sae - 1}, not {feature.index}; "
                "name one of these",
                field=f"{field}.index",
                d_sae=d_sae,
            )
        return feature

    def require_layer(self, layer: int, *, field: str) -> int:
        """Return a layer that the set covers.

        Raises:
            LayerOutOfRangeError: If it does not; the message lists those that it does.
        """
        if layer not in self.sizes:
            covered = ", ".join(map(str, self.sizes))
            raise LayerOutOfRangeError(
                f"{self.name} does not cover layer {layer}; it has {covered}. Name one of these, or load "
                "a set that covers it",
                field=field,
                layer=layer,
            )
        return layer


class FeatureSets:
    """Finds sets beside models."""

    def __init__(self, models: Models, replacements: Replacements) -> None:
        self._models = models
        self._replacements = replacements

    async def get(self, model: str, name: str) -> FeatureSet:
        """Return a set; the model is loaded again first if an earlier server had it.

        Raises:
            ReplacementNotFoundError: If no such set is loaded beside the model, or it was lost.
            ModelNotReadyError: If the model is not loaded.
            ModelNotFoundError: If there is no such model.
        """
        info = await self._models.info(model)
        if name == NEURONS:
            sizes = dict.fromkeys(range(info.n_layers), info.d_mlp)
            return FeatureSet(name=name, content_hash=info.weight_hash, model=info, sizes=sizes)
        loaded = self._replacements.loaded(name, model)
        return FeatureSet(
            name=name,
            content_hash=loaded.content_hash,
            model=info,
            sizes={layer.layer: layer.d_sae for layer in loaded.layers},
            degraded=loaded.admission.why if loaded.degraded else "",
        )

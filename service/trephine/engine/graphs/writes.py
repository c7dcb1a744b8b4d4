"""What the active features of a prompt write, ready to be scored against adjoints.

At a position only its own active features are met, so that their decoders have to be gathered per position.
Gathered ones are kept where the whole prompt's fit into a little memory: then they are gathered once instead
of in every sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trephine.domain.sites import Site
from trephine.engine.graphs.actives import ActiveFeatures, ActiveLayer
from trephine.engine.hosted import HostedModel
from trephine.engine.replacements.sets import opened

KEPT_BYTES = 64 << 20
"""A prompt whose written vectors exceed this gathers them anew in each sweep."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """Written vectors of one layer's active features at one site, in their order."""

    vectors: Tensor
    """`(n, d_model)`, decoders times what is written."""

    def score(self, adjoint: Tensor, first: int, last: int) -> Tensor:
        """Multiply adjoints `(n_rows, d_model)` with features first to last; `(n_rows, last - first)`."""
        return adjoint @ self.vectors[first:last].T


@dataclass(frozen=True, slots=True)
class Scattered:
    """Decoders of one layer at one site, and which of them every active feature has."""

    decoders: Tensor
    """`(n_unique, d_model)`."""
    place: Tensor
    """int64 `(n,)`."""
    written: Tensor
    """`(n,)`."""

    def score(self, adjoint: Tensor, first: int, last: int) -> Tensor:
        """Multiply adjoints `(n_rows, d_model)` with features first to last; `(n_rows, last - first)`."""
        return (adjoint @ self.decoders[self.place[first:last]].T) * self.written[first:last]

    def gathered(self) -> Gathered:
        """Gather all of them, `(n, d_model)`."""
        return Gathered(self.decoders[self.place] * self.written[:, None])


@dataclass(frozen=True, slots=True)
class Writes:
    """Written vectors of one prompt's features; those of a short prompt are kept."""

    _kept: dict[tuple[int, Site, torch.dtype], Gathered] = field(default_factory=dict)

    def of(
        self, hosted: HostedModel, active: ActiveFeatures, layer: ActiveLayer, site: Site, dtype: torch.dtype
    ) -> Gathered | Scattered:
        """Return what a layer writes at a site.

        Args:
            hosted: The model with its sets.
            active: The prompt's active features, the same at every call.
            layer: One of its layers.
            site: A site that it writes.
            dtype: Of the adjoints.
        """
        key = (layer.info.layer, site, dtype)
        if key in self._kept:
            return self._kept[key]
        found = scattered(hosted, active.replacement, layer, site, dtype)
        width = found.decoders.shape[1] * found.decoders.element_size()
        if width * _written_vectors(active.layers) > KEPT_BYTES:
            return found
        return self._kept.setdefault(key, found.gathered())


def _written_vectors(layers: Sequence[ActiveLayer]) -> int:
    return sum(layer.count * len(layer.info.sites_out) for layer in layers)


def scattered(
    hosted: HostedModel, name: str, layer: ActiveLayer, site: Site, dtype: torch.dtype
) -> Scattered:
    """Read the decoders that a layer's active features have at a site.

    Args:
        hosted: The model with its sets.
        name: The set.
        layer: One of its layers.
        site: A site that it writes.
        dtype: Of the decoders.
    """
    unique, place = layer.index.unique(return_inverse=True)
    with opened(hosted, name, [layer.info.layer]) as resident:
        decoders = resident[layer.info.layer].decoders(unique.tolist(), site).to(dtype)
    return Scattered(decoders=decoders, place=place, written=layer.written)

"""Which layers an export gives more neurons, and how many of these do nothing."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.domain.exports import WidenedLayer
from trephine.engine.weights.tensors import Growth, TensorChange


def widened_layers(changes: Sequence[TensorChange]) -> tuple[WidenedLayer, ...]:
    """Return the layers whose MLPs grow, ascending.

    Layers share one width, which is a multiple of what quantisers and kernels like; so that most of what is
    added to most layers is zeros, weights and biases alike.
    """
    growths: dict[int, list[Growth]] = {}
    for change in changes:
        if change.growth is not None:
            growths.setdefault(change.layer, []).append(change.growth)
    return tuple(
        WidenedLayer(
            layer=layer, neurons=grown[0].count, zeros=grown[0].count - max(_written(one) for one in grown)
        )
        for layer, grown in sorted(growths.items())
    )


def _written(growth: Growth) -> int:
    return 0 if growth.values is None else growth.values.shape[0]

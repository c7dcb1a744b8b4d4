"""Virtual weights: what one feature writes into the stream, times what another reads (Ameisen et al. 2025).

The direct path alone: neither attention nor an MLP lies between. What a feature writes is the sum over the
layers that it writes below the reader. What is read is folded: a norm's centring and gain are in it, its
scale is 1 here and comes with the data.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.engine.global_circuits.dictionaries import Chosen
from trephine.engine.global_circuits.readings import RunningWrites, chosen_encoders
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import opened


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualWeights:
    """Between chosen features, and to what stands above them; float32 or wider."""

    between: Tensor
    """`(readouts, n, n)`, rows are sources; 0 where the target does not read above the source."""
    encoders: Tensor
    """`(readouts, n, d_model)`, folded."""
    written: Tensor
    """`(n, d_model)`, what each writes below the final norm, over all its layers."""
    below: Tensor
    """`(n, d_model)`, what each writes below the block that was asked for."""


def virtual_weights(
    hosted: HostedModel, chosen: Chosen, boundary: int
) -> Generator[None, None, VirtualWeights]:
    """Multiply what features write with what those above read; the sources of a layer a quantum.

    Args:
        hosted: The model.
        chosen: The features.
        boundary: The block below which `below` is wanted.
    """
    encoders, space, n_layers = chosen_encoders(hosted, chosen), chosen.space, hosted.info.n_layers
    yield None
    between = torch.zeros(
        len(encoders), chosen.count, chosen.count, dtype=encoders.dtype, device=encoders.device
    )
    written, below = torch.zeros_like(encoders[0]), torch.zeros_like(encoders[0])
    for place, info in enumerate(space.infos):
        own = chosen.part(place)
        if own.start == own.stop:
            continue
        with opened(hosted, space.name, [info.layer]) as resident, torch.inference_mode():
            running = RunningWrites(resident[info.layer], chosen.indices(place))
            for block in range(info.layer, n_layers):
                if block == boundary:
                    below[own] = written[own]
                written[own] = running.after(block).to(written.dtype)
                above = _reading_at(chosen, block + 1)
                between[:, own, above] = written[own] @ encoders[:, above].transpose(1, 2)
            if boundary >= n_layers:
                below[own] = written[own]
        yield None
    return VirtualWeights(between=between, encoders=encoders, written=written, below=below)


def _reading_at(chosen: Chosen, layer: int) -> slice:
    """Return where the features of one of the model's layers stand."""
    layers = chosen.space.layers
    return chosen.part(layers.index(layer)) if layer in layers else slice(0, 0)


def stream_boundary(kind: str, layer: int) -> int:
    """Return the block whose MLP is the first that a read-out of the stream at a site does not see."""
    return layer + 1 if kind == "resid_post" else layer

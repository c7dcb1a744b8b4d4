"""CompareFeatures: which features of a circuit read and write alike."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from trephine.domain.arrays import Array
from trephine.domain.commands import Progress
from trephine.domain.directions import CompareFeatures, SimilarPairs
from trephine.domain.errors import InvalidRequestError
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session
from trephine.engine.replacements.sets import opened, require_feature

_BLOCK = 512
"""Features compared with all others per quantum."""


def compare(session: Session, command: CompareFeatures) -> Generator[Progress | None, None, SimilarPairs]:
    """Read the directions of a layer, or compare a block of features, per quantum.

    Raises:
        InvalidRequestError: If there are no features, or a sign is missing.
        ReplacementNotFoundError, LayerOutOfRangeError, FeatureOutOfRangeError: For what does not exist.
    """
    hosted, features = session.require_model().pinned(), command.features
    if not features:
        raise InvalidRequestError(
            "there are no features to compare; if they are a circuit's, find one that has features",
            field="features",
        )
    if len(command.positive) != len(features):
        raise InvalidRequestError("every feature needs its sign", field="features")
    for feature in features:
        require_feature(hosted, feature, field="features")
    directions = yield from _directions(hosted, command)
    layer = torch.tensor([feature.layer for feature in features])
    found = []
    for start in range(0, len(features), _BLOCK):
        found.append(_similar(directions, layer, start, command))
        yield Progress(stage="compare", done=min(start + _BLOCK, len(features)), total=len(features))
    first, second, similarity = (torch.cat(column) for column in zip(*found, strict=True))
    return SimilarPairs(
        first=_array(first.to(torch.int32)),
        second=_array(second.to(torch.int32)),
        similarity=_array(similarity),
    )


def _directions(
    hosted: HostedModel, command: CompareFeatures
) -> Generator[Progress | None, None, tuple[Tensor, ...]]:
    """Return unit encoders `(n_features, d_in)` and unit decoders `(n_features, d_out)`, signed."""
    features = command.features
    addresses = sorted({(feature.replacement, feature.layer) for feature in features})
    encoders: list[Tensor] = [torch.empty(0)] * len(features)
    decoders = list(encoders)
    for done, (name, layer) in enumerate(addresses):
        places = [p for p, f in enumerate(features) if (f.replacement, f.layer) == (name, layer)]
        indices = [features[place].index for place in places]
        with opened(hosted, name, [layer]) as resident, torch.inference_mode():
            found = resident[layer]
            reads = found.encoders(indices)
            # A cross-layer feature writes at several sites of the one residual stream: their sum.
            writes = torch.stack([found.decoders(indices, site) for site in found.info.sites_out]).sum(0)
            for row, place in enumerate(places):
                encoders[place], decoders[place] = reads[row].float().cpu(), writes[row].float().cpu()
        yield Progress(stage="directions", done=done + 1, total=len(addresses))
    sign = torch.tensor([1.0 if positive else -1.0 for positive in command.positive])[:, None]
    return normalize(torch.stack(encoders), dim=1) * sign, normalize(torch.stack(decoders), dim=1) * sign


def _similar(
    directions: tuple[Tensor, ...], layer: Tensor, start: int, command: CompareFeatures
) -> tuple[Tensor, Tensor, Tensor]:
    """Return pairs `first < second` of a block of features with any others, and their similarity."""
    block = slice(start, start + _BLOCK)
    mean = torch.stack([unit[block] @ unit.T for unit in directions]).mean(0)  # (block, n_features)
    near = (layer[block, None] - layer).abs() <= command.max_layers_apart
    rows = torch.arange(start, start + mean.shape[0])[:, None]
    later = torch.arange(len(layer)) > rows
    first, second = (near & later & (mean >= command.min_similarity)).nonzero(as_tuple=True)
    return first + start, second, mean[first, second]


def _array(values: Tensor) -> Array:
    name = str(values.dtype).removeprefix("torch.")
    data = values.contiguous().numpy().tobytes()
    return Array(dtype=name, shape=tuple(values.shape), data=data)  # type: ignore[arg-type]


HANDLERS: dict[type, Handler] = {CompareFeatures: compare}
"""Commands of this module."""

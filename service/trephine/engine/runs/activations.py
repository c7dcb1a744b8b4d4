"""Reading what features do on a text: neurons, and features of loaded sets."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import torch
from torch import Tensor

from trephine.domain.activations import (
    Activations,
    FeatureActivity,
    RankActivity,
    ReadActivations,
    StrongestFeatures,
)
from trephine.domain.arrays import Array
from trephine.domain.errors import InvalidRequestError
from trephine.domain.sites import NEURONS, FeatureRef, Site
from trephine.engine.models.fingerprint import tensor_bytes
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.neurons import neuron_site
from trephine.engine.models.session import Handler, Session
from trephine.engine.replacements.contexts import beginning_caveats
from trephine.engine.replacements.sets import covered_layers, layer_info, opened, require_feature
from trephine.engine.replacements.writing import activations_of
from trephine.engine.runs.refusals import feature_site
from trephine.engine.runs.rows import RowInput, run_rows


def read_activations(session: Session, command: ReadActivations) -> Generator[None, None, Activations]:
    """Read chosen features at every position of a text, in one forward pass.

    Raises:
        ReplacementNotFoundError: If a feature's set is not loaded.
        LayerOutOfRangeError: If a feature's layer does not exist.
        FeatureOutOfRangeError: If its index does not.
    """
    hosted = session.require_model()
    ids = hosted.encode(command.text)
    for number, feature in enumerate(command.features):
        require_feature(hosted, feature, field=f"features[{number}]")
    yield
    values = run_rows(hosted, [RowInput(ids)], reads=_sites(hosted, command.features), keep_last=0).values[0]
    table = torch.zeros(len(command.features), len(ids))
    for (name, layer), numbers in _by_layer(command.features).items():
        yield
        indices = [command.features[number].index for number in numbers]
        table[numbers] = _activations(hosted, name, layer, values, indices).T.cpu()
    return Activations(
        tokens=hosted.tokens(ids),
        values=Array(dtype="float32", shape=tuple(table.shape), data=bytes(tensor_bytes(table))),
        caveats=beginning_caveats(hosted, [feature.replacement for feature in command.features], ids),
    )


def _sites(hosted: HostedModel, features: Sequence[FeatureRef]) -> list[Site]:
    return sorted({feature_site(hosted, feature) for feature in features})


def _by_layer(features: Sequence[FeatureRef]) -> dict[tuple[str, int], list[int]]:
    """Group places in a list of features by set and layer."""
    groups: dict[tuple[str, int], list[int]] = {}
    for number, feature in enumerate(features):
        groups.setdefault((feature.replacement, feature.layer), []).append(number)
    return groups


def _activations(
    hosted: HostedModel, name: str, layer: int, values: Mapping[Site, Tensor], indices: Sequence[int]
) -> Tensor:
    """Return float32 `(n_pos, len(indices))` out of what was read at the layer's site."""
    if name == NEURONS:
        return values[neuron_site(layer)][:, list(indices)].float()
    with opened(hosted, name, [layer]) as layers, torch.inference_mode():
        x = values[layers[layer].info.site_in]
        return activations_of(layers[layer], x, indices)[1].float()


def rank_activity(session: Session, command: RankActivity) -> Generator[None, None, StrongestFeatures]:
    """List the features with the largest |activation| x decoder norm at positions >= 1.

    Position 0 is left out: it is an attention sink whose activations dwarf all others.

    Raises:
        InvalidRequestError: If the text has a single token, or count is not positive.
        ReplacementNotFoundError: If the replacement set is not loaded.
    """
    hosted = session.require_model()
    ids = hosted.encode(command.text)
    layers = covered_layers(hosted, command.replacement)
    if command.count < 1:
        raise InvalidRequestError("count must be at least 1", field="count")
    if len(ids) < 2:
        raise InvalidRequestError(
            "the text has one token, and position 0 is never ranked; write a longer text", field="text"
        )
    yield
    sites = sorted({layer_info(hosted, command.replacement, layer).site_in for layer in layers})
    values = run_rows(hosted, [RowInput(ids)], reads=sites, keep_last=0).values[0]
    strongest: list[FeatureActivity] = []
    for number in layers:
        with opened(hosted, command.replacement, [number]) as resident, torch.inference_mode():
            layer = resident[number]
            code = layer.encode(values[layer.info.site_in][1:])
            contributions = code.activations.abs() * code.scale_out * layer.decoder_norms()
            strongest += _strongest(
                command.replacement, number, code.activations, contributions, command.count
            )
        yield
    strongest.sort(key=lambda activity: -activity.contribution)
    return StrongestFeatures(
        tokens=hosted.tokens(ids),
        features=tuple(strongest[: command.count]),
        caveats=beginning_caveats(hosted, [command.replacement], ids),
    )


def _strongest(
    name: str, layer: int, activations: Tensor, contributions: Tensor, count: int
) -> list[FeatureActivity]:
    """Rank one layer's `(n_pos - 1, d_sae)` contributions; the first row is position 1."""
    best = contributions.flatten().topk(min(count, contributions.numel()))
    places = [divmod(place, contributions.shape[1]) for place in best.indices.tolist()]
    return [
        FeatureActivity(
            feature=FeatureRef(replacement=name, layer=layer, index=index),
            position=row + 1,
            activation=float(activations[row, index]),
            contribution=contribution,
        )
        for (row, index), contribution in zip(places, best.values.tolist(), strict=True)
        if contribution > 0
    ]


HANDLERS: dict[type, Handler] = {ReadActivations: read_activations, RankActivity: rank_activity}

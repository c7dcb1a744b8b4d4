"""Reading what neurons do on a text."""

from __future__ import annotations

from collections.abc import Generator

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
from trephine.domain.errors import InvalidRequestError, UnsupportedOptionError
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.engine.fingerprint import tensor_bytes
from trephine.engine.neurons import decoder_norms, neuron_site
from trephine.engine.refusals import check_feature
from trephine.engine.rows import RowInput, run_rows
from trephine.engine.session import Handler, Session


def read_activations(session: Session, command: ReadActivations) -> Generator[None, None, Activations]:
    """Read chosen neurons at every position of a text, in one forward pass.

    Raises:
        LayerOutOfRangeError: If a feature's layer does not exist.
        FeatureOutOfRangeError: If its index does not.
    """
    hosted = session.require_model()
    ids = hosted.encode(command.text)
    for number, feature in enumerate(command.features):
        check_feature(hosted.architecture, feature, field=f"features[{number}]")
    yield
    sites = sorted({neuron_site(feature.layer) for feature in command.features})
    values = run_rows(hosted, [RowInput(ids)], reads=sites, keep_last=1).values[0]
    table = torch.zeros(len(command.features), len(ids))
    for number, feature in enumerate(command.features):
        table[number] = values[neuron_site(feature.layer)][:, feature.index]
    return Activations(
        tokens=hosted.tokens(ids),
        values=Array(dtype="float32", shape=tuple(table.shape), data=bytes(tensor_bytes(table))),
    )


def rank_activity(session: Session, command: RankActivity) -> Generator[None, None, StrongestFeatures]:
    """List the neurons with the largest |activation| x decoder norm at positions >= 1.

    Position 0 is left out: it is an attention sink whose activations dwarf all others.

    Raises:
        InvalidRequestError: If the text has a single token, or count is not positive.
        UnsupportedOptionError: If another replacement set than the neurons is named.
    """
    hosted = session.require_model()
    ids = hosted.encode(command.text)
    if command.replacement != NEURONS:
        raise UnsupportedOptionError(
            f"replacement set {command.replacement!r} is not loaded; this release knows {NEURONS!r}",
            field="replacement",
        )
    if command.count < 1:
        raise InvalidRequestError("count must be at least 1", field="count")
    if len(ids) < 2:
        raise InvalidRequestError(
            "the text has one token, and position 0 is never ranked; write a longer text", field="text"
        )
    yield
    sites = [neuron_site(layer) for layer in range(hosted.info.n_layers)]
    values = run_rows(hosted, [RowInput(ids)], reads=sites, keep_last=1).values[0]
    strongest: list[FeatureActivity] = []
    for site in sites:
        norms = decoder_norms(hosted.architecture, site.layer)
        strongest += _strongest(site.layer, values[site], norms, command.count)
        yield
    strongest.sort(key=lambda activity: -activity.contribution)
    return StrongestFeatures(tokens=hosted.tokens(ids), features=tuple(strongest[: command.count]))


def _strongest(layer: int, values: Tensor, norms: Tensor, count: int) -> list[FeatureActivity]:
    """Rank one layer's `(n_pos, d_mlp)` activations."""
    contributions = values[1:].abs() * norms
    best = contributions.flatten().topk(min(count, contributions.numel()))
    places = [divmod(place, contributions.shape[1]) for place in best.indices.tolist()]
    return [
        FeatureActivity(
            feature=FeatureRef(layer=layer, index=index),
            position=row + 1,
            activation=float(values[row + 1, index]),
            contribution=contribution,
        )
        for (row, index), contribution in zip(places, best.values.tolist(), strict=True)
    ]


HANDLERS: dict[type, Handler] = {ReadActivations: read_activations, RankActivity: rank_activity}

"""RankByToken: the strongest features at every position of a text."""

from __future__ import annotations

from collections.abc import Generator

import torch

from trephine.domain.features import FeaturesByToken, RankByToken, TokenFeatures
from trephine.domain.replacements import ReplacementLayerInfo
from trephine.domain.sites import FeatureRef
from trephine.engine.features.reading import (
    LayerInputs,
    chosen_layers,
    encode_rows,
    read_inputs,
    require_positions,
)
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session
from trephine.engine.replacements.contexts import beginning_caveats
from trephine.engine.replacements.sets import opened

Ranked = list[tuple[FeatureRef, float, float]]


def rank_by_token(session: Session, command: RankByToken) -> Generator[None, None, FeaturesByToken]:
    """Rank by |activation| x decoder norm; one forward pass, then one layer per quantum.

    The text is read as it is: no token is put in front of it.

    Raises:
        ReplacementNotFoundError: If the set is not loaded.
        LayerOutOfRangeError: If it does not cover a layer.
        InvalidRequestError: If the text is one token long.
    """
    hosted = session.require_model().pinned()
    ids = hosted.encode(command.text)
    require_positions(ids, field="text")
    layers = chosen_layers(hosted, command.replacement, command.layers)
    yield
    inputs = read_inputs(hosted, layers, [ids])
    yield
    ranked: list[Ranked] = [[] for _ in ids]
    for layer in layers:
        for position, found in enumerate(_strongest(hosted, command, inputs, layer), 1):
            merged = sorted((*ranked[position], *found), key=lambda one: -one[2])
            ranked[position] = merged[: command.count]
        yield
    return FeaturesByToken(
        tokens=hosted.tokens(ids),
        positions=tuple(
            TokenFeatures(position=position, features=tuple(found)) for position, found in enumerate(ranked)
        ),
        caveats=beginning_caveats(hosted, [command.replacement], ids),
    )


def _strongest(
    hosted: HostedModel, command: RankByToken, inputs: LayerInputs, layer: ReplacementLayerInfo
) -> list[Ranked]:
    """Return one layer's strongest features at each position >= 1; those that are not active are left out."""
    with opened(hosted, command.replacement, (layer.layer,)) as resident, torch.inference_mode():
        norms = resident[layer.layer].decoder_norms()
        (code,) = encode_rows(hosted, command.replacement, inputs, layer)
        contributions = (code.activations.abs() * norms)[1:]
        best = contributions.topk(min(command.count, contributions.shape[1]), dim=1)
        values = code.activations[1:].gather(1, best.indices)
    rows = zip(best.indices.tolist(), values.tolist(), best.values.tolist(), strict=True)
    return [
        [
            (FeatureRef(replacement=command.replacement, layer=layer.layer, index=index), value, size)
            for index, value, size in zip(*row, strict=True)
            if size > 0
        ]
        for row in rows
    ]


HANDLERS: dict[type, Handler] = {RankByToken: rank_by_token}
"""Commands of this module."""

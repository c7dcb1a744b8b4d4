"""A random dictionary beside a model: the transcoders' size and L0 on the same sites, nothing learnt."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.shift_arms import Bench

# Sets without a folder belong to the tests; here they get weights that fit a model.
from tests.resident_sets import reside  # noqa: TID251
from trephine.domain.replacements import LayerKind, ReplacementLayerInfo, SupportRule
from trephine.domain.sites import Site, SiteKind
from trephine.engine.erasure.dictionaries import RandomDictionary, random_dictionary
from trephine.engine.models.sites import touching
from trephine.engine.replacements.dictionary import DictionaryLayer
from trephine.engine.replacements.encoder import Encoder
from trephine.engine.replacements.support import Threshold

NAME = "random"
D_SAE, L0 = 2048, 32
"""Those of the transcoders."""


def reside_random(bench: Bench) -> str:
    """Draw a dictionary per layer up to the head's, fitted on the ambiguous texts; return the set's name.

    Position 0 is left out, as it was for the transcoders: it is an attention sink.
    """
    last = bench.task.layer
    layers = range(bench.hosted.info.n_layers if last is None else last + 1)
    kinds = (SiteKind.MLP_IN, SiteKind.MLP_OUT)
    kept: dict[Site, list[Tensor]] = {Site(kind=kind, layer=layer): [] for layer in layers for kind in kinds}
    texts = bench.ids(bench.draw.training)
    with touching(bench.hosted.architecture, {site: partial(_keep, rows) for site, rows in kept.items()}):
        bench.pool(texts)
    later = torch.tensor([position > 0 for ids in texts for position in range(len(ids))])
    built = []
    for layer in layers:
        x, y = (torch.cat(kept[Site(kind=kind, layer=layer)])[later] for kind in kinds)
        drawn = random_dictionary(x, y, d_sae=D_SAE, l0=L0, seed=1000 * bench.seed + layer)
        built.append(_layer(layer, drawn))
    return reside(bench.hosted, built, name=NAME)


def _keep(kept: list[Tensor], x: Tensor) -> None:
    kept.append(x[0].to(torch.float32, copy=True))


def _layer(layer: int, drawn: RandomDictionary) -> DictionaryLayer:
    info = ReplacementLayerInfo(
        layer=layer,
        kind=LayerKind.TRANSCODER,
        support=SupportRule.JUMPRELU,
        site_in=Site(kind=SiteKind.MLP_IN, layer=layer),
        sites_out=(Site(kind=SiteKind.MLP_OUT, layer=layer),),
        d_in=drawn.W_enc.shape[0],
        d_out=drawn.W_dec.shape[1],
        d_sae=drawn.W_enc.shape[1],
        normalisation="none",
        has_skip=False,
        claimed_l0=None,
        memory_bytes=0,
        content_hash=f"random-{layer}",
    )
    encoder = Encoder(W_enc=drawn.W_enc, b_enc=None, support=Threshold(threshold=drawn.threshold))
    return DictionaryLayer(info=info, encoder=encoder, W_dec=drawn.W_dec, b_dec=drawn.b_dec)

"""Replacement sets of every kind for tiny models, resident in memory: no folder, no admission.

Weights are random, so that reconstructions are bad and error terms large: a law that holds here does not
hold because something was small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trephine.domain.replacements import (
    Admission,
    LayerKind,
    ReplacementLayerInfo,
    ReplacementSetInfo,
    Residency,
    SetFormat,
    SupportRule,
)
from trephine.domain.sites import Site, SiteKind
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import site_width
from trephine.engine.replacements.crosslayer import CrossLayerDictionary
from trephine.engine.replacements.dictionary import DictionaryLayer
from trephine.engine.replacements.encoder import Encoder
from trephine.engine.replacements.layer import ReplacementLayer
from trephine.engine.replacements.normalisation import Normalisation, NormalisationRule
from trephine.engine.replacements.sets import ReplacementSet
from trephine.engine.replacements.support import AbsTopK, SupportOf, Threshold, TopK

NAME = "set"
D_SAE = 40
RESIDENCY = Residency(total_bytes=0, resident_bytes=0, peak_bytes=0, budget_bytes=0, loads=0, evictions=0)
KINDS = (
    "relu", "jumprelu", "topk", "abs_topk", "skip", "normalised", "clt", "resid_post", "attn_out", "mixed",
)  # fmt: skip
"""What `resident_set` can build and every law knows. Beside them there are `of_stream`, transcoders that read
the stream in front of the MLP's norm, and `denormalised`, whose outputs are scaled back."""


@dataclass(frozen=True, slots=True)
class ResidentPager:
    """Everything is always there."""

    layers: Mapping[int, ReplacementLayer]

    @contextmanager
    def pinned(self, layers: Sequence[int]) -> Iterator[Mapping[int, ReplacementLayer]]:
        """Hand out layers."""
        yield {layer: self.layers[layer] for layer in layers}

    def residency(self) -> Residency:
        """Count nothing."""
        return RESIDENCY


def resident_set(
    hosted: HostedModel, kind: str, *, layers: Sequence[int] | None = None, name: str = NAME
) -> str:
    """Put a set of some kind beside a model and return its name."""
    numbers = range(hosted.architecture.n_layers) if layers is None else layers
    return reside(hosted, [_layer(hosted, kind, number) for number in numbers], name)


def reside(hosted: HostedModel, layers: Sequence[ReplacementLayer], name: str = NAME) -> str:
    """Put layers beside a model as a set and return its name."""
    by_layer = {layer.info.layer: layer for layer in layers}
    admitted = ReplacementSetInfo(
        name=name,
        format=SetFormat.SAELENS,
        content_hash=name,
        model=hosted.info.name,
        weight_hash=hosted.info.weight_hash,
        layers=tuple(by_layer[number].info for number in sorted(by_layer)),
        admission=Admission(passed=True, why="", layers=(), text="", tokens=0, begins_with=""),
        degraded=False,
        residency=RESIDENCY,
    )
    hosted.replacements[name] = ReplacementSet(admitted=admitted, pager=ResidentPager(by_layer))
    return name


def degrade(hosted: HostedModel, why: str, name: str = NAME) -> None:
    """Make a set one that failed admission and was accepted all the same."""
    known = hosted.replacements[name]
    admission = replace(known.admitted.admission, passed=False, why=why)
    admitted = replace(known.admitted, admission=admission, degraded=True)
    hosted.replacements[name] = replace(known, admitted=admitted)


def sae(hosted: HostedModel, site: Site, normalisation: Normalisation | None = None) -> ReplacementLayer:
    """Build an SAE at a site; its input loses `b_dec` first."""
    return _dictionary(hosted, site, site, LayerKind.SAE, shift=True, normalisation=normalisation)


def _layer(hosted: HostedModel, kind: str, number: int) -> ReplacementLayer:
    if kind == "mixed":
        kind = ("skip", "topk", "resid_post")[number % 3]
    if kind == "clt":
        return _cross_layer(hosted, number)
    if kind in ("resid_post", "attn_out"):
        return sae(hosted, Site(kind=SiteKind(kind), layer=number))
    reads = SiteKind.RESID_MID if kind == "of_stream" else SiteKind.MLP_IN
    source, target = (Site(kind=k, layer=number) for k in (reads, SiteKind.MLP_OUT))
    supports: dict[str, SupportOf] = {"relu": Threshold(), "topk": TopK(k=6), "abs_topk": AbsTopK(k=6)}
    return _dictionary(
        hosted,
        source,
        target,
        LayerKind.SKIP_TRANSCODER if kind == "skip" else LayerKind.TRANSCODER,
        support=supports.get(kind),
        skip=kind == "skip",
        normalisation=Normalisation(rule=NormalisationRule.LAYER_NORM, undone=kind == "denormalised")
        if kind in ("normalised", "denormalised")
        else Normalisation(),
    )


def _dictionary(
    hosted: HostedModel,
    source: Site,
    target: Site,
    kind: LayerKind,
    *,
    support: SupportOf | None = None,
    shift: bool = False,
    skip: bool = False,
    normalisation: Normalisation | None = None,
) -> DictionaryLayer:
    d_in, d_out = (site_width(hosted.architecture, site) for site in (source, target))
    draw = _Draws(100 * source.layer + 7, hosted.model.device)
    b_dec = draw(d_out)
    rule = normalisation or Normalisation()
    encoder = Encoder(
        W_enc=draw(d_in, D_SAE) / d_in**0.5,
        b_enc=0.1 * draw(D_SAE),
        support=support or Threshold(threshold=0.3 + draw(D_SAE).abs() / 2),
        shift=b_dec if shift else None,
        normalisation=rule,
    )
    return DictionaryLayer(
        info=_info(source, (target,), kind, encoder, d_in, d_out, skip=skip),
        encoder=encoder,
        W_dec=draw(D_SAE, d_out) / 3,
        b_dec=b_dec,
        W_skip=draw(d_out, d_in) / d_in**0.5 if skip else None,
    )


def _cross_layer(hosted: HostedModel, number: int) -> CrossLayerDictionary:
    width, n_layers = hosted.architecture.d_model, hosted.architecture.n_layers
    source = Site(kind=SiteKind.MLP_IN, layer=number)
    outputs = tuple(Site(kind=SiteKind.MLP_OUT, layer=layer) for layer in range(number, n_layers))
    draw = _Draws(100 * number + 13, hosted.model.device)
    encoder = Encoder(
        W_enc=draw(width, D_SAE) / width**0.5,
        b_enc=0.1 * draw(D_SAE),
        support=Threshold(threshold=0.3 + draw(D_SAE).abs() / 2),
    )
    return CrossLayerDictionary(
        info=_info(source, outputs, LayerKind.CROSS_LAYER_TRANSCODER, encoder, width, width),
        encoder=encoder,
        W_dec=draw(D_SAE, len(outputs), width) / 3,
        b_dec=draw(width),
    )


def _info(
    source: Site,
    outputs: tuple[Site, ...],
    kind: LayerKind,
    encoder: Encoder,
    d_in: int,
    d_out: int,
    *,
    skip: bool = False,
) -> ReplacementLayerInfo:
    rules = {TopK: SupportRule.TOPK, AbsTopK: SupportRule.ABS_TOPK}
    return ReplacementLayerInfo(
        layer=source.layer,
        kind=kind,
        support=rules.get(type(encoder.support), SupportRule.JUMPRELU),
        site_in=source,
        sites_out=outputs,
        d_in=d_in,
        d_out=d_out,
        d_sae=D_SAE,
        normalisation=encoder.normalisation.rule.value,
        has_skip=skip,
        claimed_l0=None,
        memory_bytes=0,
        content_hash=f"{kind}-{source.layer}",
    )


class _Draws:
    """Random tensors of one generator, the same on every device."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generator, self._device = torch.Generator().manual_seed(seed), device

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator).to(self._device)

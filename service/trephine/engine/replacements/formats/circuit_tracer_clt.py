"""circuit-tracer's folder of a cross-layer transcoder: `config.yaml`, `W_enc_{i}` and `W_dec_{i}` files.

`W_dec_{i}` is `(d_sae, n_layers - i, d_model)`: one decoder per written layer. They are kept apart; a reader
that sums them has an encoder and a wrong reconstruction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trephine.domain.errors import BrokenReplacementError
from trephine.domain.replacements import LayerKind, ReplacementLayerInfo, SetFormat, SupportRule
from trephine.domain.sites import Site
from trephine.engine.models.architecture import Architecture
from trephine.engine.replacements.crosslayer import CrossLayerDictionary
from trephine.engine.replacements.encoder import Encoder
from trephine.engine.replacements.formats.circuit_tracer import CONFIG, begins_with_bos, hook_points
from trephine.engine.replacements.formats.folders import (
    FolderLayer,
    FolderSet,
    check_width,
    gather,
    read_config,
)
from trephine.engine.replacements.formats.tensors import TensorFile, open_tensors
from trephine.engine.replacements.hooks import FITTING_SET
from trephine.engine.replacements.support import Threshold

ENCODER_FILE = re.compile(r"^W_enc_(\d+)\.safetensors$")


def read_set(folder: Path, architecture: Architecture) -> FolderSet:
    """Describe a cross-layer transcoder without reading weights.

    Raises:
        BrokenReplacementError: If files contradict one another, the model, or are cut short.
        UnsupportedReplacementError: If a hook is not supported.
    """
    config = read_config(folder / CONFIG)
    layers = [
        _layer(folder, int(found[1]), config, architecture)
        for path in sorted(folder.iterdir())
        if (found := ENCODER_FILE.match(path.name))
    ]
    return gather(
        layers,
        format=SetFormat.CIRCUIT_TRACER_CLT,
        prepends_bos=begins_with_bos(config),
        model_name=config.get("model_name"),
    )


def written_sites(architecture: Architecture, out: Site, targets: int, file: str) -> tuple[Site, ...]:
    """Return the sites that a layer writes: its own and every later one.

    Raises:
        BrokenReplacementError: If it writes another number of layers than the model has from there on.
    """
    expected = architecture.n_layers - out.layer
    if targets != expected:
        raise BrokenReplacementError(
            f"{file} writes {targets} layers from layer {out.layer} on, but {architecture.name} has "
            f"{expected}; it was made for another model. {FITTING_SET}",
            file=file,
            targets=targets,
            expected=expected,
        )
    return tuple(Site(kind=out.kind, layer=layer) for layer in range(out.layer, architecture.n_layers))


def _layer(folder: Path, layer: int, config: Mapping[str, Any], architecture: Architecture) -> FolderLayer:
    encoder = open_tensors(folder / f"W_enc_{layer}.safetensors")
    decoder = open_tensors(folder / f"W_dec_{layer}.safetensors")
    point, out = hook_points(architecture, config, layer, f"{folder.name}/{CONFIG}")
    d_sae, d_in = encoder.shape(f"W_enc_{layer}", None, None)
    _, targets, d_out = decoder.shape(f"W_dec_{layer}", d_sae, None, None)
    for site, width, name in ((point.site, d_in, "W_enc"), (out, d_out, "W_dec")):
        check_width(
            architecture,
            site,
            width,
            file=f"{folder.name}/{name}_{layer}.safetensors",
            tensor=f"{name}_{layer}",
            model_name=config.get("model_name"),
        )
    names = _encoder_names(encoder, layer, d_sae, d_out)
    jumps = f"threshold_{layer}" in names
    return FolderLayer(
        kind=LayerKind.CROSS_LAYER_TRANSCODER,
        support=SupportRule.JUMPRELU if jumps else SupportRule.RELU,
        point=point,
        sites_out=written_sites(architecture, out, targets, f"{folder.name}/W_dec_{layer}.safetensors"),
        d_in=d_in,
        d_out=d_out,
        d_sae=d_sae,
        normalisation="none",
        has_skip=False,
        claimed_l0=None,
        files=((encoder, names), (decoder, (f"W_dec_{layer}",))),
        config=config,
        build=partial(_build, encoder, decoder, layer),
    )


def _encoder_names(file: TensorFile, layer: int, d_sae: int, d_out: int) -> tuple[str, ...]:
    file.shape(f"b_enc_{layer}", d_sae)
    file.shape(f"b_dec_{layer}", d_out)
    names = [f"{name}_{layer}" for name in ("W_enc", "b_enc", "b_dec")]
    if f"threshold_{layer}" in file.entries:
        file.shape(f"threshold_{layer}", d_sae)
        names.append(f"threshold_{layer}")
    return tuple(names)


def _build(
    encoder: TensorFile,
    decoder: TensorFile,
    layer: int,
    info: ReplacementLayerInfo,
    device: torch.device | str,
) -> CrossLayerDictionary:
    jumps = info.support is SupportRule.JUMPRELU
    threshold = encoder.read(f"threshold_{layer}", device) if jumps else None
    return CrossLayerDictionary(
        info=info,
        encoder=Encoder(
            W_enc=encoder.read(f"W_enc_{layer}", device).T,
            b_enc=encoder.read(f"b_enc_{layer}", device),
            support=Threshold(threshold=threshold, clamped=not jumps),
        ),
        W_dec=decoder.read(f"W_dec_{layer}", device),
        b_dec=encoder.read(f"b_dec_{layer}", device),
    )

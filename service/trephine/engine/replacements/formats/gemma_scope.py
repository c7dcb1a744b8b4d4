"""gemma-scope-2's cross-layer transcoders: one file per layer, `w_dec` with a slot for every layer.

Layout only: no writer of it could be had. It is read as circuit-tracer 0.5.0 reads it (`w_enc (d_in, d_sae)`,
`w_dec (d_sae, n_layers, d_out)` of which layer i writes `[:, i:]`, `affine_skip_connection (d_in, d_out)`
as `x @ S`), except that its loop leaves out the last layer and this one does not.
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
from trephine.engine.replacements.formats.circuit_tracer_clt import written_sites
from trephine.engine.replacements.formats.folders import (
    FolderLayer,
    FolderSet,
    check_width,
    gather,
    read_config,
)
from trephine.engine.replacements.formats.tensors import TensorFile, open_tensors
from trephine.engine.replacements.hooks import FITTING_SET, HookPoint, resolve_hook
from trephine.engine.replacements.support import Threshold

CONFIG = "config.json"
LAYER_FILE = re.compile(r"layer_(\d+)\.safetensors$")
SKIP = "affine_skip_connection"
_LAYER_IN_HOOK = re.compile(r"(?<=\.)\d+(?=\.|$)")


def read_set(folder: Path, architecture: Architecture) -> FolderSet:
    """Describe a cross-layer transcoder without reading weights.

    Raises:
        BrokenReplacementError: If files contradict one another, the model, or are cut short.
        UnsupportedReplacementError: If a hook is not supported.
    """
    config = read_config(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    layers = [
        _layer(path, int(found[1]), config, architecture)
        for path in sorted(folder.iterdir())
        if (found := LAYER_FILE.search(path.name))
    ]
    return gather(
        layers,
        format=SetFormat.GEMMA_SCOPE_2_CLT,
        prepends_bos=True,
        model_name=config.get("model_name"),
    )


def _layer(path: Path, layer: int, config: Mapping[str, Any], architecture: Architecture) -> FolderLayer:
    file, label = open_tensors(path), f"{path.parent.name}/{path.name}"
    point, out = _points(config, layer, architecture)
    d_in, d_sae = file.shape("w_enc", None, None)
    _, slots, d_out = file.shape("w_dec", d_sae, None, None)
    if slots != architecture.n_layers:
        raise BrokenReplacementError(
            f"{label}: tensor w_dec has {slots} slots for {architecture.n_layers} layers; it was made for "
            f"another model. {FITTING_SET}",
            file=label,
            tensor="w_dec",
        )
    for site, width, tensor in ((point.site, d_in, "w_enc"), (out, d_out, "w_dec")):
        check_width(architecture, site, width, file=label, tensor=tensor, model_name=config.get("model_name"))
    names = _names(file, d_in, d_out, d_sae)
    return FolderLayer(
        kind=LayerKind.CROSS_LAYER_TRANSCODER,
        support=SupportRule.JUMPRELU,
        point=point,
        sites_out=written_sites(architecture, out, slots - layer, label),
        d_in=d_in,
        d_out=d_out,
        d_sae=d_sae,
        normalisation="none",
        has_skip=SKIP in names,
        claimed_l0=_claimed_l0(config),
        files=((file, names),),
        config=config,
        build=partial(_build, file, names, layer),
        unread_bytes=file.entries["w_dec"].size // slots * layer,
    )


def _points(config: Mapping[str, Any], layer: int, architecture: Architecture) -> tuple[HookPoint, Site]:
    """Take the hooks from the configuration, for this layer; without one the input is not settled."""
    named = config.get("hf_hook_point_in") or f"blocks.{layer}.hook_mlp_in"
    written = config.get("hf_hook_point_out") or f"blocks.{layer}.hook_mlp_out"
    point, out = (
        resolve_hook(architecture, _LAYER_IN_HOOK.sub(str(layer), hook)) for hook in (named, written)
    )
    return point, out.site


def _names(file: TensorFile, d_in: int, d_out: int, d_sae: int) -> tuple[str, ...]:
    for name, size in (("b_enc", d_sae), ("threshold", d_sae), ("b_dec", d_out)):
        file.shape(name, size)
    names = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")
    if SKIP not in file.entries:
        return names
    file.shape(SKIP, d_in, d_out)
    return (*names, SKIP)


def _claimed_l0(config: Mapping[str, Any]) -> float | None:
    claimed = config.get("l0")
    return float(claimed) if isinstance(claimed, int | float) and claimed > 0 else None


def _build(
    file: TensorFile,
    names: tuple[str, ...],
    layer: int,
    info: ReplacementLayerInfo,
    device: torch.device | str,
) -> CrossLayerDictionary:
    tensors = {name: file.read(name, device, since=layer if name == "w_dec" else 0) for name in names}
    return CrossLayerDictionary(
        info=info,
        encoder=Encoder(
            W_enc=tensors["w_enc"],
            b_enc=tensors["b_enc"],
            support=Threshold(threshold=tensors["threshold"], clamped=False),
        ),
        W_dec=tensors["w_dec"],
        b_dec=tensors["b_dec"],
        W_skip=tensors[SKIP].T if SKIP in tensors else None,
    )

"""circuit-tracer's folder of per-layer transcoders: `config.yaml` and `layer_{i}.safetensors`.

Formulas follow circuit-tracer 0.5.0. Its JumpReLU is `x * (x > threshold)`, without a ReLU. Its TopK keeps
no trace in the weights, so that its own loader opens such a set with a ReLU; here `activation_function:
topk` and `k` in the configuration say so, and the file is refused if it could be either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trephine.domain.errors import BrokenReplacementError, UnsupportedReplacementError
from trephine.domain.replacements import LayerKind, ReplacementLayerInfo, SetFormat, SupportRule
from trephine.domain.sites import Site
from trephine.engine.models.architecture import Architecture
from trephine.engine.replacements.dictionary import DictionaryLayer
from trephine.engine.replacements.encoder import Encoder
from trephine.engine.replacements.formats.folders import (
    FolderLayer,
    FolderSet,
    check_width,
    gather,
    read_config,
    setting,
)
from trephine.engine.replacements.formats.tensors import TensorFile, open_tensors
from trephine.engine.replacements.hooks import HookPoint, resolve_hook
from trephine.engine.replacements.support import SupportOf, Threshold, TopK

CONFIG = "config.yaml"
LAYER_FILE = re.compile(r"^layer_(\d+)\.safetensors$")
THRESHOLD = "activation_function.threshold"


def read_set(folder: Path, architecture: Architecture) -> FolderSet:
    """Describe a folder of per-layer transcoders without reading weights.

    Raises:
        BrokenReplacementError: If files contradict one another, the model, or are cut short.
        UnsupportedReplacementError: If a hook or activation function is not supported.
    """
    config = read_config(folder / CONFIG)
    layers = [
        _layer(path, int(found[1]), config, architecture)
        for path in sorted(folder.iterdir())
        if (found := LAYER_FILE.match(path.name))
    ]
    return gather(
        layers,
        format=SetFormat.CIRCUIT_TRACER,
        prepends_bos=begins_with_bos(config),
        model_name=config.get("model_name"),
    )


def begins_with_bos(config: Mapping[str, Any]) -> bool | None:
    """Return the set's own word on its contexts. The peer's files have none; sets fitted here do."""
    word = config.get("prepend_bos")
    return word if isinstance(word, bool) else None


def hook_points(
    architecture: Architecture, config: Mapping[str, Any], layer: int, file: str
) -> tuple[HookPoint, Site]:
    """Return the input and the output site that a configuration names, without their layer, for a layer.

    Raises:
        BrokenReplacementError: If the configuration does not name them.
        UnsupportedReplacementError: If they are not understood.
    """
    names = [setting(config, key, str, file) for key in ("feature_input_hook", "feature_output_hook")]
    point, out = (resolve_hook(architecture, f"blocks.{layer}.{name}") for name in names)
    return point, out.site


def _layer(path: Path, layer: int, config: Mapping[str, Any], architecture: Architecture) -> FolderLayer:
    file, label = open_tensors(path), f"{path.parent.name}/{path.name}"
    point, out = hook_points(architecture, config, layer, f"{path.parent.name}/{CONFIG}")
    d_sae, d_in = file.shape("W_enc", None, None)
    d_out = file.shape("W_dec", d_sae, None)[1]
    for site, width, tensor in ((point.site, d_in, "W_enc"), (out, d_out, "W_dec")):
        check_width(architecture, site, width, file=label, tensor=tensor, model_name=config.get("model_name"))
    names = _check_shapes(file, d_in, d_out, d_sae)
    k = _k(config, file, label)
    return FolderLayer(
        kind=LayerKind.SKIP_TRANSCODER if "W_skip" in names else LayerKind.TRANSCODER,
        support=_support_rule(file, k),
        point=point,
        sites_out=(out,),
        d_in=d_in,
        d_out=d_out,
        d_sae=d_sae,
        normalisation="none",
        has_skip="W_skip" in names,
        claimed_l0=None if k is None else float(k),
        files=((file, names),),
        config=config,
        build=partial(_build, file, names, k),
    )


def _check_shapes(file: TensorFile, d_in: int, d_out: int, d_sae: int) -> tuple[str, ...]:
    file.shape("b_enc", d_sae)
    file.shape("b_dec", d_out)
    names = ["W_enc", "W_dec", "b_enc", "b_dec"]
    for name, shape in ((THRESHOLD, (d_sae,)), ("W_skip", (d_out, d_in))):
        if name in file.entries:
            file.shape(name, *shape)
            names.append(name)
    return tuple(names)


def _k(config: Mapping[str, Any], file: TensorFile, label: str) -> int | None:
    """Return k where the configuration says TopK; refuse functions that are not known."""
    name = str(config.get("activation_function", "topk" if "k" in config else "")).lower()
    if name in ("topk", "top_k"):
        if THRESHOLD in file.entries:
            raise BrokenReplacementError(
                f"{label} has thresholds, but {CONFIG} says TopK; remove what is wrong", file=label
            )
        k: int = setting(config, "k", int, label)
        return k
    if name not in ("", "relu", "jumprelu", "jump_relu"):
        raise UnsupportedReplacementError(
            f"{label}: activation_function {name!r} is not supported; supported: relu, jump_relu, topk",
            file=label,
        )
    if name in ("jumprelu", "jump_relu") and THRESHOLD not in file.entries:
        raise BrokenReplacementError(
            f"{label} has no tensor {THRESHOLD}, but {CONFIG} says {name}; fetch it again", file=label
        )
    return None


def _support_rule(file: TensorFile, k: int | None) -> SupportRule:
    if k is not None:
        return SupportRule.TOPK
    return SupportRule.JUMPRELU if THRESHOLD in file.entries else SupportRule.RELU


def _build(
    file: TensorFile,
    names: tuple[str, ...],
    k: int | None,
    info: ReplacementLayerInfo,
    device: torch.device | str,
) -> DictionaryLayer:
    tensors = {name: file.read(name, device) for name in names}
    threshold = tensors.get(THRESHOLD)
    support: SupportOf = Threshold(threshold=threshold, clamped=threshold is None)
    return DictionaryLayer(
        info=info,
        encoder=Encoder(
            W_enc=tensors["W_enc"].T,
            b_enc=tensors["b_enc"],
            support=support if k is None else TopK(k=k, clamped=False),
        ),
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        W_skip=tensors.get("W_skip"),
    )

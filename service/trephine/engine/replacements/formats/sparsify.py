"""EleutherAI sparsify: a folder per module path, with `cfg.json` and `sae.safetensors`.

Formulas follow eai-sparsify 1.3. The folder's name is the hook: a transcoder reads that module's input and
writes its output, an SAE reads and writes its output. `W_dec` is `(num_latents, d_in)` as it stands, `W_skip`
acts as `x @ W_skip.T` on the raw input. `num_latents: 0` means `d_in * expansion_factor`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trephine.domain.errors import BrokenReplacementError, UnsupportedReplacementError
from trephine.domain.replacements import LayerKind, ReplacementLayerInfo, SetFormat, SupportRule
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
from trephine.engine.replacements.hooks import resolve_hook
from trephine.engine.replacements.support import TopK

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def read_set(folders: Sequence[Path], architecture: Architecture) -> FolderSet:
    """Describe a set of sparsify folders without reading weights.

    Raises:
        BrokenReplacementError: If files contradict one another, the model, or are cut short.
        UnsupportedReplacementError: If an activation or a folder's module is not supported.
    """
    return gather([_layer(folder, architecture) for folder in folders], format=SetFormat.SPARSIFY)


def _layer(folder: Path, architecture: Architecture) -> FolderLayer:
    config, label = read_config(folder / CONFIG), f"{folder.name}/{CONFIG}"
    transcodes = bool(config.get("transcode", False))
    point = resolve_hook(architecture, f"{folder.name}.{'input' if transcodes else 'output'}")
    out = resolve_hook(architecture, f"{folder.name}.output").site
    file, k = open_tensors(folder / WEIGHTS), _k(config, label)
    d_in, d_sae = setting(config, "d_in", int, label), _latents(config, label)
    for site in (point.site, out):
        check_width(architecture, site, d_in, file=label, tensor="encoder.weight", model_name=None)
    names = _check_shapes(file, d_in, d_sae, has_skip=bool(config.get("skip_connection", False)))
    skips = "W_skip" in names
    kind = LayerKind.SAE
    if transcodes:
        kind = LayerKind.SKIP_TRANSCODER if skips else LayerKind.TRANSCODER
    return FolderLayer(
        kind=kind,
        support=SupportRule.TOPK,
        point=point,
        sites_out=(out,),
        d_in=d_in,
        d_out=d_in,
        d_sae=d_sae,
        normalisation="none",
        has_skip=skips,
        claimed_l0=float(k),
        files=((file, names),),
        config=config,
        build=partial(_build, file, names, k),
    )


def _k(config: Mapping[str, Any], label: str) -> int:
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise UnsupportedReplacementError(
            f"{label}: activation {activation!r} is not supported; supported: topk", file=label
        )
    k: int = setting(config, "k", int, label)
    return k


def _latents(config: Mapping[str, Any], label: str) -> int:
    stated = int(config.get("num_latents") or 0)
    width: int = setting(config, "d_in", int, label)
    return stated or width * int(setting(config, "expansion_factor", int, label))


def _check_shapes(file: TensorFile, d_in: int, d_sae: int, *, has_skip: bool) -> tuple[str, ...]:
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (d_sae, d_in),
        "encoder.bias": (d_sae,),
        "W_dec": (d_sae, d_in),
        "b_dec": (d_in,),
    }
    if has_skip:
        shapes["W_skip"] = (d_in, d_in)
    elif "W_skip" in file.entries:
        raise BrokenReplacementError(
            f"{file.path.parent.name}/{file.path.name} has a tensor W_skip, but {CONFIG} says that there is "
            "no skip connection; correct what is wrong",
            file=file.path.name,
            tensor="W_skip",
        )
    for name, shape in shapes.items():
        file.shape(name, *shape)
    return tuple(shapes)


def _build(
    file: TensorFile, names: tuple[str, ...], k: int, info: ReplacementLayerInfo, device: torch.device | str
) -> DictionaryLayer:
    tensors = {name: file.read(name, device) for name in names}
    return DictionaryLayer(
        info=info,
        encoder=Encoder(
            W_enc=tensors["encoder.weight"].T,
            b_enc=tensors["encoder.bias"],
            shift=tensors["b_dec"] if info.kind is LayerKind.SAE else None,
            support=TopK(k=k),
        ),
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        W_skip=tensors.get("W_skip"),
    )

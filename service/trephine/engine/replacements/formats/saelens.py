"""SAELens folders: `cfg.json` and `sae_weights.safetensors`, alone or one sub folder per layer.

Formulas follow sae-lens 6.54: JumpReLU is `relu(pre) * (pre > threshold)`; TopK with rescale multiplies
pre-activations by decoder norms before it selects and divides by them when it decodes; transcoders
subtract no `b_dec` and do not undo their normalisation; a skip path reads the raw input.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

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
)
from trephine.engine.replacements.formats.saelens_config import (
    ARCHITECTURES,
    CONFIG,
    SaeLensConfig,
    parse_config,
)
from trephine.engine.replacements.formats.saelens_model import centring_matters, reads_centred
from trephine.engine.replacements.formats.tensors import TensorFile, open_tensors
from trephine.engine.replacements.hooks import HookPoint, resolve_hook
from trephine.engine.replacements.normalisation import (
    UNNAMED_CENTRING,
    UNNAMED_FACTOR,
    WITHOUT_MEAN,
    Normalisation,
    NormalisationRule,
)
from trephine.engine.replacements.precision import wide
from trephine.engine.replacements.support import AbsTopK, SupportOf, Threshold, TopK

WEIGHTS = "sae_weights.safetensors"
FINETUNED = "finetuning_scaling_factor"


def read_set(folders: Sequence[Path], architecture: Architecture) -> FolderSet:
    """Describe a set of SAELens folders without reading weights.

    Raises:
        BrokenReplacementError: If files contradict one another, the model, or are cut short.
        UnsupportedReplacementError: If an architecture, option or hook is not supported.
    """
    configs = [parse_config(folder, read_config(folder / CONFIG)) for folder in folders]
    layers = [_layer(config, architecture) for config in configs]
    begins = {config.prepend_bos for config in configs} - {None}
    if len(begins) > 1:
        raise BrokenReplacementError(
            "some layers of the set were trained with BOS in front and some without; load them as two sets"
        )
    if len({config.trained_on for config in configs}) > 1:
        raise BrokenReplacementError(
            "the layers of the set were trained on different tokens (exclude_special_tokens, seqpos_slice in "
            "their metadata); load them as two sets"
        )
    return gather(
        layers,
        format=SetFormat.SAELENS,
        trained_on=configs[0].trained_on,
        prepends_bos=begins.pop() if begins else None,
        model_name=next((config.model_name for config in configs if config.model_name), None),
    )


def _layer(config: SaeLensConfig, architecture: Architecture) -> FolderLayer:
    file, traits = open_tensors(config.folder / WEIGHTS), ARCHITECTURES[config.architecture]
    point, out = _points(config, architecture)
    centred = reads_centred(config.model, architecture, point, out, traits.kind, config.label)
    unsaid = traits.kind is LayerKind.SAE and not config.model.named and centring_matters(architecture, point)
    further = WITHOUT_MEAN if centred else UNNAMED_CENTRING if unsaid else ""
    check_width(
        architecture,
        point.site,
        config.d_in,
        file=config.label,
        tensor="W_enc",
        model_name=config.model_name,
    )
    check_width(
        architecture, out.site, config.d_out, file=config.label, tensor="W_dec", model_name=config.model_name
    )
    names = _check_shapes(file, config)
    return FolderLayer(
        kind=traits.kind,
        support=traits.support,
        point=point,
        sites_out=(out.site,),
        d_in=config.d_in,
        d_out=config.d_out,
        d_sae=config.d_sae,
        normalisation=_described(config, further),
        has_skip="W_skip" in names,
        claimed_l0=config.l0 if config.k is None or config.l0 is not None else float(config.k),
        files=((file, names),),
        config=config.stored,
        build=partial(_build, file, config, centred),
    )


def _described(config: SaeLensConfig, further: str) -> str:
    lost = config.normalisation is NormalisationRule.EXPECTED_AVERAGE and config.norm_factor is None
    rule = UNNAMED_FACTOR if lost else config.normalisation.value
    return f"{rule}, {further}" if further else rule


def _points(config: SaeLensConfig, architecture: Architecture) -> tuple[HookPoint, HookPoint]:
    point = resolve_hook(architecture, config.hook)
    if ARCHITECTURES[config.architecture].kind is LayerKind.SAE:
        return point, point
    if config.hook_out is None:
        raise BrokenReplacementError(
            f"{config.label} is a transcoder that does not name its output hook (hook_name_out or "
            "hf_hook_name_out in its metadata); write it in",
            file=config.label,
        )
    out = resolve_hook(architecture, config.hook_out)
    if out.site.layer != point.site.layer:
        raise UnsupportedReplacementError(
            f"{config.label} reads layer {point.site.layer} and writes layer {out.site.layer}; a transcoder "
            "must write the layer that it reads",
            file=config.label,
        )
    return point, out


def _check_shapes(file: TensorFile, config: SaeLensConfig) -> tuple[str, ...]:
    d_in, d_out, d_sae = config.d_in, config.d_out, config.d_sae
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
    shapes |= {name: (d_sae,) for name in ARCHITECTURES[config.architecture].vectors}
    if ARCHITECTURES[config.architecture].has_skip:
        shapes["W_skip"] = (d_out, d_in)
    if config.finetuned:
        shapes[FINETUNED] = (d_sae,)
    for name, shape in shapes.items():
        file.shape(name, *shape)
    return tuple(shapes)


def _build(
    file: TensorFile,
    config: SaeLensConfig,
    centred: bool,
    info: ReplacementLayerInfo,
    device: torch.device | str,
) -> DictionaryLayer:
    tensors = {name: file.read(name, device) for name in _check_shapes(file, config)}
    norms = _decoder_norms(tensors["W_dec"]) if config.rescaled else None
    return DictionaryLayer(
        info=info,
        encoder=_encoder(config, tensors, norms, centred),
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        row_gain=tensors.get(FINETUNED) if norms is None else 1.0 / norms,
        W_skip=tensors.get("W_skip"),
    )


def _encoder(
    config: SaeLensConfig, tensors: dict[str, Tensor], norms: Tensor | None, centred: bool
) -> Encoder:
    gain, bias, support = _gate(config, tensors)
    if norms is not None and bias is not None:
        gain, bias = norms, bias * norms
    return Encoder(
        W_enc=tensors["W_enc"],
        b_enc=bias,
        row_gain=gain,
        shift=tensors["b_dec"] if config.apply_b_dec_to_input else None,
        support=support,
        normalisation=Normalisation(
            rule=config.normalisation,
            undone=ARCHITECTURES[config.architecture].kind is LayerKind.SAE,
            factor=config.norm_factor or 1.0,
            without_mean=centred,
        ),
    )


def _gate(
    config: SaeLensConfig, tensors: dict[str, Tensor]
) -> tuple[Tensor | None, Tensor | None, SupportOf]:
    """Return factor and bias of the encoder, and the support rule.

    A gated SAE is a JumpReLU in units of its magnitude path, `m = e^r (x W) + b_mag`: its gate
    `x W + b_gate > 0` is `m > b_mag - e^r b_gate` (Rajamanoharan et al. 2024, section 3.2).
    """
    rule = ARCHITECTURES[config.architecture].support
    if rule is SupportRule.GATED:
        gain = wide(tensors["r_mag"]).exp()
        bias = wide(tensors["b_mag"])
        return gain, bias, Threshold(threshold=bias - gain * wide(tensors["b_gate"]))
    if rule in (SupportRule.TOPK, SupportRule.ABS_TOPK):
        k = config.k or 0
        return None, tensors["b_enc"], TopK(k=k) if rule is SupportRule.TOPK else AbsTopK(k=k)
    return None, tensors["b_enc"], Threshold(threshold=tensors.get("threshold"))


def _decoder_norms(W_dec: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(W_dec, dim=1, dtype=torch.promote_types(W_dec.dtype, torch.float32))
    # A feature that writes nothing is never selected; dividing by its norm must not make NaN.
    return norms.clamp_min(torch.finfo(norms.dtype).tiny)

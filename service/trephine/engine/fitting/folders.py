"""Writing fitted sets: SAELens folders per layer, or circuit-tracer's folder of a cross-layer transcoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trephine.domain.fitting import FitRecipe, FittedLayer
from trephine.domain.replacements import LayerKind
from trephine.domain.sites import Site, SiteKind
from trephine.engine.fitting.dictionary import Dictionary, Folded
from trephine.engine.fitting.files import publish, write_tensors, write_text
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import hook_point
from trephine.engine.models.staging import full_disk_refused

_LENS = {
    SiteKind.RESID_PRE: "hook_resid_pre",
    SiteKind.RESID_MID: "hook_resid_mid",
    SiteKind.RESID_POST: "hook_resid_post",
    SiteKind.ATTN_OUT: "hook_attn_out",
    SiteKind.ATTN_Z: "attn.hook_z",
    SiteKind.MLP_IN: "mlp.hook_in",
    SiteKind.MLP_OUT: "hook_mlp_out",
}
_ARCHITECTURES = {
    LayerKind.SAE: "jumprelu",
    LayerKind.TRANSCODER: "jumprelu_transcoder",
    LayerKind.SKIP_TRANSCODER: "jumprelu_skip_transcoder",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a set says about where it comes from."""

    model_name: str
    recipe: FitRecipe
    prepends_bos: bool
    tokens: int
    corpus: str


def write_set(
    folder: Path,
    hosted: HostedModel,
    dictionaries: Sequence[Dictionary],
    measured: Sequence[FittedLayer],
    origin: Origin,
) -> None:
    """Write every layer; each is whole or absent.

    Raises:
        DiskFullError: If there is no room.
    """
    if origin.recipe.kind is LayerKind.CROSS_LAYER_TRANSCODER:
        _write_clt(folder, dictionaries, origin)
        return
    for dictionary, figures in zip(dictionaries, measured, strict=True):
        _write_saelens(folder / f"layer_{dictionary.place.layer}", hosted, dictionary, figures, origin)


def lens_name(site: Site) -> str:
    """Return TransformerLens' name of a site."""
    return f"blocks.{site.layer}.{_LENS[site.kind]}"


def hugging_face_name(hosted: HostedModel, site: Site) -> str:
    """Return the path of the module that a site hangs on, with `.input` or `.output`."""
    module, reads_input = hook_point(hosted.architecture.blocks[site.layer], site.kind)
    return f"{_path(hosted.model, module)}.{'input' if reads_input else 'output'}"


def _path(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, found in model.named_modules() if found is module)


def _write_saelens(
    target: Path, hosted: HostedModel, dictionary: Dictionary, figures: FittedLayer, origin: Origin
) -> None:
    beside = target.with_name(f".{target.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    with full_disk_refused():
        beside.mkdir(parents=True)
        write_tensors(beside / "sae_weights.safetensors", _saelens_tensors(dictionary.fold()))
        config = _saelens_config(hosted, dictionary, figures, origin)
        write_text(beside / "cfg.json", json.dumps(config, indent=1))
        shutil.rmtree(target, ignore_errors=True)
        publish(beside, target)


def _saelens_tensors(folded: Folded) -> dict[str, Tensor]:
    tensors = {
        "W_enc": folded.W_enc,
        "b_enc": folded.b_enc,
        "W_dec": folded.W_dec[0],
        "b_dec": folded.b_dec,
        "threshold": folded.threshold,
    }
    return tensors if folded.W_skip is None else tensors | {"W_skip": folded.W_skip}


def _saelens_config(
    hosted: HostedModel, dictionary: Dictionary, figures: FittedLayer, origin: Origin
) -> dict[str, Any]:
    place, recipe = dictionary.place, origin.recipe
    metadata: dict[str, Any] = {
        "model_name": origin.model_name,
        "hook_name": lens_name(place.site_in),
        "hf_hook_name": hugging_face_name(hosted, place.site_in),
        "context_size": recipe.context_tokens,
        "prepend_bos": origin.prepends_bos,
        "training_tokens": origin.tokens,
        "dataset_path": origin.corpus,
        "l0": figures.l0,
        "fvu": figures.fvu,
    }
    config: dict[str, Any] = {
        "architecture": _ARCHITECTURES[recipe.kind],
        "d_in": dictionary.W_enc.shape[0],
        "d_sae": dictionary.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
    }
    if recipe.kind is not LayerKind.SAE:
        config["d_out"] = dictionary.W_dec.shape[2]
        metadata["hook_name_out"] = lens_name(place.sites_out[0])
        metadata["hf_hook_name_out"] = hugging_face_name(hosted, place.sites_out[0])
    return config


def _write_clt(folder: Path, dictionaries: Sequence[Dictionary], origin: Origin) -> None:
    for dictionary in dictionaries:
        layer, folded = dictionary.place.layer, dictionary.fold()
        write_tensors(
            folder / f"W_enc_{layer}.safetensors",
            {
                f"W_enc_{layer}": folded.W_enc.T,
                f"b_enc_{layer}": folded.b_enc,
                f"b_dec_{layer}": folded.b_dec,
                f"threshold_{layer}": folded.threshold,
            },
        )
        decoders = folded.W_dec.transpose(0, 1)  # (d_sae, n_targets, d_model)
        write_tensors(folder / f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": decoders})
    config = {
        "model_name": origin.model_name,
        "model_kind": "cross_layer_transcoder",
        "feature_input_hook": _LENS[SiteKind.MLP_IN],
        "feature_output_hook": _LENS[SiteKind.MLP_OUT],
        "prepend_bos": origin.prepends_bos,
        "training_tokens": origin.tokens,
    }
    # JSON strings and booleans are YAML as well.
    lines = "".join(f"{name}: {json.dumps(value)}\n" for name, value in config.items())
    write_text(folder / "config.yaml", lines)

"""Replacement sets for tiny models, as SAELens writes them: cheap, deterministic, better than the mean.

Encoders are random and unit-norm, thresholds are quantiles that give the wanted L0, decoders are least
squares on the activations of a random text. `b_dec`, `b_enc` and decoder norms are nothing round.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.builders import WORDS
from trephine.domain.sites import Site, SiteKind
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import site_width, touching

LENS_HOOKS = {
    SiteKind.RESID_PRE: "hook_resid_pre",
    SiteKind.RESID_MID: "hook_resid_mid",
    SiteKind.RESID_POST: "hook_resid_post",
    SiteKind.ATTN_Z: "attn.hook_z",
    SiteKind.ATTN_OUT: "hook_attn_out",
    SiteKind.MLP_IN: "mlp.hook_in",
    SiteKind.NEURONS: "mlp.hook_post",
    SiteKind.MLP_OUT: "hook_mlp_out",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedWeights:
    """One dictionary in SAELens' orientation, float32."""

    W_enc: Tensor
    """`(d_in, d_sae)`."""
    b_enc: Tensor
    threshold: Tensor
    W_dec: Tensor
    """`(d_sae, d_out)`."""
    b_dec: Tensor
    l0: float
    """Active features per position on the text that it was fitted on, position 0 left out."""


def write_transcoders(
    hosted: HostedModel,
    folder: Path,
    *,
    layers: Sequence[int] | None = None,
    d_sae: int = 96,
    l0: float = 12.0,
    seed: int = 0,
    skip: bool = False,
    prepend_bos: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write one JumpReLU transcoder per layer, MLP input to MLP output, into `folder/layer_L`.

    Args:
        hosted: The model whose activations it is fitted on.
        folder: Made if absent.
        layers: Layers to cover; None for all.
        d_sae: Features per layer.
        l0: Wanted active features per position; the configuration claims what came out.
        seed: Of encoders and text.
        skip: Give each a skip path beside its features.
        prepend_bos: What the set says of its contexts.
        dtype: Of `W_enc`, `W_dec` and `W_skip`.
    """
    for layer in range(hosted.architecture.n_layers) if layers is None else layers:
        ends = Site(kind=SiteKind.MLP_IN, layer=layer), Site(kind=SiteKind.MLP_OUT, layer=layer)
        x, y = activations(hosted, ends, seed=seed)
        skipped = 0.3 * _random((y.shape[1], x.shape[1]), seed + 7) / x.shape[1] ** 0.5 if skip else None
        fitted = fit(x, y if skipped is None else y - x @ skipped.T, d_sae=d_sae, l0=l0, seed=seed + layer)
        tensors = _tensors(fitted, dtype) | ({} if skipped is None else {"W_skip": skipped.to(dtype)})
        name = "jumprelu_skip_transcoder" if skip else "jumprelu_transcoder"
        config = _config(hosted, name, *ends, fitted, prepend_bos=prepend_bos)
        write_saelens(folder / f"layer_{layer}", config, tensors)
    return folder


def write_saes(
    hosted: HostedModel,
    folder: Path,
    *,
    kind: SiteKind = SiteKind.RESID_POST,
    layers: Sequence[int] | None = None,
    d_sae: int = 96,
    l0: float = 12.0,
    seed: int = 0,
    prepend_bos: bool = False,
    centred: bool = False,
) -> Path:
    """Write one JumpReLU SAE per layer at a site into `folder/layer_L`; inputs lose `b_dec` first.

    `centred`: fitted on activations without their mean over dimensions, as in a model of centred weights.
    """
    for layer in range(hosted.architecture.n_layers) if layers is None else layers:
        site = Site(kind=kind, layer=layer)
        (x,) = activations(hosted, (site,), seed=seed)
        x = x - x.mean(-1, keepdim=True) if centred else x
        fitted = fit(x, x, d_sae=d_sae, l0=l0, seed=seed + layer)
        # The shift by b_dec is taken back in b_enc, so that the fitted thresholds stay right.
        tensors = _tensors(fitted, torch.float32)
        tensors["b_enc"] = fitted.b_enc + fitted.b_dec @ fitted.W_enc
        config = _config(hosted, "jumprelu", site, site, fitted, prepend_bos=prepend_bos)
        write_saelens(folder / f"layer_{layer}", config | {"apply_b_dec_to_input": True}, tensors)
    return folder


def write_saelens(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Write one SAELens folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "sae_weights.safetensors")
    return folder


def fit(x: Tensor, y: Tensor, *, d_sae: int, l0: float, seed: int) -> FittedWeights:
    """Fit a dictionary from `x (n, d_in)` to `y (n, d_out)`: random encoder, least-squares decoder."""
    d_in = x.shape[1]
    centred, spread = x.mean(0), x.std(0) + 1e-3
    W_enc = torch.nn.functional.normalize(_random((d_in, d_sae), seed + 1), dim=0) / spread[:, None]
    b_enc = 0.1 * _random((d_sae,), seed + 2) + 1.0 - centred @ W_enc
    pre = x @ W_enc + b_enc
    threshold = pre.quantile(1.0 - l0 / d_sae, dim=0).clamp_min(0.05)
    features = torch.where(pre > threshold, pre, 0.0)
    design = torch.cat([features, torch.ones(len(x), 1)], dim=1).double()
    ridge = 1e-2 * len(x) * torch.eye(design.shape[1], dtype=torch.float64)
    ridge[-1, -1] = 0.0
    solved = torch.linalg.solve(design.T @ design + ridge, design.T @ y.double()).float()
    return FittedWeights(
        W_enc=W_enc,
        b_enc=b_enc,
        threshold=threshold,
        W_dec=solved[:-1],
        b_dec=solved[-1],
        l0=float((features > 0).sum(1).float().mean()),
    )


def activations(
    hosted: HostedModel, sites: Sequence[Site], *, rows: int = 64, length: int = 33, seed: int = 0
) -> list[Tensor]:
    """Run a random text; return `(rows * (length - 1), width)` per site, position 0 left out."""
    kept: dict[Site, Tensor] = {}

    def keeper(site: Site) -> Any:
        def keep(live: Tensor) -> None:
            kept[site] = (
                live[:, 1:].detach().float().reshape(-1, site_width(hosted.architecture, site)).clone()
            )

        return keep

    with torch.inference_mode(), touching(hosted.architecture, {site: keeper(site) for site in sites}):
        hosted.model(input_ids=random_text(hosted, rows=rows, length=length, seed=seed))
    return [kept[site].clone() for site in sites]


def random_text(hosted: HostedModel, *, rows: int, length: int, seed: int) -> Tensor:
    """Draw token ids `(rows, length)`: words and letters of the tiny tokenizer, half and half."""
    letters = "abcdefghijklmnopqrstuvwxyz .,\n"
    words = [hosted.tokenizer.convert_tokens_to_ids(word.replace(" ", "Ġ")) for word in WORDS]
    bytes_ = [hosted.tokenizer(letter).input_ids[0] for letter in letters]
    known = torch.tensor(words + bytes_)
    generator = torch.Generator().manual_seed(seed)
    return known[torch.randint(len(known), (rows, length), generator=generator)]


def _config(
    hosted: HostedModel, name: str, site: Site, out: Site, fitted: FittedWeights, *, prepend_bos: bool
) -> dict[str, Any]:
    metadata = {
        "model_name": hosted.info.name,
        "hook_name": f"blocks.{site.layer}.{LENS_HOOKS[site.kind]}",
        "prepend_bos": prepend_bos,
        "l0": fitted.l0,
    }
    sizes = {"d_in": fitted.W_enc.shape[0], "d_sae": fitted.W_enc.shape[1]}
    if "transcoder" in name:
        metadata["hook_name_out"] = f"blocks.{out.layer}.{LENS_HOOKS[out.kind]}"
        sizes["d_out"] = fitted.W_dec.shape[1]
    return {
        "architecture": name,
        **sizes,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
    }


def _tensors(fitted: FittedWeights, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        "W_enc": fitted.W_enc.to(dtype),
        "b_enc": fitted.b_enc,
        "threshold": fitted.threshold,
        "W_dec": fitted.W_dec.to(dtype),
        "b_dec": fitted.b_dec,
    }


def _random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

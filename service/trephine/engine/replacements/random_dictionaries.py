"""Controls for a replacement layer: dictionaries of the same size and L0 in which nothing was learned.

Random and half-random dictionaries nearly tie trained ones on several benchmarks (`frontier.md`, E), so a
figure means little beside none of them. All three are fitted in closed form, on text of their own:

- random: random unit encoder on standardised inputs and random unit decoder; one factor per feature by least
  squares, s = argmin |Y - F diag(s) D|^2, from (F'F * DD') s = diag(F'Y D') (elementwise product).
- frozen encoder: the same random encoder; the decoder by ridge regression of Y on F.
- frozen decoder: the random decoder stays. Matching pursuit writes every Y as L0 of its rows with positive
  factors; ridge regression from the inputs to these codes is the encoder; factors as for the random one.

A feature fires on the L0 / d_sae share of the fit tokens where its pre-activation is largest (frozen decoder:
where pursuit used it as often). Ridge strengths are chosen on the last fifth of the tokens. Layers with a
skip path get one, by ridge regression, and their features explain the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from trephine.domain.replacements import Dictionary, LayerKind, ReplacementLayerInfo, SupportRule
from trephine.engine.replacements.dictionary import DictionaryLayer
from trephine.engine.replacements.encoder import Encoder
from trephine.engine.replacements.support import Threshold

_RIDGES = (1e-2, 1e-1, 1.0)
"""Ridge strengths tried, relative to the mean of the Gram matrix's diagonal."""
_VALIDATION = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """One layer's fit: centred targets, standardised inputs, and how they were made so."""

    x: Tensor
    """`(n, d_in)`, zero mean and unit variance per dimension."""
    y: Tensor
    """`(n, d_out)`, zero mean, what the skip path explains taken off."""
    x_mean: Tensor
    x_scale: Tensor
    y_mean: Tensor
    skip: Tensor | None
    """`(d_out, d_in)` on raw inputs."""
    count: int
    """Fit tokens on which one feature fires, on average."""
    k: int
    """Active features per token, at least 1."""
    d_sae: int
    train: int
    """Tokens that are fitted on; those after them choose the ridge strength."""


@torch.inference_mode()
def fit_control(
    info: ReplacementLayerInfo, x: Tensor, y: Tensor, *, l0: float, kind: Dictionary, seed: int
) -> DictionaryLayer:
    """Fit a control of one layer.

    Args:
        info: The layer that it stands beside; a cross-layer one gets a control that writes its own layer.
        x: Inputs `(n, d_in)`, position 0 left out.
        y: Targets `(n, d_out)`.
        l0: Active features per position that it shall have.
        kind: Which.
        seed: Of the random halves; the layer's number is mixed in.
    """
    task = _task(info, x.float(), y.float(), l0)
    generator = torch.Generator().manual_seed(seed * 10_007 + info.layer)
    encoder = normalize(torch.randn(info.d_in, info.d_sae, generator=generator), dim=0).to(x.device)
    decoder = normalize(torch.randn(info.d_sae, info.d_out, generator=generator), dim=1).to(x.device)
    if kind is Dictionary.FROZEN_DECODER:
        return _frozen_decoder(info, task, decoder)
    pre = task.x @ encoder
    threshold = _threshold(pre, torch.full((info.d_sae,), task.count))
    features = torch.where(pre > threshold, pre, 0.0)
    if kind is Dictionary.RANDOM:
        decoder = decoder * _scales(task, features, decoder)[:, None]
    else:
        decoder = _ridge(features, task.y, task.train)
    return _layer(info, task, encoder, threshold, features, decoder)


def control_bytes(infos: Sequence[ReplacementLayerInfo], kinds: Sequence[Dictionary]) -> int:
    """Return what the controls of some layers take, resident all at once."""
    return len(kinds) * sum(2 * info.d_sae * (info.d_in + info.d_out + 4) for info in infos)


def _task(info: ReplacementLayerInfo, x: Tensor, y: Tensor, l0: float) -> _Task:
    x_mean, x_scale = x.mean(0), x.std(0).clamp_min(1e-6)
    standard, y_mean, train = (x - x_mean) / x_scale, y.mean(0), round(len(x) * (1 - _VALIDATION))
    y, skip = y - y_mean, None
    if info.has_skip:
        linear = _ridge(standard, y, train)
        y, skip = y - standard @ linear, (linear / x_scale[:, None]).T
        y_mean = y_mean - x_mean @ skip.T
    k = max(1, round(l0))
    return _Task(
        x=standard,
        y=y,
        x_mean=x_mean,
        x_scale=x_scale,
        y_mean=y_mean,
        skip=skip,
        count=min(len(x) - 1, max(1, round(len(x) * l0 / info.d_sae))),
        k=min(k, info.d_sae),
        d_sae=info.d_sae,
        train=train,
    )


def _frozen_decoder(info: ReplacementLayerInfo, task: _Task, decoder: Tensor) -> DictionaryLayer:
    codes = pursue(task.y, decoder, task.k)
    encoder = _ridge(task.x, codes - codes.mean(0), task.train)
    pre = task.x @ encoder + codes.mean(0)
    threshold = _threshold(pre, (codes > 0).sum(0).clamp(1, len(pre) - 1).cpu())
    features = torch.where(pre > threshold, pre, 0.0)
    scaled = decoder * _scales(task, features, decoder)[:, None]
    return _layer(info, task, encoder, threshold, features, scaled, bias=codes.mean(0))


def pursue(y: Tensor, decoder: Tensor, k: int) -> Tensor:
    """Write every row of `y (n, d_out)` with k rows of a unit `decoder (d_sae, d_out)` and factors >= 0.

    Matching pursuit over the Gram matrix; returns codes `(n, d_sae)`.
    """
    gram = decoder @ decoder.T
    correlation = y @ decoder.T
    codes = torch.zeros_like(correlation)
    rows = torch.arange(len(y), device=y.device)
    for _ in range(k):
        value, chosen = correlation.max(1)
        value = value.clamp_min(0.0)
        codes[rows, chosen] += value
        correlation -= value[:, None] * gram[chosen]
    return codes


def _threshold(pre: Tensor, counts: Tensor) -> Tensor:
    """Return per feature the value that exactly `counts` of its pre-activations exceed, at least 0."""
    kept = pre.topk(int(counts.max()) + 1, dim=0).values
    return kept.gather(0, counts[None].to(pre.device))[0].clamp_min(0.0)


def _ridge(features: Tensor, y: Tensor, train: int) -> Tensor:
    """Regress `y (n, m)` on `features (n, p)`, both about their means; return `(p, m)`.

    The strength is the one that does best on the rows after `train`.
    """
    centred = features - features[:train].mean(0)
    y = y - y[:train].mean(0)
    fit, held = centred[:train], centred[train:]
    small = train < fit.shape[1]  # then the n x n form is the smaller one
    gram = fit @ fit.T if small else fit.T @ fit
    right = y[:train] if small else fit.T @ y[:train]
    best, best_error = torch.zeros(fit.shape[1], y.shape[1], device=y.device), float("inf")
    for strength in _RIDGES:
        solved = _solve(gram, right, strength)
        if small:
            solved = fit.T @ solved
        error = float((y[train:] - held @ solved).square().sum())
        if error < best_error:
            best, best_error = solved, error
    return best


def _scales(task: _Task, features: Tensor, decoder: Tensor) -> Tensor:
    """Return one factor per feature `(d_sae,)` by least squares."""
    mean = features[: task.train].mean(0)
    fit, held = features[: task.train] - mean, features[task.train :] - mean
    gram = (fit.T @ fit) * (decoder @ decoder.T)
    right = ((fit.T @ task.y[: task.train]) * decoder).sum(1, keepdim=True)
    best, best_error = torch.zeros(task.d_sae, device=decoder.device), float("inf")
    for strength in _RIDGES:
        solved = _solve(gram, right, strength)[:, 0]
        error = float((task.y[task.train :] - held @ (decoder * solved[:, None])).square().sum())
        if error < best_error:
            best, best_error = solved, error
    return best


def _solve(gram: Tensor, right: Tensor, strength: float) -> Tensor:
    ridge = gram.clone()
    ridge.diagonal().add_(strength * float(gram.diagonal().mean()) + 1e-12)
    return torch.cholesky_solve(right, torch.linalg.cholesky(ridge))


def _layer(
    info: ReplacementLayerInfo,
    task: _Task,
    encoder: Tensor,
    threshold: Tensor,
    features: Tensor,
    decoder: Tensor,
    *,
    bias: Tensor | None = None,
) -> DictionaryLayer:
    """Assemble a layer that reads raw inputs."""
    W_enc = encoder / task.x_scale[:, None]
    b_enc = -task.x_mean @ W_enc if bias is None else bias - task.x_mean @ W_enc
    sparse = replace(
        info,
        kind=LayerKind.TRANSCODER if info.kind is LayerKind.CROSS_LAYER_TRANSCODER else info.kind,
        support=SupportRule.JUMPRELU,
        sites_out=info.sites_out[:1],
        normalisation="none",
        content_hash="",
    )
    return DictionaryLayer(
        info=sparse,
        encoder=Encoder(W_enc=_halved(W_enc), b_enc=b_enc, support=Threshold(threshold=threshold)),
        W_dec=_halved(decoder),
        b_dec=task.y_mean - features.mean(0) @ decoder,
        W_skip=task.skip,
    )


def _halved(weights: Tensor) -> Tensor:
    """Keep weights in half the memory where they fit; a rounding of 5e-4 is nothing to a control."""
    half = weights.half()
    return half if bool(torch.isfinite(half).all()) else weights

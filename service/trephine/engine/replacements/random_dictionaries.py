"""Controls for a replacement layer: dictionaries of the same size and L0 in which nothing was learned.

Random and half-random dictionaries nearly tie trained ones on several benchmarks (`frontier.md`, E), so a
figure means little beside none of them. All three are fitted in closed form, on text of their own:

- random: random unit encoder on standardised inputs and random unit decoder; one factor per feature by least
  squares, s = argmin |Y - F diag(s) D|^2, from (F'F * DD') s = diag(F'Y D') (elementwise product).
- frozen encoder: the same random encoder; the decoder by ridge regression of Y on F.
- frozen decoder: the random decoder stays. Matching pursuit writes every Y as L0 of its rows with positive
  factors; ridge regression from the inputs to these codes is the encoder; factors as for the random one.

A feature fires on the L0 / d_sae share of the fit tokens where its pre-activation is largest (frozen decoder:
where pursuit used it as often). An encoder that was fitted reads the text it was fitted on with larger
pre-activations than any other, so that a threshold from there would let a quarter too few features fire
elsewhere: thresholds, and the factors behind them, are taken from pre-activations of encoders that were each
fitted without the fifth of the tokens that it reads. Ridge strengths are chosen on the last fifth of the
tokens. Layers with a skip path get one, by ridge regression, and their features explain the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

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
_CACHED_ROWS = 32
"""Rows that pursuit takes at once on a CPU."""


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


class LayerControls:
    """The controls of one layer. What they have in common is computed once.

    Args:
        info: The layer that they stand beside; a cross-layer one gets controls that write its own layer.
        x: Inputs `(n, d_in)`, position 0 left out.
        y: Targets `(n, d_out)`.
        l0: Active features per position that they shall have.
        seed: Of the random halves; the layer's number is mixed in.
    """

    def __init__(self, info: ReplacementLayerInfo, x: Tensor, y: Tensor, *, l0: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed * 10_007 + info.layer)
        encoder = normalize(torch.randn(info.d_in, info.d_sae, generator=generator), dim=0)
        decoder = normalize(torch.randn(info.d_sae, info.d_out, generator=generator), dim=1)
        self._info = info
        self._encoder, self._decoder = encoder.to(x.device), decoder.to(x.device)
        with torch.inference_mode():
            self._task = _task(info, x.float(), y.float(), l0)

    @torch.inference_mode()
    def fit(self, kind: Dictionary) -> DictionaryLayer:
        """Fit one of them; the first of those with a random encoder computes its features."""
        if kind is Dictionary.FROZEN_DECODER:
            return _frozen_decoder(self._info, self._task, self._decoder)
        threshold, regression = self._encoded
        if kind is Dictionary.RANDOM:
            decoder = self._decoder * regression.scales(self._decoder)[:, None]
        else:
            decoder = regression.ridge()
        return _layer(self._info, self._task, self._encoder, threshold, regression.mean, decoder)

    @cached_property
    def _encoded(self) -> tuple[Tensor, _Regression]:
        """Thresholds of the random encoder `(d_sae,)`, and the regression on its features."""
        pre = self._task.x @ self._encoder
        threshold = _threshold(pre, torch.full((self._info.d_sae,), self._task.count))
        features = pre.where(pre > threshold, 0.0)
        return threshold, _Regression(features, self._task.y, self._task.train)


def control_bytes(infos: Sequence[ReplacementLayerInfo], kinds: Sequence[Dictionary]) -> int:
    """Return what the controls of some layers take, resident all at once."""
    return len(kinds) * sum(2 * info.d_sae * (info.d_in + info.d_out + 4) for info in infos)


def _task(info: ReplacementLayerInfo, x: Tensor, y: Tensor, l0: float) -> _Task:
    x_mean, x_scale = x.mean(0), x.std(0).clamp_min(1e-6)
    standard, y_mean, train = (x - x_mean) / x_scale, y.mean(0), round(len(x) * (1 - _VALIDATION))
    y, skip = y - y_mean, None
    if info.has_skip:
        linear = _Regression(standard, y, train).ridge()
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
    bias = codes.mean(0)
    fitted = _Regression(task.x, codes - bias, task.train)
    encoder = fitted.ridge()
    pre = _unseen(task.x, codes - bias, fitted.strength) + bias
    threshold = _threshold(pre, (codes > 0).sum(0).clamp(1, len(pre) - 1).cpu())
    regression = _Regression(pre.where(pre > threshold, 0.0), task.y, task.train)
    scaled = decoder * regression.scales(decoder)[:, None]
    return _layer(info, task, encoder, threshold, regression.mean, scaled, bias=bias)


def _unseen(x: Tensor, y: Tensor, strength: float) -> Tensor:
    """Predict every fifth of `y (n, m)` from `x (n, p)` by a ridge regression on the other four."""
    found = torch.empty_like(y)
    for fold in torch.arange(len(x), device=x.device).chunk(round(1 / _VALIDATION)):
        first, behind = int(fold[0]), int(fold[-1]) + 1
        others = torch.cat([x[:first], x[behind:]]), torch.cat([y[:first], y[behind:]])
        found[first:behind] = x[first:behind] @ _Regression(*others, len(others[0])).solved(strength)
    return found


def pursue(y: Tensor, decoder: Tensor, k: int) -> Tensor:
    """Write every row of `y (n, d_out)` with k rows of a unit `decoder (d_sae, d_out)` and factors >= 0.

    Matching pursuit over the Gram matrix; returns codes `(n, d_sae)`. A slice of rows at a time, all k steps:
    their correlations then stay in the processor's cache.
    """
    gram = decoder @ decoder.T
    return torch.cat([_pursued(rows @ decoder.T, gram, k) for rows in y.split(_rows_at_once(y))])


def _pursued(correlation: Tensor, gram: Tensor, k: int) -> Tensor:
    """Take k steps from the correlations `(rows, d_sae)` of what is written, which are used up."""
    codes = torch.zeros_like(correlation)
    for _ in range(k):
        value, chosen = correlation.max(1, keepdim=True)
        value.clamp_(min=0.0)
        codes.scatter_add_(1, chosen, value)
        correlation.addcmul_(gram[chosen[:, 0]], value, value=-1.0)
    return codes


def _rows_at_once(y: Tensor) -> int:
    return _CACHED_ROWS if y.device.type == "cpu" else len(y)


def _threshold(pre: Tensor, counts: Tensor) -> Tensor:
    """Return per feature the value that exactly `counts` of its pre-activations exceed, at least 0."""
    kept = pre.topk(int(counts.max()) + 1, dim=0).values
    return kept.gather(0, counts[None].to(pre.device))[0].clamp_min(0.0)


class _Regression:
    """Least squares of `y (n, m)` on `features (n, p)`, both about the means of the rows that are fitted on.

    The strength of the ridge is the one that does best on the rows after `train`. Normal equations are set
    up once, however many systems are solved with them.
    """

    def __init__(self, features: Tensor, y: Tensor, train: int) -> None:
        self.mean = features.mean(0)
        """`(p,)`, over all rows."""
        centred, y_mean = features - features[:train].mean(0), y[:train].mean(0)
        self._fit, self._held = centred[:train], centred[train:]
        self._y, self._held_y = y[:train] - y_mean, y[train:]
        self._y_mean = y_mean
        self.strength = _RIDGES[0]
        """The one that did best in the last fit."""

    @cached_property
    def _gram(self) -> Tensor:
        """`(p, p)`."""
        return self._fit.T @ self._fit

    @cached_property
    def _right(self) -> Tensor:
        """`(p, m)`."""
        return self._fit.T @ self._y

    def ridge(self) -> Tensor:
        """Return the matrix `(p, m)` of the best strength."""
        return self._best(self._ridges(_RIDGES), self._held_y - self._y_mean)

    def solved(self, strength: float) -> Tensor:
        """Return the matrix `(p, m)` of one strength."""
        return next(self._ridges([strength]))

    def _ridges(self, strengths: Sequence[float]) -> Iterator[Tensor]:
        """Solve for every strength; with fewer rows than features the n x n form is the smaller one."""
        if len(self._fit) < self._fit.shape[1]:
            gram = self._fit @ self._fit.T
            return (self._fit.T @ solved for solved in _solutions(gram, self._y, strengths))
        return _solutions(self._gram, self._right, strengths)

    def scales(self, decoder: Tensor) -> Tensor:
        """Return one factor `(p,)` for each unit row of a decoder `(p, m)` that stays; `y` has mean 0."""
        gram = self._gram * (decoder @ decoder.T)
        right = (self._right * decoder).sum(1, keepdim=True)
        found = self._best((decoder * solved for solved in _solutions(gram, right, _RIDGES)), self._held_y)
        return (found * decoder).sum(1)

    def _best(self, candidates: Iterable[Tensor], held_y: Tensor) -> Tensor:
        """Return the `(p, m)` that does best on `held_y`, the rows after `train`; zeros if none is finite."""
        best, least = torch.zeros_like(self._right), inf
        for strength, candidate in zip(_RIDGES, candidates, strict=True):
            error = float((held_y - self._held @ candidate).square_().sum())
            if error < least:
                best, least, self.strength = candidate, error, strength
        return best


def _solutions(gram: Tensor, right: Tensor, strengths: Sequence[float]) -> Iterator[Tensor]:
    """Solve `(gram + strength) w = right` for every strength."""
    diagonal = gram.diagonal().clone()
    for strength in strengths:
        ridge = gram.clone()
        ridge.diagonal().copy_(diagonal + strength * diagonal.mean() + 1e-12)
        yield torch.cholesky_solve(right, torch.linalg.cholesky(ridge))


def _layer(
    info: ReplacementLayerInfo,
    task: _Task,
    encoder: Tensor,
    threshold: Tensor,
    mean: Tensor,
    decoder: Tensor,
    *,
    bias: Tensor | None = None,
) -> DictionaryLayer:
    """Assemble a layer that reads raw inputs; `mean` is that of its features on the text it was fitted on."""
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
        b_dec=task.y_mean - mean @ decoder,
        W_skip=task.skip,
    )


def _halved(weights: Tensor) -> Tensor:
    """Keep weights in half the memory where they fit; a rounding of 5e-4 is nothing to a control."""
    half = weights.half()
    return half if bool(torch.isfinite(half).all()) else weights

"""What is in reach of any weights, where a family cannot carry a graft exactly: a bound to hold fits against.

Without biases a gate asks on which side of a hyperplane *through the origin* a token lies, and the feature
asks for one beside it: the best of the former is fitted on some five thousand tokens, those that are measured
among them, and the feature is ablated where that one says that it fires. Behind a norm (Gemma-2) the answer
to every token has one size: the nearest one that the norm can give stands there in place of the module's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.unit.engine.weights.folders import MEASURED, Windows, windows
from trephine.domain.interventions import FeatureTarget, Intervention
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.engine.divergence import kl_divergence
from trephine.engine.hosted import HostedModel
from trephine.engine.quanta import finish
from trephine.engine.replacements.sets import opened
from trephine.engine.retain import windows_logits
from trephine.engine.weights.capture import captured, stacked
from trephine.engine.weights.postnorm import nearest

MANY = windows(100, seed=99)
"""What the best hyperplane is fitted on, besides the measured windows: too many to be learnt by heart."""
_STEPS, _RIDGE = 60, 1e-9


@torch.inference_mode()
def reach(hosted: HostedModel, edit: tuple[Intervention, ...]) -> float:
    """Return the share of an ablation's KL that is carried where the module answers as well as it can.

    Args:
        hosted: A family whose MLP has a norm behind it, or no biases.
        edit: The ablation of one threshold feature of an MLP's transcoder.
    """
    target = edit[0].target
    if not isinstance(target, FeatureTarget):
        raise TypeError("the reach of an edit of something else than a feature is not known")
    feature, block = target.feature, hosted.architecture.blocks[target.feature.layer]
    plain, intervened = (windows_logits(hosted, MEASURED, each) for each in ((), edit))
    norm = block.mlp_post_norm
    written = _written(hosted, block.mlp.module if norm is None else norm.module)
    p, _, decoder = _read(hosted, feature, MEASURED)
    chosen = (_inputs(hosted, feature, MEASURED) @ _best_row(hosted, feature) > 0)[:, None]
    answers = torch.where(chosen, written - p[:, None] * decoder, written)
    if norm is not None:
        gain = norm.gain.to(torch.float64)
        answers = torch.where(chosen, gain * nearest(gain, answers), written)
    with _answering(block.mlp.module if norm is None else norm.module, answers):
        reached = windows_logits(hosted, MEASURED, ())
    left, moved = (
        torch.cat([kl_divergence(p, q) for p, q in zip(intervened, other, strict=True)]).mean()
        for other in (reached, plain)
    )
    return 1 - float(left / moved)


def _inputs(hosted: HostedModel, feature: FeatureRef, texts: Windows) -> Tensor:
    """Return what the feature reads, float64 `(n, d_in)`."""
    site = Site(kind=SiteKind.MLP_IN, layer=feature.layer)
    return stacked(finish(captured(hosted, texts, [site], ()))[site]).double()


def _read(hosted: HostedModel, feature: FeatureRef, texts: Windows) -> tuple[Tensor, Tensor, Tensor]:
    """Return a feature's pre-activations `(n,)`, where it fires, and its decoder `(d_out,)`, float64."""
    x = _inputs(hosted, feature, texts)
    with opened(hosted, feature.replacement, [feature.layer]) as layers:
        layer: Any = layers[feature.layer]
        fires = layer.encode(x.float()).activations[:, feature.index] > 0
        encoder = layer.encoder
        p = x @ encoder.W_enc[:, feature.index].double() + float(encoder.b_enc[feature.index])
        return p, fires, layer.W_dec[feature.index].double()


def _best_row(hosted: HostedModel, feature: FeatureRef) -> Tensor:
    """Fit the hyperplane through the origin that tells best where a feature fires: logistic, by Newton."""
    texts = [*MANY, *MEASURED]
    x, (_, fires, _) = _inputs(hosted, feature, texts), _read(hosted, feature, texts)
    row, goal = torch.zeros(x.shape[1], dtype=torch.float64), fires.double()
    for _ in range(_STEPS):
        answer = torch.sigmoid(x @ row)
        bend = (x * (answer * (1 - answer))[:, None]).T @ x
        bend.diagonal().add_(_RIDGE * len(x))
        row = row - torch.linalg.solve(bend, x.T @ (answer - goal))
    return row


def _written(hosted: HostedModel, module: nn.Module) -> Tensor:
    """Return what a module answers to the measured windows, float64 `(n, d_out)`."""
    answers: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _given, answer: answers.append(answer.double()))
    try:
        windows_logits(hosted, MEASURED, ())
    finally:
        handle.remove()
    return torch.cat([answer.flatten(0, 1) for answer in answers])


@contextmanager
def _answering(module: nn.Module, answers: Tensor) -> Iterator[None]:
    """Let a module answer so, row by row of all windows in order."""
    rows = iter(answers)

    def replaced(_module: nn.Module, _given: Any, answer: Tensor) -> Tensor:
        taken = [next(rows) for _ in range(answer.flatten(0, 1).shape[0])]
        return torch.stack(taken).reshape(answer.shape).to(answer.dtype)

    handle = module.register_forward_hook(replaced)
    try:
        yield
    finally:
        handle.remove()

"""What is in reach of any weights, where a family cannot carry a graft exactly: a bound to hold fits against.

Without biases a gate asks on which side of a hyperplane *through the origin* a token lies, and a feature with
a jump asks for one beside it: the best of the former is fitted on some six thousand tokens, five times what
an export calibrates on, and the feature jumps where that one says so. A bend asks for no side: what is wanted
next to it is next to nothing. Behind a norm (Gemma-2) the answer to every token has one size: the nearest one
that the norm can give stands there in place of the module's. All of it is carried out while the model runs,
in whatever it computes in, so that the bound of bfloat16 holds the rounding that any folder would have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.unit.engine.exporting import edit_of
from tests.unit.engine.weights.folders import MEASURED, Windows, windows
from trephine.domain.interventions import Intervention
from trephine.domain.sites import Site, SiteKind
from trephine.engine.models.architecture import Norm
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.retain import windows_logits
from trephine.engine.weights.capture import captured, stacked
from trephine.engine.weights.grafting import read_feature
from trephine.engine.weights.mlp import has_biases
from trephine.engine.weights.operations import sort_operations
from trephine.engine.weights.piecewise import Knot
from trephine.engine.weights.postnorm import nearest
from trephine.engine.weights.units import Feature

MANY = windows(120, seed=99)
"""What the best hyperplane is fitted on: other windows than the measured ones, and too many to be learnt by
heart."""
_STEPS, _RIDGE, _SETTLED = 60, 1e-9, 1e-4


@torch.inference_mode()
def reach(hosted: HostedModel, edit: tuple[Intervention, ...]) -> float:
    """Return the share of an edit's KL that is carried where the modules answer as well as they can.

    Args:
        hosted: A family whose MLP has a norm behind it, or no biases.
        edit: Of threshold features of an MLP's transcoder.
    """
    plain, intervened = (windows_logits(hosted, MEASURED, each) for each in ((), edit))
    best = best_answers(hosted, hosted, edit, MEASURED)
    left, moved = (
        torch.cat([kl_divergence(p, q) for p, q in zip(intervened, other, strict=True)]).mean()
        for other in (best, plain)
    )
    return 1 - float(left / moved)


def best_answers(
    hosted: HostedModel, served: HostedModel, edit: tuple[Intervention, ...], texts: Windows
) -> list[Tensor]:
    """Return a model's logits per window where its modules answer as well as any weights let them.

    Args:
        hosted: The model whose features' sides the hyperplanes are to tell.
        served: The same weights, computing in what they are served in.
        edit: Of threshold features.
        texts: To answer.
    """
    features: dict[int, list[Feature]] = {}
    for op in sort_operations(hosted, edit_of(hosted, *edit).interventions).grafts:
        features.setdefault(op.feature.layer, []).append(read_feature(hosted, op))
    sides = {} if has_biases(hosted) else _inputs(hosted, features, MANY, edit)
    with ExitStack() as stack:
        for layer, alike in features.items():
            best = [_Best(each, _rows(each, sides.get(layer))) for each in alike]
            stack.enter_context(_answering(served, layer, best))
        return windows_logits(served, texts, ())


def _inputs(
    hosted: HostedModel,
    features: Mapping[int, Sequence[Feature]],
    texts: Windows,
    edit: tuple[Intervention, ...],
) -> dict[int, Tensor]:
    """Return what layers with a jump in one of their features read, float64 `(n, d_in)`."""
    layers = [n for n, alike in features.items() if any(k.jump for f in alike for k in f.difference.knots)]
    if not layers:
        return {}
    sites = {layer: Site(kind=SiteKind.MLP_IN, layer=layer) for layer in layers}
    read = finish(captured(hosted, texts, list(sites.values()), edit))
    return {layer: stacked(read[site]).double() for layer, site in sites.items()}


@dataclass(frozen=True, slots=True)
class _Best:
    """A feature, and per knot the row that says which side of it a token is on; None: the feature itself."""

    feature: Feature
    rows: tuple[Tensor | None, ...]

    def amount(self, x: Tensor) -> Tensor:
        """Return what is added to the feature's activation, `(n,)`."""
        p = x @ self.feature.w + self.feature.b
        total = torch.full_like(p, self.feature.difference.constant)
        for knot, row in zip(self.feature.difference.knots, self.rows, strict=True):
            beyond = p > knot.place if row is None else x @ row > 0
            total = total + beyond * (knot.jump + knot.bend * (p - knot.place))
        return total


def _rows(feature: Feature, x: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(
        _best_row(feature, x, knot) if knot.jump and x is not None else None
        for knot in feature.difference.knots
    )


def _best_row(feature: Feature, x: Tensor, knot: Knot) -> Tensor:
    """Fit the hyperplane through the origin that tells best what lies beyond a knot: logistic, by Newton."""
    goal = (x @ feature.w + feature.b > knot.place).double()
    row = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(_STEPS):
        answer = torch.sigmoid(x @ row)
        bend = (x * (answer * (1 - answer))[:, None]).T @ x
        bend.diagonal().add_(_RIDGE * len(x))
        step = torch.linalg.solve(bend, x.T @ (answer - goal))
        row = row - step
        if float(step.norm()) < _SETTLED * float(row.norm()):
            break
    return row


@contextmanager
def _answering(served: HostedModel, layer: int, best: Sequence[_Best]) -> Iterator[None]:
    """Let a layer's MLP, and the norm behind it, answer so."""
    block = served.architecture.blocks[layer]
    norm, module = block.mlp_post_norm, block.mlp.module
    changes: list[Tensor] = []

    def written(_module: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> Tensor | None:
        x = given[0].flatten(0, -2).double()
        added = sum((each.amount(x)[:, None] * each.feature.d for each in best), torch.zeros(1))
        if norm is not None:
            changes.append(added)
            return None
        return (answer.double() + added.reshape(answer.shape)).to(answer.dtype)

    def rescaled(_module: nn.Module, _given: Any, answer: Tensor) -> Tensor:
        return _nearest_to(norm, answer, changes.pop())

    hooks = [module.register_forward_hook(written)]
    if norm is not None:
        hooks.append(norm.module.register_forward_hook(rescaled))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _nearest_to(norm: Norm | None, answer: Tensor, added: Tensor) -> Tensor:
    """Return what comes nearest, of what the norm can answer, to its answer and what is to be added."""
    if norm is None:
        raise ValueError("there is no norm behind this MLP")
    rows, gain = answer.flatten(0, -2).double(), norm.gain.to(torch.float64)
    found = torch.where(added.any(1, keepdim=True), gain * nearest(gain, rows + added), rows)
    return found.reshape(answer.shape).to(answer.dtype)

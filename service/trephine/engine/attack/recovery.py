"""The recovery attack: small perturbations of the residual stream that bring a behaviour back.

Every attacked token has a perturbation of its own for every goal, where the residual stream enters the edited
layers, so that all that the MLP leaves unexplained passes it on. It is orthogonal to what the edited features
read, and its norm is held to a share of the residual's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trephine.domain.removal import AttackFigure
from trephine.engine.attack.answers import Prefixes
from trephine.engine.attack.behaviour import Behaviour, share_of_kl
from trephine.engine.attack.intervals import figure

_PACE = 0.4
"""Of the radius, about how far one step of the optimiser goes at first."""


def recovery(
    model: Any,
    windows: Sequence[Sequence[int]],
    target: Behaviour,
    layers: Sequence[int],
    read: Tensor,
    budgets: Sequence[float],
    *,
    steps: int,
    seed: int,
    say: Callable[[int, int], None],
    until_decided: bool = False,
) -> list[AttackFigure]:
    """Attack all tokens and goals together, budget by budget.

    Each begins with the best that the one before found: what a small perturbation brings back, a larger norm
    allows as well, and steps that are larger with it may pass it by.

    Args:
        model: The edited model, frozen.
        windows: Its contexts.
        target: The behaviours on the attacked tokens.
        layers: Where perturbations enter; they share the budget.
        read: What they must not touch, orthonormal, `(k, d_model)`.
        budgets: Norms over the residual's, ascending.
        steps: Of the optimiser, per budget.
        seed: Of the resampling.
        say: Told of every step.
        until_decided: Stop at the first budget that brings the behaviour back.
    """
    n_goals, n_tokens = len(target.goals), len(target.tokens)
    with torch.no_grad():
        rows = Prefixes(model, windows, target.tokens * n_goals)
        norms = torch.stack([rows.residual(layer).norm(dim=-1) for layer in layers], 1)
    goals = torch.cat(target.goals)
    found: list[AttackFigure] = []
    begun: Tensor | None = None
    for number, budget in enumerate(budgets):
        radii = budget * norms / len(layers) ** 0.5
        told = partial(_told, say, number, steps, len(budgets))
        attack = _Attack(rows, layers, read, radii, begun)
        logits = attack.optimised(goals, steps, told)
        begun = attack.best
        shares = share_of_kl(goals, target.edited.repeat(n_goals, 1), logits).view(n_goals, n_tokens)
        found.append(figure("recovery", budget, shares[0], shares[1:], target.tokens, seed=seed))
        if until_decided and found[-1].succeeded:
            break
    return found


def _told(say: Callable[[int, int], None], number: int, steps: int, budgets: int, done: int) -> None:
    say(number * steps + done, budgets * steps)


class _Attack:
    """Perturbations of one budget."""

    def __init__(
        self,
        rows: Prefixes,
        layers: Sequence[int],
        read: Tensor,
        radii: Tensor,
        begun: Tensor | None = None,
    ) -> None:
        """Begin.

        Args:
            rows: The attacked tokens, once per goal.
            layers: Where perturbations enter.
            read: What they must not touch.
            radii: Their largest norms, `(n_rows, n_layers)`.
            begun: Perturbations within them, `(n_rows, n_layers, d_model)`; None: none at all.
        """
        self._rows, self._layers, self._read, self._radii = rows, list(layers), read, radii
        width = rows.residual(self._layers[0]).shape[-1]
        self.best = torch.zeros(*radii.shape, width) if begun is None else begun
        """What brought back most, `(n_rows, n_layers, d_model)`."""
        self._free = (self.best / radii[..., None].clamp_min(1e-12)).requires_grad_()

    def optimised(self, goals: Tensor, steps: int, say: Callable[[int], None]) -> Tensor:
        """Minimise KL(goal || answer) per row; return each row's best answer, `(n_rows, d_vocab)`.

        NaN where a row diverged: its best answer until then is that of an attack that was cut short.
        """
        pace = _PACE / self._free.shape[-1] ** 0.5
        optimiser = torch.optim.Adam([self._free], lr=pace)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1), eta_min=0.1 * pace)
        wanted = torch.log_softmax(goals, -1)
        best, answers = torch.full((len(goals),), torch.inf), goals
        lost = torch.zeros(len(goals), dtype=torch.bool)
        for step in range(steps + 1):
            logits = self._rows.logits(self._perturb, self._layers)
            loss = functional.kl_div(
                torch.log_softmax(logits, -1), wanted, log_target=True, reduction="none"
            ).sum(-1)
            better = loss.detach() < best
            lost |= ~loss.detach().isfinite()
            answers = logits.detach() if step == 0 else torch.where(better[:, None], logits.detach(), answers)
            best = torch.minimum(best, loss.detach())
            self.best = torch.where(better[:, None, None], self.perturbations().detach(), self.best)
            say(step)
            if step == steps:
                break
            optimiser.zero_grad()
            loss.sum().backward()
            optimiser.step()
            schedule.step()
        return answers.masked_fill(lost[:, None], torch.nan)

    def _perturb(self, layer: int, x: Tensor) -> Tensor:
        """Add to `x (n_rows, 1, d_model)`."""
        place = self._layers.index(layer)
        return x + self.perturbations()[:, place, None, :]

    def perturbations(self) -> Tensor:
        """Return what is added, `(n_rows, n_layers, d_model)`: off the read directions, within the radii."""
        free = self._free - (self._free @ self._read.T) @ self._read
        inside = free / free.norm(dim=-1, keepdim=True).clamp_min(1.0)
        return inside * self._radii[..., None]

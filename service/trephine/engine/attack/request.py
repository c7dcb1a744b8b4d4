"""What the attacker is asked, and its defaults. Crosses a process boundary as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from trephine.domain.removal import FEWEST_STEPS

BUDGETS = (0.01, 0.03, 0.1)
"""Norms of a position's perturbation over the norm of the residual stream there."""
RECOVERY_STEPS = 20
UNRELATED = 3
"""Unrelated behaviours of every attack, each a random rotation of the ablated one."""
TRAINING_STEPS = FEWEST_STEPS
RANK = 8
"""Of the trained low-rank updates of every linear module."""
LEARNING_RATE = 1e-3
MOST_TOKENS = 16
"""Attacked tokens; as many more are trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRequest:
    """One export to attack."""

    exported: str
    parent: str
    directions: str
    """safetensors file: `read`, float32 `(k, d_model)`, directions that perturbations must not touch."""
    layers: tuple[int, ...]
    """Perturbed where the residual stream enters them."""
    windows: tuple[tuple[int, ...], ...]
    """Equally long."""
    firing: tuple[tuple[bool, ...], ...]
    """Per window, where the edit acts."""
    attention: str
    threads: int
    budgets: tuple[float, ...] = BUDGETS
    recovery_steps: int = RECOVERY_STEPS
    training_steps: int = TRAINING_STEPS
    unrelated: int = UNRELATED
    most_tokens: int = MOST_TOKENS
    seed: int = 0
    until_decided: bool = False
    """Stop at the first attack that brings the behaviour back, weakest first; no other changes the word."""

"""The ablated behaviour on the tokens where the edit acts, unrelated ones of its size, and how much is back.

A behaviour is the step from the edited model's answer to a goal: the original's, or an unrelated one.
Unrelated goals keep the step's geometry: the difference of final hidden states is turned by one random
rotation for all tokens, so that lengths, mutual angles and the dependence on context stay, and is scaled per
token to the same KL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trephine.domain.removal import LEAST_CONTEXTS
from trephine.engine.attack.answers import Token
from trephine.engine.runs.divergence import kl_divergence

LEAST_KL = 1e-4
"""Nats; where an edit moves the answer less, there is nothing of the behaviour."""
_ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """Answers on some tokens, `(n_tokens, d_vocab)` each."""

    tokens: tuple[Token, ...]
    edited: Tensor
    goals: tuple[Tensor, ...]
    """The original's answers, then those of the unrelated behaviours."""

    @property
    def effect(self) -> Tensor:
        """KL(original || edited), nats, `(n_tokens,)`."""
        return kl_divergence(self.goals[0], self.edited)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Of one model on one window."""

    logits: Tensor
    """`(n_pos, d_vocab)`."""
    hidden: Tensor
    """What the unembedding reads, `(n_pos, d_model)`."""


def answers(model: Any, window: Sequence[int]) -> Answers:
    """Run a window."""
    seen: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, given: seen.append(given[0][0])
    )
    try:
        logits = model(torch.tensor([list(window)]), use_cache=False).logits[0].float()
    finally:
        handle.remove()
    return Answers(logits=logits, hidden=seen[0].float())


def choose(
    effects: Sequence[Tensor], firing: Sequence[Sequence[bool]], windows: Sequence[int], most: int
) -> tuple[Token, ...]:
    """Choose the tokens of some windows on which the edit acts most, at most `most`, position 0 left out.

    An interval over contexts says nothing of one window's tokens, be they the strongest: the strongest token
    of each of the first few windows is always among them, as many as a decision needs.
    """
    found = [
        (float(effects[number][position]), Token(window=number, position=position))
        for number in windows
        for position in range(1, len(firing[number]))
        if firing[number][position] and float(effects[number][position]) >= LEAST_KL
    ]
    found.sort(key=lambda pair: -pair[0])
    ranked = [token for _, token in found]
    foremost = list({token.window: token for token in reversed(ranked)}.values())
    spread = sorted(foremost, key=ranked.index)[:LEAST_CONTEXTS]
    chosen = set([*spread, *(token for token in ranked if token not in spread)][:most])
    return tuple(token for token in ranked if token in chosen)


def behaviour(
    tokens: tuple[Token, ...],
    original: Sequence[Answers],
    edited: Sequence[Answers],
    unembed: Tensor,
    *,
    unrelated: int,
    seed: int,
) -> Behaviour:
    """Collect goals.

    Args:
        tokens: At least one.
        original: Per window.
        edited: Per window.
        unembed: `(d_vocab, d_model)`.
        unrelated: How many unrelated behaviours.
        seed: Of the rotations.
    """
    start, goal = (torch.stack([a[t.window].logits[t.position] for t in tokens]) for a in (edited, original))
    step = torch.stack([(original[t.window].hidden - edited[t.window].hidden)[t.position] for t in tokens])
    draw = torch.Generator().manual_seed(seed)
    size = kl_divergence(goal, start).float()
    goals = [goal]
    for _ in range(unrelated):
        turned = step @ _rotation(step.shape[1], draw)
        goals.append(_sized(start, turned @ unembed.float().T, size))
    return Behaviour(tokens=tokens, edited=start, goals=tuple(goals))


def _rotation(width: int, draw: torch.Generator) -> Tensor:
    """Draw an orthogonal matrix, `(width, width)`, uniformly."""
    q, r = torch.linalg.qr(torch.randn(width, width, generator=draw))
    return q * r.diagonal().sign()


def _sized(start: Tensor, direction: Tensor, size: Tensor) -> Tensor:
    """Go along a direction from a start until KL(goal || start) is `size (n,)`, per row."""
    length = torch.ones(len(start), 1)
    for _ in range(_ROUNDS):
        # KL grows with the square of a small step.
        found = kl_divergence(start + length * direction, start).float().clamp_min(1e-12)
        length = length * (size / found).sqrt()[:, None].clamp(0.1, 10.0)
    return start + length * direction


# --- how much is back ----------------------------------------------------------------------------


def share_of_kl(goal: Tensor, start: Tensor, now: Tensor) -> Tensor:
    """Return 1 - KL(goal || now) / KL(goal || start) per token, at least -1, `(n_tokens,)`."""
    left = kl_divergence(goal, now) / kl_divergence(goal, start).clamp_min(1e-12)
    return (1 - left).clamp_min(-1.0)


def share_of_step(goal: Tensor, start: Tensor, now: Tensor) -> Tensor:
    """Return how far `now` has gone from `start` towards a goal, along that step alone, `(n_tokens,)`.

    In log-probabilities, under the goal's Fisher metric: 0 at the start, 1 at the goal. What training changes
    besides does not count. Held to [-1, 2].
    """
    p, log_goal = torch.softmax(goal, -1), torch.log_softmax(goal, -1)
    wanted, gone = (
        log_goal - torch.log_softmax(start, -1),
        torch.log_softmax(now, -1) - torch.log_softmax(start, -1),
    )
    wanted = wanted - (p * wanted).sum(-1, keepdim=True)
    return ((p * wanted * gone).sum(-1) / (p * wanted * wanted).sum(-1).clamp_min(1e-12)).clamp(-1.0, 2.0)

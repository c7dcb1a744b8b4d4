"""Intervals of shares over contexts: tokens of one window are no independent witnesses.

A percentile bootstrap of a handful is too narrow: over three unrelated behaviours or six contexts it holds
less than it says. So what resampling moves is widened for how few there are, as Student's t does for a mean
(Hesterberg 2015), for contexts and for behaviours each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trephine.domain.removal import AttackFigure, AttackKind, Interval
from trephine.engine.attack.answers import Token

_DRAWS = 2000
_TAIL = 0.025
_NORMAL = 1.960
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
)  # fmt: skip
"""Its 97.5 % quantile, of 1 to 15 degrees of freedom; of more the last is taken."""


def figure(
    kind: AttackKind,
    strength: float,
    returned: Tensor,
    unrelated: Tensor,
    tokens: Sequence[Token],
    *,
    seed: int,
) -> AttackFigure:
    """Summarise one attack.

    Args:
        kind: Which attack.
        strength: How strong.
        returned: Share of the behaviour that is back per token, `(n_tokens,)`.
        unrelated: The same of unrelated behaviours, `(n_unrelated, n_tokens)`.
        tokens: Where.
        seed: Of the resampling.
    """
    contexts = torch.tensor([token.window for token in tokens])
    returned, unrelated = returned.double(), unrelated.double()
    draw = torch.Generator().manual_seed(seed)
    weights = _weights(contexts, draw)
    # Unrelated behaviours are a sample as well: they are drawn anew with every sample of contexts.
    rows = torch.randint(len(unrelated), (_DRAWS, len(unrelated)), generator=draw)
    typical = unrelated.mean(0)
    # What depends on which behaviours were drawn, on the contexts that were drawn with them.
    drawn = widened(len(unrelated)) * ((unrelated[rows].mean(1) - typical) * weights).sum(1)

    def over_contexts(shares: Tensor) -> Tensor:
        return shares.mean() + widened(len(contexts.unique())) * (weights @ shares - shares.mean())

    return AttackFigure(
        kind=kind,
        strength=strength,
        returned=_interval(float(returned.mean()), over_contexts(returned)),
        unrelated=_interval(float(unrelated.mean()), over_contexts(typical) + drawn),
        excess=_interval(float((returned - typical).mean()), over_contexts(returned - typical) - drawn),
        unrelated_most=float(unrelated.mean(1).max()),
        unrelated_behaviours=len(unrelated),
        n_tokens=len(tokens),
        n_contexts=len(contexts.unique()),
    )


def widened(count: int) -> float:
    """Return by what factor an interval over so few is wider than resampling them says; 1 of one alone."""
    if count < 2:
        return 1.0
    student = _STUDENT[min(count - 1, len(_STUDENT)) - 1]
    return float(student / _NORMAL * (count / (count - 1)) ** 0.5)


def _weights(contexts: Tensor, draw: torch.Generator) -> Tensor:
    """Resample contexts with replacement; return the tokens' weights, `(_DRAWS, n_tokens)`."""
    _, place = contexts.unique(return_inverse=True)
    count = int(place.max()) + 1
    drawn = torch.randint(count, (_DRAWS, count), generator=draw)
    times = torch.zeros(_DRAWS, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones_like(drawn, dtype=torch.float64)
    )
    weights = times[:, place]
    return weights / weights.sum(1, keepdim=True)


def _interval(value: float, samples: Tensor) -> Interval:
    low, high = (float(samples.quantile(q)) for q in (_TAIL, 1 - _TAIL))
    return Interval(value=value, low=min(low, value), high=max(high, value))

"""Intervals of shares over contexts: tokens of one window are no independent witnesses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trephine.domain.removal import AttackFigure, AttackKind, Interval
from trephine.engine.attack.answers import Token

_DRAWS = 2000
_TAIL = 0.025


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
    own, others = weights @ returned, (unrelated[rows].mean(1) * weights).sum(1)
    return AttackFigure(
        kind=kind,
        strength=strength,
        returned=_interval(float(returned.mean()), own),
        unrelated=_interval(float(unrelated.mean()), others),
        excess=_interval(float(returned.mean() - unrelated.mean()), own - others),
        unrelated_most=float(unrelated.mean(1).max()),
        unrelated_behaviours=len(unrelated),
        n_tokens=len(tokens),
        n_contexts=len(contexts.unique()),
    )


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

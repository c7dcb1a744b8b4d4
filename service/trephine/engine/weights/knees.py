"""Next to a knot: captured tokens moved evenly over its neighbourhood, where gains and widths are judged.

What a jump gets wrong, it gets wrong on the few tokens whose pre-activation lies within rounding of the
threshold. A calibration text has a handful of them, and a search by their error alone takes what suits these
few. So every token of the neighbourhood is tried at several places in it, with its own rounding and its own
residue, and counts in parts: the pre-activation's density is taken for even there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_PLACES = 16
"""That each token near a knot is tried at."""
_NEAR = 0.25
"""Half the neighbourhood's width, over what the feature answers beyond the knot in the mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Tokens, some of them several times at other pre-activations."""

    rows: Tensor
    """int64 `(m,)`, which token."""
    shift: Tensor
    """float64 `(m,)`, by which its pre-activation is moved."""
    weight: Tensor
    """float64 `(m,)`; of all places of one token together 1."""


def unmoved(p: Tensor) -> Moved:
    """Take every token once, as it is."""
    return Moved(rows=torch.arange(len(p)), shift=torch.zeros_like(p), weight=torch.ones_like(p))


def moved_near(p: Tensor, place: float, scale: float) -> Moved:
    """Spread the tokens near a knot over its neighbourhood.

    Args:
        p: float64 `(n,)`, pre-activations.
        place: Of the knot.
        scale: Mean of what lies beyond it.
    """
    half = _NEAR * scale
    near = (p - place).abs() < half
    if not bool(near.any()):
        return unmoved(p)
    inside, outside = (mask.nonzero()[:, 0] for mask in (near, ~near))
    own = (p[inside] - place) / (2 * half) + 0.5  # in [0, 1)
    places = (own[:, None] + torch.arange(_PLACES, dtype=p.dtype) / _PLACES) % 1.0
    shift = place + half * (2 * places - 1) - p[inside][:, None]
    return Moved(
        rows=torch.cat([outside, inside.repeat_interleave(_PLACES)]),
        shift=torch.cat([torch.zeros_like(p[outside]), shift.flatten()]),
        weight=torch.cat([torch.ones_like(p[outside]), torch.full_like(shift.flatten(), 1 / _PLACES)]),
    )

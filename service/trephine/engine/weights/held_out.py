"""Windows of the calibration text that are kept back: what is fitted must not be the judge of the fit.

One window in four is kept back, and says what a fit leaves over; nothing else is done with it. What has to
be chosen (the strength of a ridge) is chosen on a part of the others, by fits on the rest of them, and then
fitted anew on all of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EVERY = 4
"""One window in so many is kept back; of the others, one in so many chooses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Windows by what they are for. Where they are too few, some serve as more than one."""

    fitting: tuple[int, ...]
    """To fit on while something is chosen."""
    choosing: tuple[int, ...]
    """To choose by."""
    taken: tuple[int, ...]
    """Both: to fit on in the end."""
    testing: tuple[int, ...]
    """To say how good it is."""

    @property
    def held_out(self) -> bool:
        """Whether what is tested on has been fitted on or chosen by nowhere."""
        return not set(self.testing) & set(self.taken)

    @property
    def kept(self) -> tuple[int, ...]:
        """Windows that nothing was fitted on or chosen by; empty: none were kept back."""
        return self.testing if self.held_out else ()

    @property
    def measure(self) -> str:
        """How an R^2 on what is tested on may be called."""
        if self.held_out:
            return "held-out R^2"
        return "R^2, on the very windows that were fitted, for the text has too few to keep one back:"


def split(count: int) -> Split:
    """Split windows: the fourth, the eighth and so on are kept back."""
    kept = tuple(number for number in range(count) if number % EVERY == EVERY - 1)
    taken = tuple(number for number in range(count) if number not in kept)
    choosing = taken[1::EVERY] or taken
    fitting = tuple(number for number in taken if number not in choosing) or taken
    return Split(fitting=fitting, choosing=choosing, taken=taken, testing=kept or taken)


def best_ridge(ridges: Sequence[float], scores: Sequence[float | None]) -> float:
    """Return the ridge that explains most where it is chosen, the weakest where several tie.

    Args:
        ridges: From the weakest to the strongest.
        scores: What is explained under each, on windows that choose. None: nothing is to change there, so
            that nothing is known; what acts so rarely has too few tokens to be trusted, and the strongest.
    """
    known = [(score, -place) for place, score in enumerate(scores) if score is not None]
    return ridges[-max(known)[1]] if known else ridges[-1]


def of_windows(lengths: Sequence[int], chosen: Sequence[int]) -> Tensor:
    """Return which tokens belong to chosen windows, bool `(n,)`, windows one after the other."""
    return torch.cat([torch.full((length,), number in set(chosen)) for number, length in enumerate(lengths)])

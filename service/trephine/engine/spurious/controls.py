"""Random features beside the removed ones: as many at every layer, of like use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trephine.domain.sites import FeatureRef
from trephine.engine.dataset_circuits.space import NodeSpace
from trephine.engine.spurious.effects import feature_of
from trephine.engine.spurious.judging import Candidate

_NEAREST = 20
"""A stand-in is drawn among so many features of its layer whose mean |contribution| is nearest."""


def matched_features(
    space: NodeSpace, removed: Sequence[Candidate], spurious: Sequence[Candidate], use: Tensor, seed: int
) -> list[FeatureRef]:
    """Draw one random feature for every removed one, all different, none of them judged spurious.

    Args:
        space: The features.
        removed: What is matched.
        spurious: What must not be drawn.
        use: Mean |contribution| `(n_features,)`.
        seed: Of the draw.
    """
    generator, taken = torch.Generator().manual_seed(seed), {one.node for one in (*removed, *spurious)}
    drawn: list[FeatureRef] = []
    for one in removed:
        place = int(space.split(torch.tensor([one.node]))[0])
        start, stop = space.offsets[place], space.offsets[place + 1]
        near = (use[start:stop] - use[one.node]).abs().argsort(stable=True) + start
        free = [node for node in near[: _NEAREST + len(taken)].tolist() if node not in taken][:_NEAREST]
        if not free:
            continue
        node = free[int(torch.randint(len(free), (1,), generator=generator))]
        taken.add(node)
        drawn.append(feature_of(space, node))
    return drawn

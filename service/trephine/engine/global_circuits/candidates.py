"""Which features edges are measured between: statistics of all pairs of all features would not fit anywhere.

Without a start those that write most, as many of every layer. From a start those that an edge of it could
come from or lead to, hop by hop, by what bounds an edge's share of its target: |V| rms(a) / rms(b).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.errors import NothingMatchedError
from trephine.engine.global_circuits.activity import Activity, reach_of, strengths
from trephine.engine.global_circuits.dictionaries import Chosen, FeatureSpace
from trephine.engine.global_circuits.readings import RunningWrites, chosen_encoders, folded_encoders
from trephine.engine.global_circuits.readouts import Readouts
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import opened

_FRONTIER = 32
"""Features that one hop starts from, those of the largest bound."""
_BRANCHES = 32
"""Features that one of them brings in, upwards and downwards each."""
_HOPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Eligible:
    """A space, how active its features are, and which of them are active enough."""

    space: FeatureSpace
    activity: Activity
    min_active: int

    @property
    def mask(self) -> Tensor:
        """Bool `(n_features,)`."""
        return self.activity.active >= self.min_active

    def require(self, features: Sequence[int]) -> None:
        """Refuse features that are not active enough to be measured.

        Raises:
            NothingMatchedError: Naming the feature.
        """
        for number, (feature, ref) in enumerate(
            zip(features, self.space.refs(torch.tensor(features, dtype=torch.int64)), strict=True)
        ):
            tokens = int(self.activity.active[feature])
            if tokens < self.min_active:
                raise NothingMatchedError(
                    f"feature {ref.replacement}:{ref.layer}:{ref.index} is active on {tokens} of "
                    f"{self.activity.tokens} training tokens, and edges are measured from {self.min_active} "
                    "on: give texts on which it is active, or lower min_active",
                    field=f"start_features[{number}]",
                )


def strongest(
    hosted: HostedModel, eligible: Eligible, budget: int
) -> Generator[Progress | None, None, Chosen]:
    """Choose the features that write most, as many of every layer as far as it has them.

    Raises:
        NothingMatchedError: If fewer than two layers have features that are active enough.
    """
    space = eligible.space
    strength = (yield from strengths(hosted, space, eligible.activity)).masked_fill(~eligible.mask, -1.0)
    counts = [int((space.part(strength, place) >= 0).sum()) for place in range(len(space.infos))]
    if sum(count > 0 for count in counts) < 2:
        raise NothingMatchedError(
            f"fewer than two layers have features that are active on {eligible.min_active} of the "
            f"{eligible.activity.tokens} training tokens that are read: give more texts, or lower min_active",
            field="training",
        )
    chosen = [
        space.part(strength, place).topk(count).indices + space.offsets[place]
        for place, count in enumerate(_dealt(counts, budget))
    ]
    return Chosen(space=space, features=torch.cat(chosen).sort().values)


def _dealt(counts: Sequence[int], budget: int) -> list[int]:
    """Deal a budget out evenly; what one layer does not have goes to the others."""
    given = [0] * len(counts)
    left = min(budget, sum(counts))
    while left:
        open_places = [place for place, count in enumerate(counts) if given[place] < count]
        share = max(1, left // len(open_places))
        for place in open_places:
            taken = min(share, counts[place] - given[place], left)
            given[place] += taken
            left -= taken
    return given


def grown(
    hosted: HostedModel, eligible: Eligible, start: Sequence[int], readouts: Readouts, budget: int
) -> Generator[Progress | None, None, Chosen]:
    """Choose what edges of the start, and of what they lead to, could come from or lead to.

    Raises:
        NothingMatchedError: If a feature of the start is not active enough, or nothing below a read-out is.
    """
    eligible.require(start)
    reached = torch.zeros(eligible.space.count, dtype=torch.float64)
    reached[list(start)] = 1.0
    if readouts.count:
        below = yield from _below_readouts(hosted, eligible, readouts)
        reached = torch.maximum(reached, _largest(below, budget // 2))
    if int((reached > 0).sum()) < 1:
        raise NothingMatchedError(
            "no feature below what the circuit is grown from is active on enough training tokens",
            field="training",
        )
    expanded = torch.zeros_like(reached, dtype=torch.bool)
    for hop in range(_HOPS):
        frontier = _frontier(reached, expanded)
        if not len(frontier) or int((reached > 0).sum()) >= budget:
            break
        yield Progress(stage="candidates", done=hop, total=_HOPS)
        expanded[frontier] = True
        bounds = yield from _bounds(hosted, eligible, Chosen(space=eligible.space, features=frontier))
        reached = torch.maximum(reached, _branches(bounds, reached[frontier]))
    kept = _largest(reached, budget)
    kept[list(start)] = 1.0
    return Chosen(space=eligible.space, features=kept.nonzero()[:, 0])


def _frontier(reached: Tensor, expanded: Tensor) -> Tensor:
    open_scores = reached.masked_fill(expanded, 0.0)
    best = open_scores.topk(min(_FRONTIER, len(open_scores)))
    return best.indices[best.values > 0].sort().values


def _branches(bounds: Tensor, scores: Tensor) -> Tensor:
    """Keep the largest `bounds (2, n_frontier, n_features)` of each, saturated, times how it is reached."""
    found = torch.zeros(bounds.shape[-1], dtype=torch.float64)
    for way in bounds:
        best = way.topk(min(_BRANCHES, way.shape[1]), dim=1)
        reached = best.values / (1 + best.values) * scores[:, None]
        found.scatter_reduce_(0, best.indices.flatten(), reached.flatten(), "amax")
    return found


def _largest(scores: Tensor, count: int) -> Tensor:
    """Set all but the largest to 0."""
    best = scores.topk(min(max(1, count), len(scores)))
    return torch.zeros_like(scores).scatter(0, best.indices, best.values)


def _below_readouts(
    hosted: HostedModel, eligible: Eligible, readouts: Readouts
) -> Generator[None, None, Tensor]:
    """Bound what each feature adds to any read-out, `(n_features,)`, 1 for the largest."""
    space, found = eligible.space, torch.zeros(eligible.space.count, dtype=torch.float64)
    for place, info in enumerate(space.infos):
        with opened(hosted, space.name, [info.layer]) as resident, torch.inference_mode():
            running = RunningWrites(resident[info.layer], list(range(info.d_sae)))
            for block in range(info.layer, hosted.info.n_layers):
                written = running.after(block)
                here = readouts.directions[readouts.boundary == block + 1]
                if len(here):
                    sizes = (written @ here.T.to(written.dtype)).abs().amax(1).double().cpu()
                    own = space.part(found, place)
                    own.copy_(torch.maximum(own, sizes))
        yield None
    found = found * eligible.activity.rms_written
    found = found.masked_fill(~eligible.mask, 0.0)
    return found / found.max().clamp_min(1e-30)


def _bounds(hosted: HostedModel, eligible: Eligible, frontier: Chosen) -> Generator[None, None, Tensor]:
    """Bound edges into the frontier and out of it, `(2, n_frontier, n_features)`; a layer a quantum."""
    space, activity = eligible.space, eligible.activity
    encoders, writes = chosen_encoders(hosted, frontier), {}
    for place, info in enumerate(space.infos):
        own = frontier.part(place)
        if own.stop > own.start:
            with opened(hosted, space.name, [info.layer]) as resident, torch.inference_mode():
                running = RunningWrites(resident[info.layer], frontier.indices(place))
                writes[place] = {
                    block + 1: running.after(block) for block in range(info.layer, space.layers[-1])
                }
        yield None
    out = torch.zeros(2, frontier.count, space.count, dtype=torch.float64)
    upwards, downwards = reach_of(activity)
    reads = activity.reads.to(encoders)
    for place, info in enumerate(space.infos):
        with opened(hosted, space.name, [info.layer]) as resident, torch.inference_mode():
            running = RunningWrites(resident[info.layer], list(range(info.d_sae)))
            for block in range(info.layer, space.layers[-1]):
                written = running.after(block)
                if block + 1 not in space.layers:
                    continue
                above = frontier.part(space.layers.index(block + 1))
                scaled = encoders[:, above] * reads[:, frontier.features[above], None]
                into = (scaled.sum(0) @ written.T).abs().double().cpu()
                space.part(out[0], place)[above] = into * downwards[frontier.features[above], None]
        yield None
        every = folded_encoders(hosted, space, place, slice(None))
        reading = (every * space.part(reads, place)[:, :, None]).sum(0)
        for source, by_block in writes.items():
            if info.layer in by_block:
                own = frontier.part(source)
                leaving = (by_block[info.layer] @ reading.T).abs().double().cpu()
                space.part(out[1], place)[own] = leaving * upwards[frontier.features[own], None]
        yield None
    out[0] *= upwards
    out[1] *= downwards
    return out.masked_fill_(~eligible.mask, 0.0)

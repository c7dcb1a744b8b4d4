"""Edges between candidates, and to tokens and logits, out of virtual weights and co-activation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.global_figures import EdgeWeighting
from trephine.engine.features.deembedding import token_embeddings
from trephine.engine.global_circuits.activity import Activity
from trephine.engine.global_circuits.coactivation import CoActivation, Ends
from trephine.engine.global_circuits.dictionaries import Chosen
from trephine.engine.global_circuits.readouts import Readouts, logit_directions
from trephine.engine.global_circuits.texts import HALVES
from trephine.engine.global_circuits.virtual import VirtualWeights
from trephine.engine.models.hosted import HostedModel

_TINY = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredEdges:
    """All edges between candidates. 0 where the two halves of the texts do not agree on a sign."""

    chosen: Chosen
    ends: Ends
    weight: Tensor
    """`(n, n)`, rows are sources; units of the target's activation."""
    halves: Tensor
    """`(2, n, n)`, the same in each half alone."""
    virtual: Tensor
    """`(n, n)`, virtual weights at the mean scale of the reader's norm."""
    unit: Tensor
    """`(n,)`, what a weight into each target is a share of: its own mean size, weighted alike."""
    from_tokens: Tensor
    """`(n_tokens, n)`, of tokens' embeddings; units of the target's activation."""
    to_logits: Tensor
    """`(n, n_logits)`, logits."""
    to_direction: Tensor
    """`(n,)`, units of the direction; 0 without one."""

    @property
    def shares(self) -> Tensor:
        """`(n, n)`, absolute weights as shares of what the target is."""
        return self.weight.abs() / self.unit.clamp_min(_TINY)

    @property
    def token_shares(self) -> Tensor:
        """`(n_tokens, n)`, the same of tokens."""
        return self.from_tokens.abs() / self.unit.clamp_min(_TINY)


def measured_edges(
    hosted: HostedModel,
    chosen: Chosen,
    ends: Ends,
    readouts: Readouts,
    virtual: VirtualWeights,
    activity: Activity,
    sums: CoActivation,
    weighting: EdgeWeighting,
) -> MeasuredEdges:
    """Weigh virtual weights by what the texts say of every pair."""
    rows = sums.rows[:, None].expand_as(sums.targets)
    below = sums.targets if weighting is EdgeWeighting.TWERA else rows
    between, reads = virtual.between.float(), activity.reads[:, chosen.features].to(virtual.between)
    halves = torch.stack([_weighed(between, sums.pairs[half], below[half]) for half in range(HALVES)])
    bare = token_embeddings(hosted.architecture)[
        list(ends.tokens)
    ].float() @ virtual.encoders.float().transpose(1, 2)
    tokens = [_weighed(bare, sums.tokens[half], below[half]) for half in range(HALVES)]
    logits = virtual.written.float() @ logit_directions(hosted, ends.logits).T.float()
    above = [_weighed(logits[None], sums.logits[half][None], sums.mass[half]) for half in range(HALVES)]
    return MeasuredEdges(
        chosen=chosen,
        ends=ends,
        weight=_agreed(_weighed(between, sums.pairs.sum(0), below.sum(0)), halves),
        halves=halves,
        virtual=(virtual.between * reads[:, None]).sum(0).float(),
        unit=sums.own.sum(0) / below.sum(0).clamp_min(_TINY),
        from_tokens=_agreed(_weighed(bare, sums.tokens.sum(0), below.sum(0)), torch.stack(tokens)),
        to_logits=_agreed(
            _weighed(logits[None], sums.logits.sum(0)[None], sums.mass.sum(0)), torch.stack(above)
        ),
        to_direction=_to_direction(readouts, virtual, sums),
    )


def _weighed(weights: Tensor, sums: Tensor, below: Tensor) -> Tensor:
    """Sum `(readouts, n, m)` of weights times sums over read-outs, over `below (m,)`."""
    return (weights * sums).sum(0) / below.clamp_min(_TINY)


def _agreed(whole: Tensor, halves: Tensor) -> Tensor:
    """Keep what has one sign in both halves: an edge of a few texts is no edge over many."""
    return whole.masked_fill(halves[0].sign() * halves[1].sign() <= 0, 0.0)


def _to_direction(readouts: Readouts, virtual: VirtualWeights, sums: CoActivation) -> Tensor:
    if readouts.direction is None:
        return torch.zeros_like(sums.written[0])
    each = virtual.below.float() @ readouts.directions[-1].to(virtual.below.device).float()
    halves = each * sums.written / sums.rows[:, None].clamp_min(1)
    return _agreed(each * sums.written.sum(0) / sums.rows.sum().clamp_min(1), halves)

"""Contributions of every active feature to a batch of targets: one sweep from the top down.

Adjoints of many targets go down the frozen network together, without autograd. At a site that the set
writes, active features score by small matrix products, one per position and many in one call: at a position
only its own active features are met, and no decoder is gathered per target (DESIGN 5.5).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.sites import Site, SiteKind
from trephine.engine.attribution.adjoints import attention_adjoint, new_adjoint
from trephine.engine.attribution.operators import FrozenLayer, FrozenOperators
from trephine.engine.attribution.places import AFTER, ATTENTION, BEFORE, EMBEDDING, MIDDLE, MLP, PER_BLOCK
from trephine.engine.graphs.actives import ActiveFeatures, ActiveLayer
from trephine.engine.graphs.skips import read_through_skip
from trephine.engine.graphs.targets import FeatureTargets
from trephine.engine.graphs.writes import Writes
from trephine.engine.models.hosted import HostedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSums:
    """Everything that enters a batch of targets, in their order."""

    features: Tensor
    """`(n_targets, n_cells)`."""
    errors: Tensor
    """`(n_targets, n_error_sites, n_pos)`."""
    tokens: Tensor
    """`(n_targets, n_pos)`."""
    bias: Tensor
    """`(n_targets,)`."""

    @property
    def mass(self) -> Tensor:
        """`(n_targets,)`, absolute sum over features, errors and tokens."""
        parts = (self.features, self.errors.flatten(1), self.tokens)
        return sum((torch.linalg.vector_norm(part, ord=1, dim=1) for part in parts), self.bias * 0)

    @property
    def total(self) -> Tensor:
        """`(n_targets,)`, the sum of all: the target's pre-activation, by law 3."""
        return self.features.sum(1) + self.errors.sum((1, 2)) + self.tokens.sum(1) + self.bias


class _Sweep:
    """State of one sweep: adjoints and running sums."""

    def __init__(
        self,
        hosted: HostedModel,
        operators: FrozenOperators,
        active: ActiveFeatures,
        targets: FeatureTargets,
        writes: Writes,
    ) -> None:
        self.writes = writes
        self.hosted, self.operators, self.active, self.targets = hosted, operators, active, targets
        self.adjoint = new_adjoint(operators.embedding, targets.position)  # (n_targets, n_cone, d_model)
        zeros, n_targets = operators.embedding.new_zeros, len(targets.position)
        self.features = zeros(n_targets, active.count)
        self.errors = zeros(n_targets, len(active.error_sites), operators.n_pos)
        self.tokens = zeros(n_targets, operators.n_pos)
        self.bias = targets.constant.clone()
        self._heights = [-place for place in targets.place.tolist()]  # ascending, for bisection

    @property
    def n_cone(self) -> int:
        """Positions of the longest causal cone."""
        return self.adjoint.shape[1]

    def above(self, place: int) -> int:
        """Targets that read above a place."""
        return bisect_left(self._heights, -place)

    def inject(self, place: int) -> None:
        """Start the targets that read at a place of the stream."""
        first, end = self.above(place), self.above(place - 1)
        if first < end:
            chosen = torch.arange(first, end)
            self.adjoint[chosen, self.targets.position[first:end]] += self.targets.adjoint[first:end]

    def meet(self, site: Site, n: int) -> None:
        """Score what was written at a site for the first n targets."""
        by_position = self.adjoint[:n].transpose(0, 1)  # (n_cone, n, d_model)
        self._score_rest(site, by_position)
        for layer in self.active.writers(site):
            if layer.count:
                self._score(layer, site, by_position)

    def _score_rest(self, site: Site, by_position: Tensor) -> None:
        """Score the error term and the constants of a site."""
        rest = self.active.rest[site][: self.n_cone]
        # Two rows times many columns: five times as fast as the other way around.
        found = torch.bmm(rest, by_position.transpose(1, 2))  # (n_cone, 2, n)
        n = found.shape[2]
        self.errors[:n, self.active.error_sites.index(site), : self.n_cone] = found[:, 0].T
        self.bias[:n] += found[:, 1].sum(0)

    def _score(self, layer: ActiveLayer, site: Site, by_position: Tensor) -> None:
        """Score one layer's features, a block of positions per product."""
        for block in self.writes.of(self.hosted, self.active, layer, site, by_position.dtype):
            if block.positions.start >= self.n_cone:
                break
            cells, found = block.score(by_position)
            scores = self.features[: by_position.shape[1], layer.start : layer.start + layer.count]
            scores[:, cells] += found

    def block(self, layer: FrozenLayer) -> bool:
        """Go down through one block; True if the stream was cut, so that nothing is left below."""
        number = layer.block.layer
        first = PER_BLOCK * number
        if self._cut(Site(kind=SiteKind.RESID_POST, layer=number), first + AFTER):
            return True
        self.inject(first + AFTER)
        routed = self._mlp(layer, self.above(first + MLP))
        if layer.block.parallel:
            self._attention(layer, self.above(first + MLP), first + ATTENTION)
            self._add(routed)
            self.inject(first + MLP)
        else:
            self._add(routed)
            self.inject(first + MLP)
            if self._cut(Site(kind=SiteKind.RESID_MID, layer=number), first + MIDDLE):
                return True
            self.inject(first + MIDDLE)
            self._attention(layer, self.above(first + ATTENTION), first + ATTENTION)
        self.inject(first + BEFORE)
        return self._cut(Site(kind=SiteKind.RESID_PRE, layer=number), first - 1)

    def _add(self, routed: Tensor | None) -> None:
        if routed is not None:
            self.adjoint[: len(routed)] += routed

    def _mlp(self, layer: FrozenLayer, n: int) -> Tensor | None:
        """Score what the MLP wrote; return what reaches the stream below through skip paths."""
        if not n:
            return None
        self.meet(Site(kind=SiteKind.MLP_OUT, layer=layer.block.layer), n)
        skip = read_through_skip(self.hosted, self.active, layer, self.adjoint[:n])
        if skip is None:
            return None
        if skip.bias is not None:
            self.bias[:n] += skip.bias.sum(1)
        return skip.adjoint

    def _attention(self, layer: FrozenLayer, n: int, place: int) -> None:
        """Add what attention reads; where a dictionary reconstructs its output, that is scored instead."""
        site = Site(kind=SiteKind.ATTN_OUT, layer=layer.block.layer)
        if n and site in self.active.errors:
            self.meet(site, n)
        elif n:
            attention_adjoint(layer, self.adjoint[:n], self.bias[:n], onto=self.adjoint[:n])
        self._attention_targets(layer, n, place)

    def _attention_targets(self, layer: FrozenLayer, n: int, place: int) -> None:
        """Start the targets that read attention's output: they see the stream through attention alone."""
        until = self.above(place - 1)
        if self.above(place) < until:
            self.inject(place)
            own = slice(n, until)
            self.adjoint[own] = attention_adjoint(layer, self.adjoint[own], self.bias[own])

    def _cut(self, site: Site, place: int) -> bool:
        """Score a dictionary on the stream for the targets above it; the sweep then ends."""
        if site not in self.active.errors:
            return False
        n = self.above(place)
        if not n:
            return False
        self.meet(site, n)
        return True

    def finish(self, cut: bool) -> FeatureSums:
        """Score the embeddings, unless the stream was cut above them, and return the sums."""
        if not cut and not self._cut(Site(kind=SiteKind.EMBED, layer=0), EMBEDDING):
            self.inject(EMBEDDING)
            embedding = self.operators.embedding[: self.n_cone, :, None]
            found = torch.bmm(self.adjoint.transpose(0, 1), embedding)  # (n_cone, n_targets, 1)
            self.tokens[:, : self.n_cone] = found[..., 0].T
        return FeatureSums(features=self.features, errors=self.errors, tokens=self.tokens, bias=self.bias)


def sweep_features(
    hosted: HostedModel,
    operators: FrozenOperators,
    active: ActiveFeatures,
    targets: FeatureTargets,
    writes: Writes | None = None,
) -> Generator[None, None, FeatureSums]:
    """Attribute a batch of targets to all sources, one block per quantum.

    Args:
        hosted: The model with its sets.
        operators: The frozen network.
        active: The prompt's active features.
        targets: From the top down, all between the same two cuts of the stream.
        writes: What the features write, shared by the sweeps of one prompt.
    """
    with torch.inference_mode():
        state = _Sweep(hosted, operators, active, targets, writes or Writes())
        state.inject(PER_BLOCK * len(operators.layers))
    cut = False
    for layer in reversed(operators.layers):
        if not cut and state.above(PER_BLOCK * layer.block.layer - 1):
            with torch.inference_mode():
                cut = state.block(layer)
            yield None
    with torch.inference_mode():
        return state.finish(cut)


def segment_of(active: ActiveFeatures, places: Tensor) -> Tensor:
    """Number the stretch of the stream between two cuts that each target reads from, `(n,)`."""
    cuts = torch.tensor(active.cuts, dtype=torch.int64)
    return torch.searchsorted(cuts, places)  # cuts strictly below a place

"""Contributions of every active feature to a batch of targets: one sweep from the top down.

Adjoints of many targets go down the frozen network together, without autograd. At a site that the set
writes, active features score by small matrix products, one per position: at a position only its own active
features are met, so no decoder is multiplied in vain and none is gathered per target (DESIGN 5.5).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from trephine.domain.sites import Site, SiteKind
from trephine.engine.adjoints import attention_adjoint, pack
from trephine.engine.graphs.actives import ActiveFeatures, ActiveLayer
from trephine.engine.graphs.places import AFTER, ATTENTION, EMBEDDING, MIDDLE, MLP, PER_BLOCK
from trephine.engine.graphs.targets import FeatureTargets
from trephine.engine.graphs.writes import Writes
from trephine.engine.hosted import HostedModel
from trephine.engine.operators import FrozenLayer, FrozenOperators
from trephine.engine.replacements.sets import opened


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
    """State of one sweep: adjoint rows and running sums."""

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
        self.packing = pack(targets.position, operators.device)
        zeros = operators.embedding.new_zeros
        n_targets, width = self.packing.n_targets, operators.embedding.shape[1]
        self.adjoint = zeros(self.packing.n_rows, width)
        self.features = zeros(n_targets, active.count)
        self.errors = zeros(n_targets, len(active.error_sites), operators.n_pos)
        self.tokens = zeros(n_targets, operators.n_pos)
        self.bias = targets.constant.clone()
        self._by_position = self.packing.position.argsort(stable=True)

    def rows_above(self, place: int) -> int:
        """Rows of targets that read above a place."""
        return self.packing.ends[int((self.targets.place > place).sum())]

    def inject(self, place: int) -> None:
        """Start the targets that read at a place of the stream."""
        chosen = (self.targets.place == place).nonzero().flatten()
        if len(chosen):
            self.adjoint[self.packing.last[chosen]] += self.targets.adjoint[chosen]

    def meet(self, site: Site, adjoint: Tensor) -> None:
        """Score what was written at a site, given its adjoint for the first rows `(n, d_model)`."""
        rows = adjoint.shape[0]
        order = self._by_position[self._by_position < rows]
        adjoint, target, position = (
            part[order] for part in (adjoint, self.packing.target, self.packing.position)
        )
        ends = (0, *torch.bincount(position, minlength=self.operators.n_pos).cumsum(0).tolist())
        self._score_rest(site, adjoint, target, position, ends)
        for layer in self.active.writers(site):
            if layer.count:
                self._score(layer, site, adjoint, target, ends)

    def _score_rest(
        self, site: Site, adjoint: Tensor, target: Tensor, position: Tensor, ends: tuple[int, ...]
    ) -> None:
        """Score the error term and the constants of a site."""
        rest = torch.stack([self.active.errors[site], self.active.constants[site]], dim=2)  # (n_pos, d, 2)
        found = torch.cat([part @ rest[p] for p, part in enumerate(adjoint.split(_gaps(ends)))])
        self.errors[target, self.active.error_sites.index(site), position] = found[:, 0]
        self.bias.index_add_(0, target, found[:, 1])

    def _score(
        self, layer: ActiveLayer, site: Site, adjoint: Tensor, target: Tensor, ends: tuple[int, ...]
    ) -> None:
        """Score one layer's features; rows come sorted by position, `ends` apart."""
        writes = self.writes.of(self.hosted, self.active, layer, site, adjoint.dtype)
        for position in range(len(ends) - 1):
            first, last = layer.offsets[position], layer.offsets[position + 1]
            start, end = ends[position], ends[position + 1]
            if first == last or start == end:
                continue
            found = writes.score(adjoint[start:end], first, last)
            cells = slice(layer.start + first, layer.start + last)
            self.features[:, cells].index_add_(0, target[start:end], found)

    def block(self, layer: FrozenLayer) -> bool:
        """Go down through one block; True if the stream was cut, so that nothing is left below."""
        number = layer.block.layer
        first = PER_BLOCK * number
        if self._cut(Site(kind=SiteKind.RESID_POST, layer=number), first + AFTER):
            return True
        self.inject(first + AFTER)
        routed = self._mlp(layer, self.rows_above(first + MLP))
        if layer.block.parallel:
            self._attention(layer, self.rows_above(first + MLP), first + ATTENTION)
            self._add(routed)
            self.inject(first + MLP)
        else:
            self._add(routed)
            self.inject(first + MLP)
            if self._cut(Site(kind=SiteKind.RESID_MID, layer=number), first + MIDDLE):
                return True
            self.inject(first + MIDDLE)
            self._attention(layer, self.rows_above(first + ATTENTION), first + ATTENTION)
        return self._cut(Site(kind=SiteKind.RESID_PRE, layer=number), first - 1)

    def _add(self, routed: Tensor | None) -> None:
        if routed is not None:
            self.adjoint[: len(routed)] += routed

    def _mlp(self, layer: FrozenLayer, rows: int) -> Tensor | None:
        """Score what the MLP wrote; return what reaches the stream below through skip paths."""
        if not rows:
            return None
        number = layer.block.layer
        site, adjoint = Site(kind=SiteKind.MLP_OUT, layer=number), self.adjoint[:rows]
        self.meet(site, adjoint)
        skipping = [
            w.info.layer for w in self.active.writers(site) if w.info.has_skip and w.info.layer == number
        ]
        if not skipping:
            return None
        with opened(self.hosted, self.active.replacement, skipping) as resident:
            matrix = resident[number].skip_matrix()
        if matrix is None:
            return None
        read, position = adjoint @ matrix.to(adjoint.dtype), self.packing.position[:rows]
        if layer.mlp_norm.bias is not None:
            self.packing.add_to_targets(self.bias, read @ layer.mlp_norm.bias)
        return layer.mlp_norm.pull_back(read, position)

    def _attention(self, layer: FrozenLayer, rows: int, place: int) -> None:
        """Add what attention reads; where a dictionary reconstructs its output, that is scored instead."""
        site = Site(kind=SiteKind.ATTN_OUT, layer=layer.block.layer)
        if rows and site in self.active.errors:
            self.meet(site, self.adjoint[:rows])
        elif rows:
            self.adjoint[:rows] += attention_adjoint(layer, self.adjoint[:rows], self.packing, self.bias)
        self._attention_targets(layer, rows, place)

    def _attention_targets(self, layer: FrozenLayer, rows: int, place: int) -> None:
        """Start the targets that read attention's output: they see the stream through attention alone."""
        until = self.packing.ends[int((self.targets.place >= place).sum())]
        if until == rows or not (self.targets.place == place).any():
            return
        self.inject(place)
        through = self.adjoint[:until].clone()
        through[:rows] = 0
        self.adjoint[rows:until] = attention_adjoint(layer, through, self.packing, self.bias)[rows:]

    def _cut(self, site: Site, place: int) -> bool:
        """Score a dictionary on the stream for the targets above it; the sweep then ends."""
        if site not in self.active.errors:
            return False
        rows = self.rows_above(place)
        if not rows:
            return False
        self.meet(site, self.adjoint[:rows])
        return True

    def finish(self, cut: bool) -> FeatureSums:
        """Score the embeddings, unless the stream was cut above them, and return the sums."""
        if not cut and not self._cut(Site(kind=SiteKind.EMBED, layer=0), EMBEDDING):
            self.inject(EMBEDDING)
            packing = self.packing
            score = (self.adjoint * self.operators.embedding[packing.position]).sum(-1)
            self.tokens[packing.target, packing.position] = score
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
        if not cut and state.rows_above(PER_BLOCK * layer.block.layer - 1):
            with torch.inference_mode():
                cut = state.block(layer)
            yield None
    with torch.inference_mode():
        return state.finish(cut)


def _gaps(ends: tuple[int, ...]) -> list[int]:
    return [end - start for start, end in pairwise(ends)]


def segment_of(active: ActiveFeatures, places: Tensor) -> Tensor:
    """Number the stretch of the stream between two cuts that each target reads from, `(n,)`."""
    cuts = torch.tensor(active.cuts, dtype=torch.int64)
    return torch.searchsorted(cuts, places)  # cuts strictly below a place

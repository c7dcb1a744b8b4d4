"""Hierarchical attribution (Ge et al. 2024, arXiv 2405.13868): a backward pass that stops at small features.

The adjoint of what is explained goes down the frozen network and *through* features: a feature's attribution
is its activation times the adjoint that has arrived, and it hands that on to what it reads only if it is at
least the threshold. What is above comes first, so that attribution flows through survivors alone; their
inputs and constants take their place. At the end the leaves (embeddings, errors, constants) and what was
stopped add up to what is explained (their theorem 3.1), which is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.circuits import DiscoverCircuit, HierarchicalFigures
from trephine.domain.commands import Progress
from trephine.domain.sites import Site, SiteKind
from trephine.engine.attribution.adjoints import attention_adjoint
from trephine.engine.attribution.expansion import Basis, Expansion, check_sums, expand, expand_chosen
from trephine.engine.attribution.operators import FrozenLayer, FrozenOperators
from trephine.engine.attribution.places import (
    AFTER,
    ATTENTION,
    BEFORE,
    EMBEDDING,
    MIDDLE,
    MLP,
    PER_BLOCK,
    place_of,
)
from trephine.engine.attribution.targets import Explained, top_place
from trephine.engine.graphs.actives import ActiveFeatures, ActiveLayer
from trephine.engine.graphs.skips import read_through_skip
from trephine.engine.graphs.targets import feature_targets
from trephine.engine.graphs.writes import blocks
from trephine.engine.models.hosted import HostedModel

_STEP = 1e-6
"""By which a threshold exceeds the largest attribution that it stops, relatively, at first."""
_FULL, _HALVINGS = 0.9, 8
"""Share of the budget that a raised threshold should fill, and passes that look for such a one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """What one pass found, in units of what is explained."""

    threshold: float
    cells: Tensor
    """int64 `(n_survivors,)`, ascending."""
    attribution: Tensor
    """float32 `(n_survivors,)`, signed."""
    tokens: float
    errors: float
    constants: float
    """Biases of every kind, those of the targets among them."""
    stopped: float
    """Signed sum of the attributions of features below the threshold."""
    stopped_mass: float
    """Absolute sum of the same."""
    stopped_features: int
    """Of them, those that anything arrived at."""

    @property
    def sum(self) -> float:
        """Leaves and what was stopped: what is explained, if nothing was lost."""
        return self.tokens + self.errors + self.constants + self.stopped


Pass = Callable[[float], Generator[None, None, Hierarchy]]
"""A backward pass at a threshold."""


def grow(
    basis: Basis, run: Pass, explained: Explained, operators: FrozenOperators, command: DiscoverCircuit
) -> Generator[Progress | None, None, tuple[HierarchicalFigures | None, Expansion]]:
    """Choose a graph's features, by influence or by hierarchical attribution, and expand them.

    Args:
        basis: What is expanded.
        run: A pass over the same features.
        explained: The targets.
        operators: The frozen network.
        command: What was asked.
    """
    asked, most = command.min_attribution, command.max_feature_nodes
    if asked is None:
        return None, (yield from expand(basis, max_nodes=most))
    found = yield from strongest_hierarchy(run, operators, explained, threshold=asked, most=most)
    expansion = yield from expand_chosen(basis, found.cells)
    return hierarchical_figures(found, asked, explained), expansion


def hierarchy_caveats(figures: HierarchicalFigures | None) -> list[str]:
    """Say how features were chosen, and what was lost by it."""
    if figures is None:
        return []
    raised = (
        ""
        if figures.threshold == figures.asked_threshold
        else f" (raised from {figures.asked_threshold:.3g}: more survived than there was room for)"
    )
    return [
        "Features were chosen by hierarchical attribution: in one backward pass, what is explained flows "
        f"through features alone whose attribution is at least {figures.threshold:.3g}{raised}. "
        f"{figures.survivors} survived and {figures.stopped_features} were stopped. Of {figures.root:+.4g}, "
        f"tokens carry {figures.tokens:+.4g}, errors {figures.errors:+.4g}, constants "
        f"{figures.constants:+.4g}, and what was stopped {figures.stopped:+.4g} "
        f"({figures.stopped_mass:.4g} in absolute terms)."
    ]


def strongest_hierarchy(
    run: Pass, operators: FrozenOperators, explained: Explained, *, threshold: float, most: int
) -> Generator[Progress | None, None, Hierarchy]:
    """Run the pass; while more features survive than there is room for, again with a larger threshold.

    A smaller set is no part of a larger one (what is stopped changes what reaches the rest), so that the pass
    is repeated rather than its survivors cut.

    Args:
        run: The pass.
        operators: The frozen network.
        explained: The targets.
        threshold: Smallest absolute attribution of a survivor.
        most: Survivors at most.

    Raises:
        InternalError: If leaves and stopped features do not add up to what is explained.
    """
    found = yield from _checked(run, operators, explained, threshold, 1)
    number, too_many = 1, threshold
    while len(found.cells) > most:
        too_many = found.threshold
        largest = float(found.attribution.abs().topk(most + 1).values[-1])
        # Above it by more than float32 resolves, and by ever more, so that this ends soon.
        threshold, number = max(threshold, largest) * (1 + _STEP * 10**number), number + 1
        found = yield from _checked(run, operators, explained, threshold, number)
    # Raising it stops more than was asked for: what is stopped takes others along. Look for a lower one.
    for _ in range(_HALVINGS if number > 1 else 0):
        if len(found.cells) >= _FULL * most:
            break
        number += 1
        tried = yield from _checked(run, operators, explained, (too_many + found.threshold) / 2, number)
        if len(tried.cells) > most:
            too_many = tried.threshold
        else:
            found = tried
    return found


def _checked(
    run: Pass, operators: FrozenOperators, explained: Explained, threshold: float, number: int
) -> Generator[Progress | None, None, Hierarchy]:
    """Run a pass and hold it to its sum."""
    found = yield from run(threshold)
    root = sum(target.about.share * part.total for target in explained.targets for part in target.parts)
    mass = abs(found.tokens) + abs(found.errors) + abs(found.constants) + found.stopped_mass
    check_sums(operators, *(torch.tensor([value]).double() for value in (found.sum, root, mass)))
    yield Progress(stage="hierarchical attribution", done=number, total=number)
    return found


def hierarchical_figures(found: Hierarchy, asked: float, explained: Explained) -> HierarchicalFigures:
    """Say what was kept and what was stopped."""
    return HierarchicalFigures(
        asked_threshold=asked,
        threshold=found.threshold,
        root=sum(target.about.share * part.total for target in explained.targets for part in target.parts),
        tokens=found.tokens,
        errors=found.errors,
        constants=found.constants,
        stopped=found.stopped,
        stopped_mass=found.stopped_mass,
        survivors=len(found.cells),
        stopped_features=found.stopped_features,
    )


def root_constants(explained: Explained) -> float:
    """What constants between the stream and the targets add."""
    return sum(target.about.share * part.constant for target in explained.targets for part in target.parts)


def through_features(
    hosted: HostedModel,
    operators: FrozenOperators,
    active: ActiveFeatures,
    explained: Explained,
    threshold: float,
) -> Generator[None, None, Hierarchy]:
    """Do the pass over the features of sets, one block a quantum."""
    with torch.inference_mode():
        state = _Pass(hosted, operators, active, explained, threshold)
        adjoint = state.enter(top_place(operators))
    for layer in reversed(operators.layers):
        with torch.inference_mode():
            adjoint = state.block(layer, adjoint)
        yield None
    with torch.inference_mode():
        return state.finish(adjoint)


class _Pass:
    """State of a pass: what has arrived at features, and the sums of leaves."""

    def __init__(
        self,
        hosted: HostedModel,
        operators: FrozenOperators,
        active: ActiveFeatures,
        explained: Explained,
        threshold: float,
    ) -> None:
        self.hosted, self.operators, self.active, self.threshold = hosted, operators, active, threshold
        self._roots = explained.roots()
        zeros = operators.embedding.new_zeros
        self._bias = zeros(1)
        self._by_feature = {layer.ref: zeros(layer.count) for layer in active.layers}
        self._constants, self._errors = root_constants(explained), 0.0
        self._stopped: list[Tensor] = []
        self._cells: list[Tensor] = []
        self._kept: list[Tensor] = []

    def enter(self, place: int) -> Tensor:
        """What the targets read at a place, `(n_pos, d_model)`."""
        found = self._roots.get(place)
        return torch.zeros_like(self.operators.embedding) if found is None else found

    def block(self, layer: FrozenLayer, adjoint: Tensor) -> Tensor:
        """Carry the adjoint `(n_pos, d_model)` of the stream after a block to the stream before it."""
        number, parallel = layer.block.layer, layer.block.parallel
        first = PER_BLOCK * number
        adjoint = self._cut(Site(kind=SiteKind.RESID_POST, layer=number), adjoint) + self.enter(first + AFTER)
        read = self._meet(Site(kind=SiteKind.MLP_OUT, layer=number), adjoint)
        middle = adjoint + read + self._skipped(layer, adjoint) + self.enter(first + MLP)
        heard = adjoint
        if not parallel:
            middle = self._cut(Site(kind=SiteKind.RESID_MID, layer=number), middle)
            middle = heard = middle + self.enter(first + MIDDLE)
        site = Site(kind=SiteKind.ATTN_OUT, layer=number)
        if site in self.active.errors:
            heard = self._meet(site, heard)
        heard = heard + self.enter(first + ATTENTION)
        below = middle + attention_adjoint(layer, heard[None], self._bias)[0] + self.enter(first + BEFORE)
        return self._cut(Site(kind=SiteKind.RESID_PRE, layer=number), below)

    def _cut(self, site: Site, adjoint: Tensor) -> Tensor:
        """Replace the adjoint by what its survivors read, where a dictionary reconstructs the stream."""
        return self._meet(site, adjoint) if site in self.active.errors else adjoint

    def _meet(self, site: Site, adjoint: Tensor) -> Tensor:
        """Score what was written at a site; return what the survivors among those that end here read."""
        self._errors += float((adjoint * self.active.errors[site]).sum())
        self._constants += float((adjoint * self.active.constants[site]).sum())
        read = torch.zeros_like(adjoint)
        for layer in self.active.writers(site):
            if not layer.count:
                continue
            self._score(layer, site, adjoint)
            if site == min(layer.info.sites_out, key=place_of):  # nothing of it is written further below
                read = read + self._pass_on(layer)
        return read

    def _score(self, layer: ActiveLayer, site: Site, adjoint: Tensor) -> None:
        for block in blocks(self.hosted, layer, site, adjoint.dtype):
            cells, found = block.score(adjoint[:, None])
            self._by_feature[layer.ref][cells] += found[0]

    def _pass_on(self, layer: ActiveLayer) -> Tensor:
        """Stop small features; return what the others read, `(n_pos, d_model)`, at their place."""
        attribution = self._by_feature.pop(layer.ref)
        large = (attribution.abs() >= self.threshold) & (attribution != 0) & (layer.activation != 0)
        self._stopped.append(attribution[~large])
        own = large.nonzero().flatten()
        read = torch.zeros_like(self.operators.embedding)
        if not len(own):
            return read
        cells = (own + layer.start).cpu()
        targets = feature_targets(self.hosted, self.operators, self.active, cells)
        per_unit = attribution[own] / layer.activation[own]
        self._constants += float(per_unit @ targets.constant)
        # What the activation has beyond its pre-activation: the encoder's bias.
        self._constants += float(per_unit @ (layer.activation[own] - targets.total))
        self._cells.append(cells)
        self._kept.append(attribution[own].float().cpu())
        at = targets.position.to(read.device)
        return read.index_add_(0, at, per_unit[:, None] * targets.adjoint)

    def _skipped(self, layer: FrozenLayer, adjoint: Tensor) -> Tensor:
        """What skip paths beside the MLP read."""
        skip = read_through_skip(self.hosted, self.active, layer, adjoint)
        if skip is None:
            return torch.zeros_like(adjoint)
        if skip.bias is not None:
            self._constants += float(skip.bias.sum())
        return skip.adjoint

    def finish(self, adjoint: Tensor) -> Hierarchy:
        """Score the embeddings and sum up."""
        adjoint = self._cut(Site(kind=SiteKind.EMBED, layer=0), adjoint) + self.enter(EMBEDDING)
        return hierarchy(
            threshold=self.threshold,
            cells=_joined(self._cells, torch.int64),
            attribution=_joined(self._kept, torch.float32),
            tokens=float((adjoint * self.operators.embedding).sum()),
            errors=self._errors,
            constants=self._constants + float(self._bias),
            stopped=_joined(self._stopped, adjoint.dtype),
        )


def hierarchy(
    *,
    threshold: float,
    cells: Tensor,
    attribution: Tensor,
    tokens: float,
    errors: float,
    constants: float,
    stopped: Tensor,
) -> Hierarchy:
    """Sort survivors and sum up what was stopped, `(n,)`."""
    order = cells.argsort()
    return Hierarchy(
        threshold=threshold,
        cells=cells[order],
        attribution=attribution[order],
        tokens=tokens,
        errors=errors,
        constants=constants,
        stopped=float(stopped.double().sum()),
        stopped_mass=float(stopped.double().abs().sum()),
        stopped_features=int(stopped.count_nonzero()),
    )


def _joined(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)

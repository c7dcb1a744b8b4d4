"""Effects of patching every node, behind one port: two gradients, a path of them, and the patch itself.

All estimate m(clean | do(node = patch)) - m(clean) (Marks et al. 2025), per context.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trephine.domain.dataset_circuits import Estimator
from trephine.domain.interventions import ErrorTerm
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.dataset_circuits.ablated import AblatedModel, Change, start_at
from trephine.engine.dataset_circuits.nodes import node_layer
from trephine.engine.dataset_circuits.packs import Pack, capture_layout
from trephine.engine.dataset_circuits.patches import States
from trephine.engine.dataset_circuits.space import FIRST, NodeSpace
from trephine.engine.dataset_circuits.sweeping import (
    BlockAdjoints,
    Gradient,
    HalfRule,
    SweepRule,
    metric_cotangent,
    sweep_blocks,
)
from trephine.engine.models.hosted import HostedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchedPack:
    """A pack's clean run, and what its nodes are patched with."""

    pack: Pack
    operators: FrozenOperators
    clean: States
    replaced: States

    def difference(self, place: int) -> Tensor:
        """Patch less clean, `(n_rows, width * unit)`."""
        return self.replaced[place].activations - self.clean[place].activations


class ReadOff(Protocol):
    """Where a sweep begins: the derivative of the contexts' metrics by the stream, and after which block."""

    @property
    def layer(self) -> int | None:
        """The block after which the stream is read; None: the last, behind the final norm."""
        ...

    def adjoint(self, pack: Pack, operators: FrozenOperators, rule: SweepRule) -> Tensor:
        """Return `(n_rows, d_model)`, on the stream after that block."""
        ...


class NextToken:
    """The contexts' own metrics: logits of the last token."""

    layer: int | None = None

    def adjoint(self, pack: Pack, operators: FrozenOperators, rule: SweepRule) -> Tensor:
        """Through the final norm."""
        return rule.through_norm(operators.final_norm, metric_cotangent(pack, operators))


class EffectEstimator(Protocol):
    """Estimates the effect of every node of a space on every context of a pack."""

    def estimate(self, run: PatchedPack) -> Generator[None, None, Tensor]:
        """Return float32 `(n_contexts, n_nodes)`, logits; a block of a sweep, or a pass, per quantum."""
        ...


def node_gradients(
    hosted: HostedModel,
    space: NodeSpace,
    run: PatchedPack,
    rule: SweepRule,
    read_off: ReadOff | None = None,
) -> Generator[None, None, list[Tensor]]:
    """Return the metric's derivative by every activation, `(n_rows, width * unit)` per place."""
    operators, read = run.operators, read_off or NextToken()
    found = [torch.zeros_like(state.activations) for state in run.clean]
    adjoint = read.adjoint(run.pack, operators, rule)
    for block in sweep_blocks(operators, adjoint, rule, top=read.layer, down_to=_lowest(space)):
        for place in range(len(space.places)):
            _collect(hosted, space, place, operators, block, found)
        yield
    return found


def _lowest(space: NodeSpace) -> int:
    return min(space.layers)


def _collect(
    hosted: HostedModel,
    space: NodeSpace,
    place: int,
    operators: FrozenOperators,
    block: BlockAdjoints,
    found: list[Tensor],
) -> None:
    if all(site.layer != block.layer for site in space.places[place].outputs):
        return
    with node_layer(hosted, space, place) as layer, torch.inference_mode():
        for site in layer.outputs:
            if site.layer == block.layer:
                found[place] = found[place] + layer.gradient(operators, site, block.by_site[site])


class ByGradient:
    """One sweep by one rule: attribution patching, or RelP."""

    def __init__(
        self,
        hosted: HostedModel,
        space: NodeSpace,
        rule: Callable[[FrozenOperators], SweepRule],
        read_off: ReadOff | None = None,
    ) -> None:
        self._hosted, self._space, self._rule, self._read_off = hosted, space, rule, read_off

    def estimate(self, run: PatchedPack) -> Generator[None, None, Tensor]:
        """Gradient times difference."""
        rule = self._rule(run.operators)
        gradients = yield from node_gradients(self._hosted, self._space, run, rule, self._read_off)
        return torch.cat(
            [
                self._space.gather(run.pack, gradient * run.difference(place), place).float().cpu()
                for place, gradient in enumerate(gradients)
            ],
            1,
        )


class ByIntegratedGradients:
    """Per layer, the mean gradient at `steps` points between clean and patch, all its nodes moved together.

    As in Marks et al. the points are k / steps of the way, the clean end included; below the layer the run
    is the clean one, and error terms stay what they are.
    """

    def __init__(
        self, hosted: HostedModel, space: NodeSpace, steps: int, read_off: ReadOff | None = None
    ) -> None:
        self._hosted, self._space, self._steps = hosted, space, steps
        self._read: ReadOff = read_off or NextToken()
        self._model = AblatedModel(hosted, space, ErrorTerm.LIVE)

    def estimate(self, run: PatchedPack) -> Generator[None, None, Tensor]:
        """Mean gradient times difference, one step of one layer a quantum."""
        parts = []
        for place in range(len(self._space.places)):
            total = torch.zeros_like(run.clean[place].activations)
            for step in range(self._steps):
                total += self._gradient(run, place, step / self._steps)
                yield
            effect = total / self._steps * run.difference(place)
            parts.append(self._space.gather(run.pack, effect, place).float().cpu())
        return torch.cat(parts, 1)

    def _gradient(self, run: PatchedPack, place: int, way: float) -> Tensor:
        operators = run.operators
        if way:
            with self._model.changing(run.pack, _part_of_the_way(run, way), places=(place,)):
                operators = capture_layout(self._hosted, run.pack.clean, self._read.layer)
        number, found = self._space.layers[place], [torch.zeros_like(s.activations) for s in run.clean]
        with torch.inference_mode():
            adjoint = self._read.adjoint(run.pack, operators, Gradient())
            for block in sweep_blocks(operators, adjoint, Gradient(), top=self._read.layer, down_to=number):
                # What is below the layer is clean, and so is the scale that its features are written with.
                _collect(self._hosted, self._space, place, run.operators, block, found)
        return found[place]


def _part_of_the_way(run: PatchedPack, way: float) -> Change:
    def change(place: int, live: Tensor) -> Tensor:
        moved = live + way * run.difference(place).to(live.dtype)
        return torch.where((run.pack.clean.position == 0)[:, None], live, moved)

    return change


class ByPatching:
    """The reference: every candidate node is patched in the real model, one at a time, error terms live."""

    def __init__(self, hosted: HostedModel, space: NodeSpace, nodes: Tensor) -> None:
        """Measure `nodes (n,)` only; the others' effects are 0."""
        self._space, self._nodes = space, nodes
        self._model = AblatedModel(hosted, space, ErrorTerm.LIVE)

    def estimate(self, run: PatchedPack) -> Generator[None, None, Tensor]:
        """Measure, one node a quantum."""
        effects = torch.zeros(run.pack.count, self._space.count)
        with torch.inference_mode():
            plain = run.pack.metric(run.operators.final).cpu()
        places, positions, indices = (column.tolist() for column in self._space.split(self._nodes))
        for node, place, position, index in zip(
            self._nodes.tolist(), places, positions, indices, strict=True
        ):
            unit = self._space.places[place].unit
            change = _patch_one(run, position, slice(index * unit, (index + 1) * unit))
            start = start_at(run.operators, self._space.layers[place])
            metric = self._model.metric(run.pack, change, places=(place,), start=start)
            effects[:, node] = (metric - plain).float()
            yield
        return effects


def _patch_one(run: PatchedPack, position: int, columns: slice) -> Change:
    at = run.pack.clean.position
    chosen = ((at >= FIRST) if position < 0 else at == position)[:, None]

    def change(place: int, live: Tensor) -> Tensor:
        new = live.clone()
        patched = run.replaced[place].activations[:, columns].to(live.dtype)
        new[:, columns] = torch.where(chosen, patched, live[:, columns])
        return new

    return change


def estimator_of(
    hosted: HostedModel,
    space: NodeSpace,
    which: Estimator,
    *,
    steps: int,
    candidates: Tensor | None,
    read_off: ReadOff | None = None,
) -> EffectEstimator:
    """Choose an estimator.

    Args:
        hosted: The model.
        space: The nodes.
        which: By name.
        steps: Of integrated gradients.
        candidates: int64 `(n,)`, the nodes that exact patching measures.
        read_off: Where the metric is read; None: the contexts' own logits. Exact patching knows no other.
    """
    match which:
        case Estimator.ATTRIBUTION_PATCHING:
            return ByGradient(hosted, space, lambda _: Gradient(), read_off)
        case Estimator.RELP:
            return ByGradient(hosted, space, HalfRule, read_off)
        case Estimator.INTEGRATED_GRADIENTS:
            return ByIntegratedGradients(hosted, space, steps, read_off)
        case Estimator.EXACT:
            if candidates is None:
                raise ValueError("exact patching needs candidates")
            return ByPatching(hosted, space, candidates)

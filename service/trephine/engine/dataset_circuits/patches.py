"""What nodes are replaced with: the twin's value, the dataset's mean, or zero; per row of a pack."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.dataset_circuits import NodeAblation
from trephine.domain.sites import Site
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.attribution.places import clean_value
from trephine.engine.dataset_circuits.nodes import Features, node_layer, reconstruction
from trephine.engine.dataset_circuits.packs import Layout, Pack, capture_layout
from trephine.engine.dataset_circuits.space import FIRST, NodeSpace
from trephine.engine.models.hosted import HostedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerState:
    """One layer's nodes in one run, or their means."""

    activations: Tensor
    """`(n_rows, width * unit)`, or `(slots, width * unit)` of a mean."""
    errors: dict[Site, Tensor]
    """Output minus reconstruction at the output site `(n_rows, d)`; of features, where it is no node."""


States = tuple[LayerState, ...]


def states_of(hosted: HostedModel, space: NodeSpace, operators: FrozenOperators, *, errors: bool) -> States:
    """Read every layer's nodes off a run."""
    return tuple(_state(hosted, space, place, operators, errors) for place in range(len(space.places)))


def _state(
    hosted: HostedModel, space: NodeSpace, place: int, operators: FrozenOperators, errors: bool
) -> LayerState:
    with node_layer(hosted, space, place) as layer, torch.inference_mode():
        if not isinstance(layer, Features) or not errors:
            return LayerState(activations=layer.captured(operators), errors={})
        x, (site,) = clean_value(operators, layer.source), layer.outputs
        code = layer.layer.encode(x)
        error = clean_value(operators, site) - reconstruction(layer.layer, x, code)
        return LayerState(activations=code.activations, errors={site: error})


def twin_states(states: States, pack: Pack) -> States:
    """Line a twin run's states up with the rows of the clean one."""
    return tuple(
        LayerState(
            activations=state.activations[pack.donor],
            errors={site: error[pack.donor] for site, error in state.errors.items()},
        )
        for state in states
    )


class MeanStates:
    """Sums of states over contexts, per position if positions are kept, position 0 left out."""

    def __init__(self, space: NodeSpace) -> None:
        self._space = space
        self._sums: list[LayerState] | None = None
        self._counts = torch.zeros(space.slots)

    def add(self, states: States, layout: Layout) -> None:
        """Add a run."""
        kept = layout.position >= FIRST
        slot = layout.position[kept] - FIRST if self._space.n_pos else torch.zeros_like(layout.position[kept])
        self._counts += torch.bincount(slot.cpu(), minlength=self._space.slots)
        added = [
            LayerState(
                activations=self._sum(state.activations[kept], slot),
                errors={site: self._sum(error[kept], slot) for site, error in state.errors.items()},
            )
            for state in states
        ]
        if self._sums is None:
            self._sums = added
            return
        for total, new in zip(self._sums, added, strict=True):
            total.activations.add_(new.activations)
            for site, error in total.errors.items():
                error.add_(new.errors[site])

    def means(self) -> States:
        """Return means, `(slots, width)`."""
        counts = self._counts.clamp_min(1)[:, None]
        return tuple(
            LayerState(
                activations=state.activations / counts.to(state.activations.device),
                errors={site: error / counts.to(error.device) for site, error in state.errors.items()},
            )
            for state in self._sums or ()
        )

    def _sum(self, values: Tensor, slot: Tensor) -> Tensor:
        return values.new_zeros(self._space.slots, values.shape[1]).index_add_(0, slot, values)


def dataset_means(
    hosted: HostedModel, space: NodeSpace, packed: Sequence[Pack], *, errors: bool
) -> Generator[None, None, States]:
    """Average states over clean contexts and their corrupted twins (both sides weigh the same).

    Where some have no twin, twins are left out: one side of some contexts would weigh more than the other.
    """
    found = MeanStates(space)
    paired = all(context.twin is not None for pack in packed for context in pack.contexts)
    for pack in packed:
        layouts = [pack.clean, pack.twins] if paired else [pack.clean]
        for layout in layouts:
            found.add(states_of(hosted, space, capture_layout(hosted, layout), errors=errors), layout)
            yield
    return found.means()


def baseline(
    space: NodeSpace, pack: Pack, ablation: NodeAblation, *, means: States, twins: States | None, like: States
) -> States:
    """Return what every node of a pack is replaced with, `(n_rows, width)` per layer."""
    if ablation is NodeAblation.RESAMPLE:
        if twins is None:
            raise ValueError("resampling needs the twins' states")
        return twins
    if ablation is NodeAblation.ZERO:
        return tuple(
            LayerState(
                activations=torch.zeros_like(state.activations),
                errors={site: torch.zeros_like(error) for site, error in state.errors.items()},
            )
            for state in like
        )
    return tuple(
        LayerState(
            activations=space.at_rows(pack, mean.activations),
            errors={site: space.at_rows(pack, error) for site, error in mean.errors.items()},
        )
        for mean in means
    )

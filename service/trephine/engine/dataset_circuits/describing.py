"""Nodes of a circuit as values: their addresses and effects, and how far the data agree on them."""

from __future__ import annotations

from torch import Tensor

from trephine.domain.dataset_circuits import DatasetNode, Subsampling
from trephine.engine.dataset_circuits.places import Place
from trephine.engine.dataset_circuits.selection import Stability, certified_edits, part_size
from trephine.engine.dataset_circuits.space import NodeSpace


class Describer:
    """Writes nodes as values."""

    def __init__(
        self,
        space: NodeSpace,
        effects: Tensor,
        stability: Stability | None,
        rule: Subsampling,
        *,
        contexts: int,
        certifies: bool,
    ) -> None:
        """Describe nodes of one circuit.

        Args:
            space: The nodes there are.
            effects: `(n_nodes,)`, mean over the training contexts.
            stability: What draws say of them; None: nothing.
            rule: How parts were drawn.
            contexts: Training contexts of the circuit.
            certifies: False where no exchange of a context can be certified.
        """
        self._space, self._effects, self._stability = space, effects, stability
        self._contexts, self._size, self._certifies = contexts, part_size(contexts, rule), certifies
        self._stable = set() if stability is None else set(stability.stable.tolist())

    def __call__(self, nodes: Tensor) -> tuple[DatasetNode, ...]:
        """Describe int64 `nodes (n,)`, in their order."""
        places, positions, indices = (column.tolist() for column in self._space.split(nodes))
        return tuple(
            self._node(node, self._space.places[place], position, index)
            for node, place, position, index in zip(nodes.tolist(), places, positions, indices, strict=True)
        )

    def _node(self, node: int, place: Place, position: int, index: int) -> DatasetNode:
        frequency = None if self._stability is None else float(self._stability.frequency[node])
        stable = node in self._stable
        return DatasetNode(
            replacement=place.owner,
            layer=place.layer,
            position=position,
            index=index,
            effect=float(self._effects[node]),
            frequency=frequency,
            stable=stable,
            certified_edits=self._edits(frequency) if stable and frequency is not None else None,
        )

    def _edits(self, frequency: float) -> int:
        if self._stability is None or not self._certifies:
            return 0
        return certified_edits(frequency, self._stability.draws, self._contexts, self._size)

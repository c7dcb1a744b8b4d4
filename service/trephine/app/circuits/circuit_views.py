"""What is made of stored circuits: nodes by a filter, pruned circuits, and differences of two."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from math import isnan

from trephine.app.circuits.circuit_annotations import merged
from trephine.app.circuits.circuit_diff import CircuitDiff, compare
from trephine.app.circuits.circuit_imports import LARGEST_FILE, read_graph
from trephine.app.circuits.circuit_pruning import in_words, kept_nodes, noted, pruned_circuit, pruned_id
from trephine.app.circuits.circuit_queries import Subgraph, query, require_node
from trephine.app.circuits.circuits import Circuits, ListedNode, StoredCircuit
from trephine.app.storage.artifacts import ArtifactStore
from trephine.domain.circuit_annotations import NO_ANNOTATIONS
from trephine.domain.circuit_queries import Around, Between, NodeFilter, NodeSort, Provenance, Pruning
from trephine.domain.circuits import PrunedNodes
from trephine.domain.errors import InvalidRequestError
from trephine.pages.circuit_annotations import identities, read_document


class CircuitViews:
    """Reads circuits, and makes smaller ones of them. Names may be `circuits/ID` or `ID`."""

    def __init__(self, circuits: Circuits, artifacts: ArtifactStore) -> None:
        self._circuits = circuits
        self._artifacts = artifacts

    async def nodes(self, stored: StoredCircuit, wanted: NodeFilter) -> Sequence[ListedNode]:
        """Return the nodes that pass a filter, in its order."""
        said = await self._circuits.annotations(stored.name)
        listed = self._circuits.nodes(stored, wanted.kind, wanted.min_influence)
        texts, pinned = said.texts, said.pinned
        kept = [one for one in listed if _passes(stored, one, wanted, pinned, texts)]
        return sorted(kept, key=lambda one: _rank(one, wanted.order))

    async def subgraph(self, name: str, question: Around | Between) -> tuple[StoredCircuit, Subgraph]:
        """Return a part of a circuit.

        Raises:
            InvalidRequestError: If a node does not exist, or a depth, weight or count is out of its domain.
            NothingMatchedError: If nothing is connected.
        """
        stored = await self._circuits.get(name)
        return stored, await asyncio.to_thread(query, stored.circuit, question)

    async def prune(self, name: str, bounds: Pruning) -> StoredCircuit:
        """Store what is left of a circuit as one of its own, with pins, labels and groups.

        Nothing is computed anew. The same question again returns the same circuit.

        Raises:
            InvalidRequestError: If a threshold is outside (0, 1], the budget below 1, or a node unknown.
        """
        stored, said = await self._circuits.get(name), await self._circuits.annotations(name)
        for node in bounds.keep:
            require_node(stored.circuit, node, "keep")
        kept = await asyncio.to_thread(kept_nodes, stored.circuit, bounds, said.pinned)
        smaller, places = await asyncio.to_thread(pruned_circuit, stored.circuit, kept)
        words = in_words(bounds, len(said.pinned | frozenset(bounds.keep)))
        return await self._circuits.save(
            noted(stored.circuit, smaller, f"from {stored.name} ({words})"),
            circuit_id=pruned_id(stored.name, bounds, kept),
            provenance=Provenance(
                origin="pruned",
                parent=stored.name,
                how=words,
                foreign=stored.provenance.is_foreign,
            ),
            annotations=said.moved(places),
        )

    async def import_graph(self, artifact: str) -> StoredCircuit:
        """Store a graph file, of another tool or ours, as a read-only circuit, with the file's annotations.

        The same file again returns the same circuit.

        Raises:
            ResourceNotFoundError: If there is no such artifact.
            InvalidRequestError: If it is too large or no such graph.
        """
        info = await self._artifacts.stat(artifact)
        if info.size > LARGEST_FILE:
            raise InvalidRequestError(
                f"the file has {info.size} bytes and may have {LARGEST_FILE}; prune the graph first",
                field="artifact",
            )
        graph = await asyncio.to_thread(read_graph, await self._artifacts.read(artifact))
        said, _ = read_document(graph.document, identities(graph.circuit), author="", now=info.create_time)
        return await self._circuits.save(
            graph.circuit,
            circuit_id=info.sha256[:32],
            provenance=Provenance(origin="imported", how=f"a file written by {graph.generator}"),
            annotations=merged(NO_ANNOTATIONS, said),
        )

    async def diff(
        self, first: str, second: str, *, sum_positions: bool
    ) -> tuple[StoredCircuit, StoredCircuit, CircuitDiff]:
        """Compare two circuits.

        Raises:
            ResourceNotFoundError: If there is none of a name.
        """
        a, b = await self._circuits.get(first), await self._circuits.get(second)
        found = await asyncio.to_thread(compare, a.circuit, b.circuit, sum_positions=sum_positions)
        return a, b, found

    async def kept(self, name: str, bounds: Pruning) -> PrunedNodes:
        """Return what pruning would leave, storing nothing.

        Raises:
            TrephineError: As `prune`.
        """
        stored, said = await self._circuits.get(name), await self._circuits.annotations(name)
        return await asyncio.to_thread(kept_nodes, stored.circuit, bounds, said.pinned)


def _passes(
    stored: StoredCircuit,
    listed: ListedNode,
    wanted: NodeFilter,
    pinned: frozenset[int],
    texts: Mapping[int, str],
) -> bool:
    node = listed.node
    return (
        (not wanted.layers or node.layer in wanted.layers)
        and (not wanted.positions or node.position in wanted.positions)
        and (not wanted.pinned or listed.index in pinned)
        and (not wanted.token or _says(stored, listed, wanted.token.casefold(), texts))
    )


def _says(stored: StoredCircuit, listed: ListedNode, text: str, texts: Mapping[int, str]) -> bool:
    tokens, position = stored.circuit.tokens, listed.node.position
    at = tokens[position].display if 0 <= position < len(tokens) else ""
    return any(text in one.casefold() for one in (at, listed.node.label, texts.get(listed.index, "")))


def _rank(listed: ListedNode, order: NodeSort) -> tuple[float, int]:
    node = listed.node
    size = {
        NodeSort.INFLUENCE: -node.influence,
        NodeSort.EFFECT: -_size(node.effect),
        NodeSort.ACTIVATION: -_size(node.activation),
        NodeSort.INDEX: 0.0,
    }[order]
    return size, listed.index


def _size(value: float) -> float:
    """Absolute value; what is not known comes last."""
    return 0.0 if isnan(value) else abs(value)

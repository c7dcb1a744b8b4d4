"""What can be asked of, and said about, a stored circuit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trephine.client import circuit_requests as build
from trephine.client.aio.wire import AsyncWire
from trephine.client.decoding import decode
from trephine.client.descriptions import described, of_circuit
from trephine.client.node_addresses import found_nodes
from trephine.client.requests import resource
from trephine.client.sendable import listed
from trephine.client.types import (
    CircuitAnnotations,
    CircuitDiff,
    CircuitInfo,
    Edge,
    GroupingScores,
    Node,
    NodeKind,
    NodeSort,
    Subgraph,
)
from trephine.v1 import circuit_queries_pb2 as pb


class AsyncStoredCircuit:
    """A circuit by name: nodes and edges in pages, parts, annotations."""

    def __init__(self, wire: AsyncWire, info: CircuitInfo) -> None:
        self._wire = wire
        self.info = info

    def __repr__(self) -> str:
        return described(self, of_circuit(self.info))

    @property
    def name(self) -> str:
        """Resource name, `circuits/...`."""
        return self.info.name

    async def nodes(
        self,
        *,
        kind: NodeKind | None = None,
        min_influence: float | None = None,
        layers: Sequence[int] = (),
        positions: Sequence[int] = (),
        token: str = "",
        pinned: bool = False,
        order: NodeSort | str = NodeSort.INFLUENCE,
    ) -> tuple[Node, ...]:
        """Its nodes.

        Args:
            kind: Only this kind.
            min_influence: Only nodes of at least this influence.
            layers: Only these layers; -1 is that of tokens.
            positions: Only these positions.
            token: Only nodes at a token, or with a label, that holds this text.
            pinned: Only pinned nodes.
            order: `influence`, `effect`, `activation` (largest first) or `index`.
        """
        request = build.nodes(self.name, kind, min_influence, layers, positions, token, pinned, order)
        found = self._wire.pages(self._wire.circuits.ListNodes, request)
        return tuple([decode(Node, node) async for page in found for node in page.nodes])

    async def find(self, *addresses: str) -> tuple[int, ...]:
        """Indices of nodes by their addresses, as `12:345@6`, `my-set:12:345@6`, `error:3@6` or `token@2`.

        Raises:
            InvalidRequestError: If a text is no address, the circuit has no such node, or several sets have.
        """
        return found_nodes(self.info, await self.nodes(), addresses)

    async def edges(
        self, *, source: int | None = None, target: int | None = None, min_weight: float | None = None
    ) -> tuple[Edge, ...]:
        """Its edges, heaviest first; `source` and `target` are node indices."""
        request = build.edges(self.name, source, target, min_weight)
        found = self._wire.pages(self._wire.circuits.ListEdges, request)
        return tuple([decode(Edge, edge) async for page in found for edge in page.edges])

    async def around(
        self,
        node: int,
        *,
        ancestors: int = 1,
        descendants: int = 1,
        min_weight: float = 0.0,
        max_nodes: int = 1000,
    ) -> Subgraph:
        """The part around a node, so many steps against and along the edges.

        Raises:
            NothingMatchedError: If no edge that heavy is there.
        """
        return await self._part(build.around(self.name, node, ancestors, descendants, min_weight, max_nodes))

    async def between(
        self, source: int, target: int, *, paths: int = 10, min_weight: float = 0.0, max_nodes: int = 1000
    ) -> Subgraph:
        """All paths from one node to another, the strongest listed.

        Raises:
            NothingMatchedError: If no path leads there.
        """
        return await self._part(build.between(self.name, source, target, paths, min_weight, max_nodes))

    async def annotations(self) -> CircuitAnnotations:
        """Pins, labels and groups."""
        return await self._said(
            self._wire.circuits.GetAnnotations, pb.GetAnnotationsRequest(circuit=self.name)
        )

    async def pin(self, *nodes: int, author: str = "") -> CircuitAnnotations:
        """Pin nodes: pruning and exports keep them."""
        return await self._said(self._wire.circuits.PinNodes, build.pin(self.name, nodes, author))

    async def unpin(self, *nodes: int) -> CircuitAnnotations:
        """Take pins off."""
        request = pb.UnpinNodesRequest(circuit=self.name, nodes=listed(nodes, "nodes"))
        return await self._said(self._wire.circuits.UnpinNodes, request)

    async def label(self, node: int, text: str, *, author: str = "") -> CircuitAnnotations:
        """Call a node something."""
        return await self._said(self._wire.circuits.LabelNode, build.label(self.name, node, text, author))

    async def unlabel(self, node: int) -> CircuitAnnotations:
        """Take a node's label off.

        Raises:
            ResourceNotFoundError: If it has none.
        """
        return await self._said(self._wire.circuits.LabelNode, build.label(self.name, node, "", ""))

    async def group(self, name: str, *nodes: int, author: str = "") -> CircuitAnnotations:
        """Make a group of nodes, or make it anew; they leave the groups that they were in."""
        return await self._said(self._wire.circuits.GroupCircuit, build.group(self.name, name, nodes, author))

    async def group_automatically(
        self,
        *,
        by: str = "directions",
        min_similarity: float | None = None,
        max_layers_apart: int | None = None,
        max_positions_apart: int | None = None,
        max_nodes: int | None = None,
        min_shown: float | None = None,
        author: str = "",
    ) -> CircuitAnnotations:
        """Group features that are alike and close; groups made by hand keep their nodes.

        The answer has the scores of all groups.

        Args:
            by: `directions` (what features read and write; the model must be loaded) or `edges`.
            min_similarity: Groups are merged while they are on average that similar; unset 0.5.
            max_layers_apart: Unset 3.
            max_positions_apart: Unset 0.
            max_nodes: Only so many features, the most influential; unset 500.
            min_shown: Instead of `min_similarity`: the share of path mass that the picture must show, by
                which the least similarity of 0.1, 0.2, ... 0.9 is chosen.
            author: Who makes them.

        Raises:
            NothingMatchedError: If no two features are that similar, or no groups show enough.
        """
        request = build.group_automatically(
            self.name,
            by,
            author,
            min_similarity=min_similarity,
            max_layers_apart=max_layers_apart,
            max_positions_apart=max_positions_apart,
            max_nodes=max_nodes,
            min_shown=min_shown,
        )
        return await self._said(self._wire.circuits.GroupCircuit, request)

    async def group_scores(self) -> GroupingScores:
        """Scores of its groups, found or made by hand, beside partitions of the same sizes.

        Raises:
            InvalidRequestError: If no group has two nodes.
            UnsupportedOptionError: If the circuit is too large.
        """
        request = pb.GetAnnotationsRequest(circuit=self.name, scores=True)
        found = await self._wire.call(self._wire.circuits.GetAnnotations, request)
        return decode(GroupingScores, found.scores)

    async def ungroup(self, name: str) -> CircuitAnnotations:
        """Dissolve a group.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """
        return await self._said(self._wire.circuits.UngroupCircuit, build.ungroup(self.name, name))

    async def export_annotations(self) -> dict[str, Any]:
        """Annotations as a document: `pinnedIds`, `supernodes`, `clerps` and `authorship`."""
        request = pb.ExportAnnotationsRequest(circuit=self.name)
        written = await self._wire.call(self._wire.circuits.ExportAnnotations, request)
        document: dict[str, Any] = json.loads(written.document)
        return document

    async def import_annotations(
        self, source: Path | Mapping[str, Any], *, author: str = ""
    ) -> tuple[CircuitAnnotations, tuple[str, ...]]:
        """Add annotations of a document, a graph file, or its `qParams`.

        Returns:
            What is said now, and the ids that the circuit does not have.
        """
        request = build.import_annotations(self.name, source, author)
        found = await self._wire.call(self._wire.circuits.ImportAnnotations, request)
        return decode(CircuitAnnotations, found.annotations), tuple(found.skipped)

    async def diff(
        self,
        other: AsyncStoredCircuit | str,
        *,
        sum_positions: bool = False,
        max_nodes: int = 200,
        max_edges: int = 500,
    ) -> CircuitDiff:
        """What this circuit and another have in common, and what is different.

        Args:
            other: The second circuit.
            sum_positions: Match nodes whatever their position: for prompts that do not line up.
            max_nodes: At most so many nodes, the most changed.
            max_edges: At most so many edges, the most changed.
        """
        name = other.name if isinstance(other, AsyncStoredCircuit) else resource("circuits", other)
        request = build.diff(self.name, name, sum_positions, max_nodes, max_edges)
        return decode(CircuitDiff, await self._wire.call(self._wire.circuits.DiffCircuits, request))

    async def delete(self) -> None:
        """Forget it, what was said about it, and its verifications."""
        request = pb.DeleteCircuitRequest(name=self.name)
        await self._wire.call(self._wire.circuits.DeleteCircuit, request)

    async def _part(self, request: pb.QuerySubgraphRequest) -> Subgraph:
        found = [page async for page in self._wire.pages(self._wire.circuits.QuerySubgraph, request)]
        return decode(Subgraph, build.joined(found))

    async def _said(self, method: Any, request: Any) -> CircuitAnnotations:
        return decode(CircuitAnnotations, await self._wire.call(method, request))

"""A circuit that was found, awaited."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trephine.client import requests
from trephine.client.aio.artifacts import AsyncArtifacts
from trephine.client.aio.features import AsyncModelFeatures
from trephine.client.aio.operations import AsyncOperation
from trephine.client.aio.wire import AsyncWire
from trephine.client.circuit import export_request, files_of, node_kind, strongest
from trephine.client.decoding import decode
from trephine.client.downloads import write_file
from trephine.client.operations import OnProgress
from trephine.client.selection import Selection
from trephine.client.types import CircuitInfo, Edge, FeatureRef, Node, NodeKind, Proposal
from trephine.v1 import circuit_service_pb2


class AsyncCircuit:
    """The circuit behind one next-token choice, stored on the server."""

    def __init__(self, wire: AsyncWire, info: CircuitInfo) -> None:
        self._wire = wire
        self.info = info

    @property
    def name(self) -> str:
        """Resource name, `circuits/...`."""
        return self.info.name

    def to_json(self) -> str:
        """The circuit without nodes and edges, in proto-JSON."""
        return self.info.to_json()

    async def nodes(
        self, *, kind: NodeKind | None = None, min_influence: float | None = None
    ) -> tuple[Node, ...]:
        """Its nodes, most influential first."""
        request = circuit_service_pb2.ListNodesRequest(
            circuit=self.name, kind=node_kind(kind), min_influence=min_influence, page_size=1000
        )
        pages = self._wire.pages(self._wire.circuits.ListNodes, request)
        return tuple([decode(Node, node) async for page in pages for node in page.nodes])

    async def edges(
        self, *, source: int | None = None, target: int | None = None, min_weight: float | None = None
    ) -> tuple[Edge, ...]:
        """Its edges, heaviest first; `source` and `target` are node indices."""
        request = circuit_service_pb2.ListEdgesRequest(
            circuit=self.name, source=source, target=target, min_weight=min_weight, page_size=10_000
        )
        pages = self._wire.pages(self._wire.circuits.ListEdges, request)
        return tuple([decode(Edge, edge) async for page in pages for edge in page.edges])

    async def html(self, *, node_threshold: float | None = None, edge_threshold: float | None = None) -> str:
        """One self-contained interactive page, pruned to these cumulative influences."""
        return (await self._render("HTML", node_threshold, edge_threshold)).decode()

    async def json(
        self, *, node_threshold: float | None = None, edge_threshold: float | None = None
    ) -> dict[str, Any]:
        """The pruned graph in the Neuronpedia / circuit-tracer schema."""
        graph: dict[str, Any] = json.loads(await self._render("JSON", node_threshold, edge_threshold))
        return graph

    async def save(self, path: str | Path, *, feature_pages: int = 0) -> tuple[Path, ...]:
        """Write `circuit.html` and `circuit.json` into a folder, or one `.html` or `.json` file.

        Args:
            path: The folder or file.
            feature_pages: Write the pages of so many of its most influential features beside it; the
                circuit's page links to them.
        """
        linked: tuple[FeatureRef, ...] = ()
        if feature_pages:
            linked = strongest(await self.nodes(kind=NodeKind.FEATURE), feature_pages)
        written = []
        for form, file in files_of(Path(path)):
            data = await self._render(form, None, None, linked)
            written.append(await asyncio.to_thread(write_file, file, data))
        if linked:
            features = AsyncModelFeatures(self._wire, self.info.version.model, self.info.replacement)
            written += await features.save_pages(linked, written[0].parent)
        return tuple(written)

    async def shippable(self, *, on_progress: OnProgress | None = None, **bounds: Any) -> Selection:
        """The smallest all-positions ablation that could ship, with its curve.

        `bounds` are those of `start_shippable`.
        """
        return await (await self.start_shippable(**bounds)).result(on_progress=on_progress)

    async def start_shippable(
        self,
        *,
        min_drop: float | None = None,
        max_retain_kl: float | None = None,
        max_features: int | None = None,
        retain_text: str | None = None,
        request_id: str | None = None,
    ) -> AsyncOperation[Selection]:
        """Start the search for what could ship; the arguments are those of the sync client."""
        request = requests.propose(
            request_id,
            circuit=self.name,
            min_drop=min_drop,
            max_retain_kl=max_retain_kl,
            max_features=max_features,
            retain_text=retain_text,
        )
        message = await self._wire.call(self._wire.edits.ProposeEdit, request)
        return AsyncOperation(self._wire, message, self._selection)

    def _selection(self, message: Any) -> Selection:
        return Selection(proposal=decode(Proposal, message), model=self.info.version.model, circuit=self.name)

    async def _render(
        self,
        form: str,
        node_threshold: float | None,
        edge_threshold: float | None,
        feature_pages: Sequence[FeatureRef] = (),
    ) -> bytes:
        request = export_request(self.name, form, node_threshold, edge_threshold, feature_pages)
        rendered = await self._wire.call(self._wire.circuits.ExportCircuit, request)
        return await AsyncArtifacts(self._wire).read(rendered.artifact)


class AsyncCircuits:
    """Every stored circuit."""

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    async def get(self, name: str) -> AsyncCircuit:
        """One circuit by name."""
        request = circuit_service_pb2.GetCircuitRequest(name=requests.resource("circuits", name))
        found = await self._wire.call(self._wire.circuits.GetCircuit, request)
        return AsyncCircuit(self._wire, decode(CircuitInfo, found))

    async def list(self) -> tuple[AsyncCircuit, ...]:
        """All circuits, newest first."""
        request = circuit_service_pb2.ListCircuitsRequest(page_size=500)
        pages = self._wire.pages(self._wire.circuits.ListCircuits, request)
        return tuple(
            [
                AsyncCircuit(self._wire, decode(CircuitInfo, circuit))
                async for page in pages
                for circuit in page.circuits
            ]
        )

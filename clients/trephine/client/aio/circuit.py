"""A circuit that was found: its nodes and edges in pages, its pages and files, what could ship."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trephine.client import circuit_requests, requests
from trephine.client.aio.artifacts import AsyncArtifacts
from trephine.client.aio.blocking import run_blocking
from trephine.client.aio.circuit_verification import AsyncVerifiableCircuit, get_verification
from trephine.client.aio.circuit_views import AsyncExplainableCircuit
from trephine.client.aio.features import AsyncModelFeatures
from trephine.client.aio.notebooks import circuit_view
from trephine.client.aio.operations import AsyncOperation
from trephine.client.aio.wire import AsyncWire
from trephine.client.circuit_files import export_request, files_of, strongest
from trephine.client.decoding import decode
from trephine.client.downloads import write_file
from trephine.client.selection import Selection
from trephine.client.set_ids import AnySet
from trephine.client.types import CircuitInfo, CircuitVerification, FeatureRef, NodeKind, Proposal
from trephine.client.watches import OnProgress
from trephine.v1 import circuit_queries_pb2, circuit_service_pb2


class AsyncCircuit(AsyncExplainableCircuit, AsyncVerifiableCircuit):
    """The circuit behind one next-token choice, stored on the server."""

    def to_json(self) -> str:
        """The circuit without nodes and edges, in proto-JSON."""
        return self.info.to_json()

    async def prune(
        self,
        *,
        node_threshold: float | None = None,
        edge_threshold: float | None = None,
        max_nodes: int | None = None,
        max_edges: int | None = None,
        keep: Sequence[int] = (),
        validate_only: bool = False,
    ) -> AsyncCircuit:
        """A smaller circuit, stored beside this one, with its pins, labels and groups; nothing is recomputed.

        Args:
            node_threshold: Share of the influence that the kept nodes reach; unset 0.8.
            edge_threshold: The same for edges; unset 0.98.
            max_nodes: At most so many features and error nodes; unset: no limit.
            max_edges: At most so many edges, those that carry most influence; unset: no limit.
            keep: Nodes that are kept beside the pinned ones.
            validate_only: Only count what would be left; the circuit has no name then.
        """
        request = circuit_requests.prune(
            self.name, node_threshold, edge_threshold, max_nodes, max_edges, keep, validate_only
        )
        pruned = await self._wire.call(self._wire.circuits.PruneCircuit, request)
        return AsyncCircuit(self._wire, decode(CircuitInfo, pruned))

    async def html(self, *, node_threshold: float | None = None, edge_threshold: float | None = None) -> str:
        """One self-contained interactive page, pruned to these cumulative influences."""
        rendered = await self._render("HTML", node_threshold, edge_threshold)
        return rendered.decode()

    async def json(
        self, *, node_threshold: float | None = None, edge_threshold: float | None = None
    ) -> dict[str, Any]:
        """The pruned graph in the Neuronpedia / circuit-tracer schema."""
        graph: dict[str, Any] = json.loads(await self._render("JSON", node_threshold, edge_threshold))
        return graph

    async def graphml(
        self, *, node_threshold: float | None = None, edge_threshold: float | None = None
    ) -> str:
        """The pruned graph as GraphML."""
        rendered = await self._render("GRAPHML", node_threshold, edge_threshold)
        return rendered.decode()

    async def save(
        self,
        path: str | Path,
        *,
        feature_pages: int = 0,
        node_threshold: float | None = None,
        edge_threshold: float | None = None,
    ) -> tuple[Path, ...]:
        """Write `circuit.html` and `circuit.json` into a folder, or one `.html`, `.json` or `.graphml` file.

        Args:
            path: The folder or file.
            feature_pages: Write the pages of so many of its most influential features beside it; the
                circuit's page links to them.
            node_threshold: Share of the influence that the nodes in the files reach; unset 0.8, or all of a
                circuit that was pruned or imported.
            edge_threshold: The same for edges; unset 0.98, or all. With both 1 everything is written.
        """
        bounds = node_threshold, edge_threshold
        linked: tuple[FeatureRef, ...] = ()
        if feature_pages:
            linked = strongest(await self.nodes(kind=NodeKind.FEATURE), feature_pages)
        written = []
        for form, file in files_of(Path(path)):
            data = await self._render(form, *bounds, linked)
            written.append(await run_blocking(write_file, file, data))
        if linked:
            features = AsyncModelFeatures(self._wire, self.info.version.model, self.info.replacement)
            written += await features.save_pages(linked, written[0].parent)
        return tuple(written)

    async def shippable(self, *, on_progress: OnProgress | None = None, **bounds: Any) -> Selection:
        """The smallest all-positions ablation that could ship, with its curve.

        `bounds` are those of `start_shippable`.
        """
        started = await self.start_shippable(**bounds)
        return await started.result(on_progress=on_progress)

    async def start_shippable(
        self,
        *,
        min_drop: float | None = None,
        max_retain_kl: float | None = None,
        max_features: int | None = None,
        retain_text: str | None = None,
        request_id: str | None = None,
    ) -> AsyncOperation[Selection]:
        """Start the search for what could ship.

        Args:
            min_drop: Smallest share of the baseline that must be gone; unset 0.5.
            max_retain_kl: Largest damage on other text, nats per token; unset 0.1.
            max_features: Candidates that are measured, and the longest prefix that is tried; unset 48.
            retain_text: The other text; unset the built-in one.
            request_id: The same id again returns the same operation.
        """
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

    def _repr_html_(self) -> str | None:
        return circuit_view(self)


class AsyncCircuits:
    """Every stored circuit."""

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    async def verification(self, name: str) -> CircuitVerification:
        """One verification of a circuit by name."""
        return await get_verification(self._wire, name)

    async def get(self, name: str) -> AsyncCircuit:
        """One circuit by name."""
        request = circuit_service_pb2.GetCircuitRequest(name=requests.resource("circuits", name))
        found = await self._wire.call(self._wire.circuits.GetCircuit, request)
        return AsyncCircuit(self._wire, decode(CircuitInfo, found))

    async def list(
        self, *, model: str = "", replacement: AnySet = "", prompt: str = "", parent: str = ""
    ) -> tuple[AsyncCircuit, ...]:
        """Stored circuits, newest first.

        Args:
            model: Only of this model.
            replacement: Only over this replacement set.
            prompt: Only of prompts that hold this text.
            parent: Only what was pruned from this circuit.
        """
        request = circuit_requests.listing(model, replacement, prompt, parent)
        pages = self._wire.pages(self._wire.circuits.ListCircuits, request)
        return tuple(
            [
                AsyncCircuit(self._wire, decode(CircuitInfo, circuit))
                async for page in pages
                for circuit in page.circuits
            ]
        )

    async def import_graph(self, source: Path | bytes) -> AsyncCircuit:
        """Store a graph of circuit-tracer or Neuronpedia as a read-only circuit; nothing of it is verified.

        Raises:
            LocalFileError: If the file cannot be read.
            InvalidRequestError: If it is no such graph.
        """
        artifact = await AsyncArtifacts(self._wire).upload(source, media_type="application/json")
        request = circuit_queries_pb2.ImportCircuitRequest(artifact=artifact)
        imported = await self._wire.call(self._wire.circuits.ImportCircuit, request)
        return AsyncCircuit(self._wire, decode(CircuitInfo, imported))

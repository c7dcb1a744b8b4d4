"""A circuit that was found: its nodes and edges in pages, its pages and files, what could ship."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trephine.client import circuit_requests, requests
from trephine.client.artifacts import Artifacts
from trephine.client.circuit_verification import VerifiableCircuit, get_verification
from trephine.client.circuit_views import ExplainableCircuit
from trephine.client.decoding import decode
from trephine.client.downloads import write_file
from trephine.client.feature_requests import feature_ref
from trephine.client.features import ModelFeatures
from trephine.client.operations import OnProgress, Operation
from trephine.client.paging import pages
from trephine.client.selection import Selection
from trephine.client.set_ids import AnySet
from trephine.client.types import CircuitInfo, CircuitVerification, FeatureRef, Node, NodeKind, Proposal
from trephine.client.views import circuit_html
from trephine.client.wire import Wire
from trephine.v1 import circuit_queries_pb2, circuit_service_pb2


class Circuit(ExplainableCircuit, VerifiableCircuit):
    """The circuit behind one next-token choice, stored on the server."""

    def to_json(self) -> str:
        """The circuit without nodes and edges, in proto-JSON."""
        return self.info.to_json()

    def prune(
        self,
        *,
        node_threshold: float | None = None,
        edge_threshold: float | None = None,
        max_nodes: int | None = None,
        max_edges: int | None = None,
        keep: Sequence[int] = (),
        validate_only: bool = False,
    ) -> Circuit:
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
        pruned = self._wire.call(self._wire.circuits.PruneCircuit, request)
        return Circuit(self._wire, decode(CircuitInfo, pruned))

    def html(self, *, node_threshold: float | None = None, edge_threshold: float | None = None) -> str:
        """One self-contained interactive page, pruned to these cumulative influences."""
        return self._render("HTML", node_threshold, edge_threshold).decode()

    def json(
        self, *, node_threshold: float | None = None, edge_threshold: float | None = None
    ) -> dict[str, Any]:
        """The pruned graph in the Neuronpedia / circuit-tracer schema."""
        graph: dict[str, Any] = json.loads(self._render("JSON", node_threshold, edge_threshold))
        return graph

    def graphml(self, *, node_threshold: float | None = None, edge_threshold: float | None = None) -> str:
        """The pruned graph as GraphML."""
        return self._render("GRAPHML", node_threshold, edge_threshold).decode()

    def save(
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
        linked = strongest(self.nodes(kind=NodeKind.FEATURE), feature_pages) if feature_pages else ()
        files = [write_file(file, self._render(form, *bounds, linked)) for form, file in files_of(Path(path))]
        if linked:
            features = ModelFeatures(self._wire, self.info.version.model, self.info.replacement)
            files += features.save_pages(linked, files[0].parent)
        return tuple(files)

    def shippable(self, *, on_progress: OnProgress | None = None, **bounds: Any) -> Selection:
        """The smallest all-positions ablation that could ship, with its curve.

        `bounds` are those of `start_shippable`.
        """
        return self.start_shippable(**bounds).result(on_progress=on_progress)

    def start_shippable(
        self,
        *,
        min_drop: float | None = None,
        max_retain_kl: float | None = None,
        max_features: int | None = None,
        retain_text: str | None = None,
        request_id: str | None = None,
    ) -> Operation[Selection]:
        """Start the search for what could ship.

        Args:
            min_drop: Smallest share of the baseline that must be gone; unset 0.5.
            max_retain_kl: Largest damage on other text, nats per token; unset 0.1.
            max_features: Longest prefix that is tried; unset 64.
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
        message = self._wire.call(self._wire.edits.ProposeEdit, request)
        return Operation(self._wire, message, self._selection)

    def _selection(self, message: Any) -> Selection:
        return Selection(proposal=decode(Proposal, message), model=self.info.version.model, circuit=self.name)

    def _render(
        self,
        form: str,
        node_threshold: float | None,
        edge_threshold: float | None,
        feature_pages: Sequence[FeatureRef] = (),
    ) -> bytes:
        request = export_request(self.name, form, node_threshold, edge_threshold, feature_pages)
        rendered = self._wire.call(self._wire.circuits.ExportCircuit, request)
        return Artifacts(self._wire).read(rendered.artifact)

    def _repr_html_(self) -> str:
        return circuit_html(self.info, self.nodes(kind=NodeKind.FEATURE)[:20])


def files_of(path: Path) -> tuple[tuple[str, Path], ...]:
    """Which forms are written where: a file by its suffix, or both into a folder."""
    if path.suffix in {".html", ".json", ".graphml"}:
        return ((path.suffix[1:].upper(), path),)
    return ("HTML", path / "circuit.html"), ("JSON", path / "circuit.json")


def strongest(nodes: Sequence[Node], count: int) -> tuple[FeatureRef, ...]:
    """The features of the first nodes, each once."""
    features = dict.fromkeys(node.feature for node in nodes if node.feature is not None)
    return tuple(features)[:count]


def export_request(
    name: str,
    form: str,
    node_threshold: float | None,
    edge_threshold: float | None,
    feature_pages: Sequence[FeatureRef] = (),
) -> circuit_service_pb2.ExportCircuitRequest:
    """Ask for a rendered circuit; `form` is `HTML`, `JSON` or `GRAPHML`."""
    return circuit_service_pb2.ExportCircuitRequest(
        name=name,
        format=circuit_service_pb2.CircuitFormat.Value(f"CIRCUIT_FORMAT_{form}"),
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
        feature_pages=[feature_ref(feature, "") for feature in feature_pages],
    )


class Circuits:
    """Every stored circuit."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def verification(self, name: str) -> CircuitVerification:
        """One verification of a circuit by name."""
        return get_verification(self._wire, name)

    def get(self, name: str) -> Circuit:
        """One circuit by name."""
        request = circuit_service_pb2.GetCircuitRequest(name=requests.resource("circuits", name))
        return Circuit(
            self._wire, decode(CircuitInfo, self._wire.call(self._wire.circuits.GetCircuit, request))
        )

    def list(
        self, *, model: str = "", replacement: AnySet = "", prompt: str = "", parent: str = ""
    ) -> tuple[Circuit, ...]:
        """Stored circuits, newest first.

        Args:
            model: Only of this model.
            replacement: Only over this replacement set.
            prompt: Only of prompts that hold this text.
            parent: Only what was pruned from this circuit.
        """
        request = circuit_requests.listing(model, replacement, prompt, parent)
        found = pages(self._wire, self._wire.circuits.ListCircuits, request)
        return tuple(
            Circuit(self._wire, decode(CircuitInfo, circuit)) for page in found for circuit in page.circuits
        )

    def import_graph(self, source: Path | bytes) -> Circuit:
        """Store a graph of circuit-tracer or Neuronpedia as a read-only circuit; nothing of it is verified.

        Raises:
            LocalFileError: If the file cannot be read.
            InvalidRequestError: If it is no such graph.
        """
        artifact = Artifacts(self._wire).upload(source, media_type="application/json")
        request = circuit_queries_pb2.ImportCircuitRequest(artifact=artifact)
        imported = self._wire.call(self._wire.circuits.ImportCircuit, request)
        return Circuit(self._wire, decode(CircuitInfo, imported))

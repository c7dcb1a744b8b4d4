"""A circuit that was found: its nodes and edges in pages, its pages and files, what could ship."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trephine.client import requests
from trephine.client.artifacts import Artifacts
from trephine.client.decoding import decode
from trephine.client.downloads import write_file
from trephine.client.feature_requests import feature_ref
from trephine.client.features import ModelFeatures
from trephine.client.operations import OnProgress, Operation
from trephine.client.paging import pages
from trephine.client.selection import Selection
from trephine.client.types import CircuitInfo, Edge, FeatureRef, Node, NodeKind, Proposal
from trephine.client.views import circuit_html
from trephine.client.wire import Wire
from trephine.v1 import circuit_service_pb2


class Circuit:
    """The circuit behind one next-token choice, stored on the server."""

    def __init__(self, wire: Wire, info: CircuitInfo) -> None:
        self._wire = wire
        self.info = info

    @property
    def name(self) -> str:
        """Resource name, `circuits/...`."""
        return self.info.name

    def to_json(self) -> str:
        """The circuit without nodes and edges, in proto-JSON."""
        return self.info.to_json()

    def nodes(self, *, kind: NodeKind | None = None, min_influence: float | None = None) -> tuple[Node, ...]:
        """Its nodes, most influential first."""
        request = circuit_service_pb2.ListNodesRequest(
            circuit=self.name, kind=node_kind(kind), min_influence=min_influence, page_size=1000
        )
        found = pages(self._wire, self._wire.circuits.ListNodes, request)
        return tuple(decode(Node, node) for page in found for node in page.nodes)

    def edges(
        self, *, source: int | None = None, target: int | None = None, min_weight: float | None = None
    ) -> tuple[Edge, ...]:
        """Its edges, heaviest first; `source` and `target` are node indices."""
        request = circuit_service_pb2.ListEdgesRequest(
            circuit=self.name, source=source, target=target, min_weight=min_weight, page_size=10_000
        )
        found = pages(self._wire, self._wire.circuits.ListEdges, request)
        return tuple(decode(Edge, edge) for page in found for edge in page.edges)

    def html(self, *, node_threshold: float | None = None, edge_threshold: float | None = None) -> str:
        """One self-contained interactive page, pruned to these cumulative influences."""
        return self._render("HTML", node_threshold, edge_threshold).decode()

    def json(
        self, *, node_threshold: float | None = None, edge_threshold: float | None = None
    ) -> dict[str, Any]:
        """The pruned graph in the Neuronpedia / circuit-tracer schema."""
        graph: dict[str, Any] = json.loads(self._render("JSON", node_threshold, edge_threshold))
        return graph

    def save(self, path: str | Path, *, feature_pages: int = 0) -> tuple[Path, ...]:
        """Write `circuit.html` and `circuit.json` into a folder, or one `.html` or `.json` file.

        Args:
            path: The folder or file.
            feature_pages: Write the pages of so many of its most influential features beside it; the
                circuit's page links to them.
        """
        linked = strongest(self.nodes(kind=NodeKind.FEATURE), feature_pages) if feature_pages else ()
        files = [
            write_file(file, self._render(form, None, None, linked)) for form, file in files_of(Path(path))
        ]
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
    if path.suffix in {".html", ".json"}:
        return ((path.suffix[1:].upper(), path),)
    return ("HTML", path / "circuit.html"), ("JSON", path / "circuit.json")


def node_kind(kind: NodeKind | None) -> Any:
    """The contract's number of a node kind; None means any."""
    name = "NODE_KIND_UNSPECIFIED" if kind is None else f"NODE_KIND_{kind.value.upper()}"
    return circuit_service_pb2.NodeKind.Value(name)


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
    """Ask for a rendered circuit; `form` is `HTML` or `JSON`."""
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

    def get(self, name: str) -> Circuit:
        """One circuit by name."""
        request = circuit_service_pb2.GetCircuitRequest(name=requests.resource("circuits", name))
        return Circuit(
            self._wire, decode(CircuitInfo, self._wire.call(self._wire.circuits.GetCircuit, request))
        )

    def list(self) -> tuple[Circuit, ...]:
        """All circuits, newest first."""
        request = circuit_service_pb2.ListCircuitsRequest(page_size=500)
        found = pages(self._wire, self._wire.circuits.ListCircuits, request)
        return tuple(
            Circuit(self._wire, decode(CircuitInfo, circuit)) for page in found for circuit in page.circuits
        )

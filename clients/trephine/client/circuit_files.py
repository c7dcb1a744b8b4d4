"""Files that a circuit is written to, and the request for one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trephine.client.errors import InvalidRequestError
from trephine.client.feature_requests import feature_ref
from trephine.client.types import FeatureRef, Node
from trephine.v1 import circuit_service_pb2


def files_of(path: Path) -> tuple[tuple[str, Path], ...]:
    """Which forms are written where: a file by its suffix, or both into a folder."""
    if path.suffix in {".html", ".json", ".graphml"}:
        return ((path.suffix[1:].upper(), path),)
    return ("HTML", path / "circuit.html"), ("JSON", path / "circuit.json")


def strongest(nodes: Sequence[Node], count: int) -> tuple[FeatureRef, ...]:
    """The features of the first nodes, each once, and at most so many.

    Raises:
        InvalidRequestError: If the count is negative.
    """
    if count < 0:  # a slice would take it for all but so many
        raise InvalidRequestError(f"feature_pages must not be negative, got {count}")
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

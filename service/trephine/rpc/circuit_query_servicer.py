"""The part of CircuitService that reads, compares and annotates circuits that are stored."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

from google.protobuf.empty_pb2 import Empty

from trephine.app.circuits.circuit_pruning import in_words
from trephine.app.circuits.circuits import EdgeList
from trephine.app.service import Service
from trephine.domain.circuit_annotations import Annotations
from trephine.domain.circuit_queries import Between, NodeFilter
from trephine.domain.errors import InvalidRequestError, UnsupportedOptionError
from trephine.rpc.calls import Context
from trephine.rpc.paging import Paging, page
from trephine.rpc.wire.circuit_queries import (
    annotations_to_wire,
    automatic_from_wire,
    diff_to_wire,
    document_from_wire,
    nodes_from_wire,
    nodes_to_wire,
    path_to_wire,
    pruning_from_wire,
    question_from_wire,
)
from trephine.rpc.wire.circuits import circuit_to_wire, edge_to_wire
from trephine.rpc.wire.fields import at_least, required, resource_id
from trephine.v1 import circuit_queries_pb2 as pb
from trephine.v1 import circuit_service_pb2 as service_pb

_NODES, _EDGES = Paging(default=100, largest=1000), Paging(default=1000, largest=10_000)


class CircuitQueries:
    """Methods of `CircuitServicer` on stored circuits; no model is needed, but for groups by direction."""

    def __init__(self, service: Service) -> None:
        self._circuits = service.circuits
        self._views = service.circuit_views
        self._annotations = service.circuit_annotations

    async def DeleteCircuit(self, request: pb.DeleteCircuitRequest, context: Context) -> Empty:
        """Forget a circuit."""
        await self._circuits.delete(resource_id(request.name, "circuits"))
        return Empty()

    async def ListNodes(
        self, request: service_pb.ListNodesRequest, context: Context
    ) -> service_pb.ListNodesResponse:
        """List nodes by a filter, in the order that is asked for."""
        wanted = nodes_from_wire(request)
        stored = await self._circuits.get(resource_id(request.circuit, "circuits", "circuit"))
        listed = await self._views.nodes(stored, wanted)
        found = page(
            listed,
            size=request.page_size,
            token=request.page_token,
            question=("ListNodes", request.circuit, *_told(wanted)),
            rule=_NODES,
            key=lambda listed: str(listed.index),  # pins and labels, which it may be filtered by, can change
        )
        said = await self._circuits.annotations(stored.name)
        return service_pb.ListNodesResponse(
            nodes=nodes_to_wire(found.items, said),
            next_page_token=found.next_token,
            total_size=len(listed),
        )

    async def QuerySubgraph(
        self, request: pb.QuerySubgraphRequest, context: Context
    ) -> service_pb.QuerySubgraphResponse:
        """Return the part around a node, or between two; nodes and paths with the first page of edges."""
        question = question_from_wire(request)
        most = min(at_least(request.max_nodes, 0, "max_nodes") or 1000, 5000)
        circuit = resource_id(request.circuit, "circuits", "circuit")
        asked = question
        if request.page_token and isinstance(question, Between):
            asked = replace(question, paths=0)  # paths came with the first page
        stored, part = await self._views.subgraph(circuit, asked)
        nodes, edges = await asyncio.to_thread(part.largest, stored.circuit, most)
        found = page(
            EdgeList(stored.circuit.edges, edges),
            size=request.page_size,
            token=request.page_token,
            question=("QuerySubgraph", request.circuit, question, most),
            rule=_EDGES,
        )
        response = service_pb.QuerySubgraphResponse(
            edges=[edge_to_wire(edge) for edge in found.items],
            n_nodes=len(part.nodes),
            n_edges=len(part.edges),
            cut=len(nodes) < len(part.nodes),
            n_paths=part.n_paths,
            share=part.share,
            absolute_share=part.absolute_share,
            next_page_token=found.next_token,
        )
        if not request.page_token:
            kept = frozenset(nodes.tolist())
            listed = [one for one in self._circuits.nodes(stored) if one.index in kept]
            response.nodes.extend(nodes_to_wire(listed, await self._circuits.annotations(stored.name)))
            response.paths.extend(path_to_wire(path) for path in part.paths)
        return response

    async def PruneCircuit(self, request: pb.PruneCircuitRequest, context: Context) -> service_pb.Circuit:
        """Store what is left after pruning, or count it."""
        circuit, bounds = resource_id(request.circuit, "circuits", "circuit"), pruning_from_wire(request)
        if not request.validate_only:
            return circuit_to_wire(await self._views.prune(circuit, bounds))
        kept, said = await self._views.kept(circuit, bounds), await self._circuits.annotations(circuit)
        held = len(said.pinned | frozenset(bounds.keep))
        return service_pb.Circuit(
            n_nodes=len(kept.nodes),
            n_edges=len(kept.edges),
            provenance=pb.Provenance(
                origin="pruned", parent=f"circuits/{circuit}", how=in_words(bounds, held)
            ),
        )

    async def DiffCircuits(
        self, request: pb.DiffCircuitsRequest, context: Context
    ) -> service_pb.DiffCircuitsResponse:
        """Compare two circuits."""
        names = [resource_id(getattr(request, side), "circuits", side) for side in ("first", "second")]
        nodes = min(at_least(request.max_nodes, 0, "max_nodes") or 200, 5000)
        edges = min(at_least(request.max_edges, 0, "max_edges") or 500, 10_000)
        *sides, diff = await self._views.diff(names[0], names[1], sum_positions=request.sum_positions)
        return diff_to_wire((sides[0], sides[1]), diff, request.sum_positions, nodes, edges)

    async def ImportCircuit(self, request: pb.ImportCircuitRequest, context: Context) -> service_pb.Circuit:
        """Store a graph of another tool."""
        artifact = required(request.artifact, "artifact")
        return circuit_to_wire(await self._views.import_graph(artifact))

    # --- annotations ------------------------------------------------------------------------------

    async def GetAnnotations(
        self, request: pb.GetAnnotationsRequest, context: Context
    ) -> pb.CircuitAnnotations:
        """Return pins, labels and groups, and scores of these if asked."""
        circuit = _circuit(request)
        said = await self._annotations.get(circuit)
        scores = await self._annotations.group_scores(circuit) if request.scores else None
        return annotations_to_wire(circuit, said, scores)

    async def PinNodes(self, request: pb.PinNodesRequest, context: Context) -> pb.CircuitAnnotations:
        """Pin nodes."""
        circuit = _circuit(request)
        if not request.nodes:
            raise InvalidRequestError("name at least one node", field="nodes")
        said = await self._annotations.pin(circuit, request.nodes, request.author)
        return annotations_to_wire(circuit, said)

    async def UnpinNodes(self, request: pb.UnpinNodesRequest, context: Context) -> pb.CircuitAnnotations:
        """Take pins off."""
        circuit = _circuit(request)
        return annotations_to_wire(circuit, await self._annotations.unpin(circuit, request.nodes))

    async def LabelNode(self, request: pb.LabelNodeRequest, context: Context) -> pb.CircuitAnnotations:
        """Call a node something, or take its label off."""
        circuit = _circuit(request)
        said = await self._annotations.label(circuit, request.node, request.text, request.author)
        return annotations_to_wire(circuit, said)

    async def GroupCircuit(self, request: pb.GroupCircuitRequest, context: Context) -> pb.CircuitAnnotations:
        """Group nodes by hand or by likeness."""
        circuit = _circuit(request)
        match request.WhichOneof("way"):
            case "by_hand":
                hand = request.by_hand
                said = await self._annotations.group(circuit, hand.name, hand.nodes, request.author)
            case "automatic":
                how = automatic_from_wire(request.automatic)
                said = await self._annotations.group_automatically(circuit, how, request.author)
                return await self._scored(circuit, said)
            case _:
                raise InvalidRequestError("say how: by hand, or automatically", field="way")
        return annotations_to_wire(circuit, said)

    async def _scored(self, circuit: str, said: Annotations) -> pb.CircuitAnnotations:
        """Groups were found whether they can be scored or not: too large a circuit is told, not refused."""
        try:
            return annotations_to_wire(circuit, said, await self._annotations.group_scores(circuit))
        except (UnsupportedOptionError, InvalidRequestError) as error:
            return annotations_to_wire(circuit, said, not_scored=error.message)

    async def UngroupCircuit(
        self, request: pb.UngroupCircuitRequest, context: Context
    ) -> pb.CircuitAnnotations:
        """Dissolve a group."""
        circuit = _circuit(request)
        return annotations_to_wire(circuit, await self._annotations.ungroup(circuit, request.group))

    async def ImportAnnotations(
        self, request: pb.ImportAnnotationsRequest, context: Context
    ) -> pb.ImportAnnotationsResponse:
        """Bring annotations in."""
        circuit, document = _circuit(request), document_from_wire(request.document)
        said, skipped = await self._annotations.import_document(circuit, document, request.author)
        return pb.ImportAnnotationsResponse(annotations=annotations_to_wire(circuit, said), skipped=skipped)

    async def ExportAnnotations(
        self, request: pb.ExportAnnotationsRequest, context: Context
    ) -> pb.ExportAnnotationsResponse:
        """Take annotations out."""
        document = await self._annotations.export_document(_circuit(request))
        return pb.ExportAnnotationsResponse(document=json.dumps(document, ensure_ascii=False).encode())


def _circuit(
    request: pb.GetAnnotationsRequest
    | pb.PinNodesRequest
    | pb.UnpinNodesRequest
    | pb.LabelNodeRequest
    | pb.GroupCircuitRequest
    | pb.UngroupCircuitRequest
    | pb.ImportAnnotationsRequest
    | pb.ExportAnnotationsRequest,
) -> str:
    return resource_id(request.circuit, "circuits", "circuit")


def _told(wanted: NodeFilter) -> tuple[object, ...]:
    """A filter as something whose repr is always the same."""
    return (
        wanted.kind,
        wanted.min_influence,
        sorted(wanted.layers),
        sorted(wanted.positions),
        wanted.token,
        wanted.pinned,
        wanted.order,
    )

"""CircuitService."""

from __future__ import annotations

import asyncio

from google.longrunning.operations_pb2 import Operation

from trephine.app.circuits.circuit_cards import known_features
from trephine.app.circuits.circuit_costs import discovery_cost
from trephine.app.circuits.circuit_queries import require_node
from trephine.app.circuits.graph_sets import loaded_sets, opened_layers
from trephine.app.jobs.requests import DiscoverRequest
from trephine.app.service import Service
from trephine.domain import circuits as domain
from trephine.domain.tokens import ResolveTarget
from trephine.rpc.calls import Context
from trephine.rpc.circuit_query_servicer import CircuitQueries
from trephine.rpc.circuit_verification_servicer import CircuitVerification
from trephine.rpc.circuit_view_servicer import CircuitViewCalls
from trephine.rpc.dataset_circuit_servicer import DatasetCircuitCalls
from trephine.rpc.global_circuit_servicer import GlobalCircuitCalls
from trephine.rpc.paging import Paging, page
from trephine.rpc.results import OperationWriter, validated
from trephine.rpc.streaming import remaining
from trephine.rpc.wire.circuit_queries import filter_from_wire, pruning_from_wire
from trephine.rpc.wire.circuit_targets import checked_target, tokens_named
from trephine.rpc.wire.circuits import (
    checked_to_wire,
    circuit_to_wire,
    discover_from_wire,
    edge_to_wire,
    format_from_wire,
    share,
)
from trephine.rpc.wire.common import feature_from_wire
from trephine.rpc.wire.fields import finite, resource_id, within
from trephine.v1 import circuit_service_pb2 as pb
from trephine.v1.circuit_service_pb2_grpc import CircuitServiceServicer

_EDGES = Paging(default=1000, largest=10_000)


class CircuitServicer(
    CircuitQueries,
    CircuitVerification,
    CircuitViewCalls,
    DatasetCircuitCalls,
    GlobalCircuitCalls,
    CircuitServiceServicer,
):
    """Circuits: found once, stored on the server, read in pages."""

    def __init__(self, service: Service, operations: OperationWriter) -> None:
        CircuitQueries.__init__(self, service)
        CircuitVerification.__init__(self, service, operations)
        CircuitViewCalls.__init__(self, service)
        DatasetCircuitCalls.__init__(self, service, operations)
        GlobalCircuitCalls.__init__(self, service, operations)
        self._models = service.models
        self._replacements = service.replacements
        self._features = service.features
        self._operations = operations

    async def DiscoverCircuit(self, request: pb.DiscoverCircuitRequest, context: Context) -> Operation:
        """Find the circuit behind a next-token choice, or only check and predict."""
        model = resource_id(request.model, "models", "model")
        command, pruning = discover_from_wire(request), None
        if request.HasField("pruning"):
            with within("pruning"):
                pruning = pruning_from_wire(request.pruning)
        if request.validate_only:
            return validated("DiscoverCircuit", await self._predicted(model, command))
        found = DiscoverRequest(model=model, command=command, pruning=pruning)
        return await self._operations.start("DiscoverCircuit", found, request.request_id)

    async def GetCircuit(self, request: pb.GetCircuitRequest, context: Context) -> pb.Circuit:
        """Describe a circuit without its nodes and edges."""
        return circuit_to_wire(await self._circuits.get(resource_id(request.name, "circuits")))

    async def ListCircuits(
        self, request: pb.ListCircuitsRequest, context: Context
    ) -> pb.ListCircuitsResponse:
        """List stored circuits, newest first."""
        wanted = filter_from_wire(request)
        found = page(
            await self._circuits.list(wanted),
            size=request.page_size,
            token=request.page_token,
            question=("ListCircuits", wanted),
            key=lambda stored: stored.name,
        )
        circuits = [circuit_to_wire(stored) for stored in found.items]
        return pb.ListCircuitsResponse(circuits=circuits, next_page_token=found.next_token)

    async def ListEdges(self, request: pb.ListEdgesRequest, context: Context) -> pb.ListEdgesResponse:
        """List edges, heaviest first."""
        source = request.source if request.HasField("source") else None
        target = request.target if request.HasField("target") else None
        smallest = finite(request.min_weight, "min_weight") if request.HasField("min_weight") else None
        stored = await self._circuits.get(resource_id(request.circuit, "circuits", "circuit"))
        for node, field in ((source, "source"), (target, "target")):
            if node is not None:
                require_node(stored.circuit, node, field)
        # A large circuit has a million edges: filtering them must not hold up other calls.
        edges = await asyncio.to_thread(self._circuits.edges, stored, source, target, smallest)
        found = page(
            edges,
            size=request.page_size,
            token=request.page_token,
            question=("ListEdges", request.circuit, source, target, smallest),
            rule=_EDGES,
        )
        return pb.ListEdgesResponse(
            edges=[edge_to_wire(edge) for edge in found.items],
            next_page_token=found.next_token,
            total_size=len(edges),
        )

    async def ExportCircuit(
        self, request: pb.ExportCircuitRequest, context: Context
    ) -> pb.ExportCircuitResponse:
        """Render a circuit as an artifact."""
        name, format = resource_id(request.name, "circuits"), format_from_wire(request.format)
        nodes, edges = (
            share(getattr(request, field), field) if request.HasField(field) else None
            for field in ("node_threshold", "edge_threshold")
        )
        pages = frozenset(feature_from_wire(one) for one in request.feature_pages)
        stored = await self._circuits.get(name)
        known = await known_features(
            self._features, stored.circuit, pages, deadline_seconds=remaining(context)
        )
        info, kept = await self._circuits.render(name, format, nodes, edges, pages, known)
        return pb.ExportCircuitResponse(
            artifact=f"artifacts/{info.sha256}", n_nodes=len(kept.nodes), n_edges=len(kept.edges)
        )

    async def _predicted(self, model: str, command: domain.DiscoverCircuit) -> pb.Circuit:
        """Everything that can be known without finding anything: tokens and predicted cost."""
        info = await self._models.info(model)
        loaded = loaded_sets(self._replacements, model, command)
        layers = opened_layers(command, info, loaded)
        await self._models.predict_command(model, command)
        engine = self._models.engine(model)
        for field, text in tokens_named(command.target):
            with within(f"target.{field}"):
                await engine.run(ResolveTarget(text=text))
        with checked_target(command.target):
            split = await engine.run(domain.CheckDiscovery(command=command))
        cost = discovery_cost(command, info, len(split.tokens), layers)
        hashes = {name: found.content_hash for name, found in loaded.items()}
        sets = [domain.GraphSet(name=name, content_hash=hashes.get(name, "")) for name in command.sets]
        return checked_to_wire(command, info, split.tokens, cost, sets)

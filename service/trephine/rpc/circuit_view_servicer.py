"""The part of CircuitService that looks into edges and attention patterns."""

from __future__ import annotations

from trephine.app.service import Service
from trephine.rpc.calls import Context
from trephine.rpc.streaming import remaining
from trephine.rpc.wire.circuit_views import edges_from_wire, edges_to_wire, trace_from_wire, trace_to_wire
from trephine.rpc.wire.fields import resource_id
from trephine.v1 import circuit_views_pb2 as pb


class CircuitViewCalls:
    """Methods of `CircuitServicer` that take edges and scores apart."""

    def __init__(self, service: Service) -> None:
        self._explanations = service.circuit_explanations

    async def ExplainEdges(
        self, request: pb.ExplainEdgesRequest, context: Context
    ) -> pb.ExplainEdgesResponse:
        """Split edges over heads and paths."""
        question = edges_from_wire(request)
        return edges_to_wire(*await self._explanations.edges(question, deadline_seconds=remaining(context)))

    async def TraceAttention(
        self, request: pb.TraceAttentionRequest, context: Context
    ) -> pb.TraceAttentionResponse:
        """Take a score apart and carry its terms through the softmax."""
        model, command = resource_id(request.model, "models", "model"), trace_from_wire(request)
        trace = await self._explanations.attention(model, command, deadline_seconds=remaining(context))
        return trace_to_wire(trace)

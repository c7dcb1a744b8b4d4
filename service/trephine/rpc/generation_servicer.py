"""GenerationService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from trephine.app.service import Service
from trephine.domain.generation import TokenEvent
from trephine.rpc.calls import Context
from trephine.rpc.streaming import remaining, streamed
from trephine.rpc.wire.fields import resource_id
from trephine.rpc.wire.generation import (
    generate_from_wire,
    generation_to_wire,
    score_from_wire,
    scores_to_wire,
    token_event_to_wire,
)
from trephine.v1 import generation_service_pb2 as pb
from trephine.v1.generation_service_pb2_grpc import GenerationServiceServicer


class GenerationServicer(GenerationServiceServicer):
    """Text, plain and intervened side by side, and its probabilities."""

    def __init__(self, service: Service) -> None:
        self._models = service.models

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Continue every row; the work ends within one quantum when the client leaves."""
        command = generate_from_wire(request)
        engine = self._models.engine(resource_id(request.model, "models", "model"))
        events = streamed(engine, command, remaining(context))
        async with aclosing(events):
            async for event in events:
                if isinstance(event, TokenEvent):
                    yield token_event_to_wire(event)
                else:
                    yield generation_to_wire(event)

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """Log-probabilities of given continuations."""
        command = score_from_wire(request)
        engine = self._models.engine(resource_id(request.model, "models", "model"))
        return scores_to_wire(await engine.run(command, deadline_seconds=remaining(context)))

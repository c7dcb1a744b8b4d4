"""GenerationService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from trephine.app.service import Service
from trephine.domain.generation import TokenEvent
from trephine.rpc.calls import Context
from trephine.rpc.serving import located, served, stacks_of
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
        self._live = service.live_edits

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Continue every row; the work ends within one quantum when the client leaves."""
        command, model = generate_from_wire(request), resource_id(request.model, "models", "model")
        engine = self._models.engine(model)
        stacks = await stacks_of(self._live, model, request.rows)
        command = replace(command, rows=served(command.rows, stacks))
        events = streamed(engine, command, remaining(context))
        async with located(), aclosing(events):
            async for event in events:
                if isinstance(event, TokenEvent):
                    yield token_event_to_wire(event)
                else:
                    yield generation_to_wire(event, stacks)

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """Log-probabilities of given continuations."""
        command, model = score_from_wire(request), resource_id(request.model, "models", "model")
        engine = self._models.engine(model)
        stacks = await stacks_of(self._live, model, request.rows)
        command = replace(command, rows=served(command.rows, stacks))
        async with located():
            scores = await engine.run(command, deadline_seconds=remaining(context))
        return scores_to_wire(scores, stacks)

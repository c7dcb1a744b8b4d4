"""Edges of stored circuits taken apart, and pattern entries explained."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from trephine.app.circuits.circuits import Circuits, StoredCircuit
from trephine.app.jobs.costs import Cost, predict, tokens_of
from trephine.app.models.models import Models
from trephine.domain.attention import AttentionTrace, TraceAttention
from trephine.domain.circuit_edges import MOST_EDGES, EdgeExplanations, ExplainEdges
from trephine.domain.errors import InvalidRequestError, NothingMatchedError, UnsupportedOptionError
from trephine.domain.models import ModelInfo
from trephine.domain.sites import NEURONS

_FLOAT = 4
_STREAMS = 12
"""Copies of the stream that a source's change is kept in: six readings, along all paths and straight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeQuestion:
    """Which edges are explained, and how far."""

    circuit: str
    edges: tuple[tuple[int, int], ...] = ()
    """Source and target; none: the heaviest into `node`."""
    node: int | None = None
    top: int = 5
    paths: int = 10
    heads: int = 20
    tokens: int = 0
    model: str = ""
    """Empty: the circuit's own."""


class CircuitExplanations:
    """Use cases that look into edges and patterns; both need the model."""

    def __init__(self, circuits: Circuits, models: Models) -> None:
        self._circuits = circuits
        self._models = models

    async def edges(
        self, question: EdgeQuestion, *, deadline_seconds: float | None = None
    ) -> tuple[StoredCircuit, EdgeExplanations]:
        """Split edges over heads and paths.

        Raises:
            ResourceNotFoundError: If there is no such circuit.
            InvalidRequestError: If neither edges nor a node are given, or a node is unfit.
            NothingMatchedError: If no edge enters the node.
            UnsupportedOptionError: If the circuit came from a file, or is global or of a behaviour.
            ParentChangedError: If the model's weights are not those that it was found in.
        """
        stored = await self._circuits.get(question.circuit)
        stored.circuit.require_prompt("an edge split over heads and paths")
        if stored.provenance.is_foreign:
            raise UnsupportedOptionError(
                "the circuit was imported from a file: which weights and features it is about "
                "is the file's word at most; discover it here",
                field="circuit",
            )
        command = ExplainEdges(
            circuit=stored.circuit,
            edges=question.edges or await self._entering(stored, question),
            paths=question.paths,
            heads=question.heads,
            tokens=question.tokens,
        )
        engine = self._models.engine(question.model or stored.circuit.model)
        return stored, await engine.run(command, deadline_seconds=deadline_seconds)

    async def attention(
        self, model: str, command: TraceAttention, *, deadline_seconds: float | None = None
    ) -> AttentionTrace:
        """Explain a pattern entry.

        Raises:
            NotConvergedError: If contributions through the softmax do not add up to the exact change.
        """
        return await self._models.engine(model).run(command, deadline_seconds=deadline_seconds)

    async def _entering(self, stored: StoredCircuit, question: EdgeQuestion) -> tuple[tuple[int, int], ...]:
        node = question.node
        if node is None:
            raise InvalidRequestError("give edges, or a node whose edges are explained", field="edges")
        if not 0 <= node < len(stored.circuit.nodes):
            raise InvalidRequestError(
                f"there is no node {node}: the circuit has nodes 0 to {len(stored.circuit.nodes) - 1}",
                field="node",
            )
        if not 1 <= question.top <= MOST_EDGES:
            raise InvalidRequestError(f"top must be from 1 to {MOST_EDGES}", field="top")
        entering = await asyncio.to_thread(self._circuits.edges, stored, None, node)
        if not len(entering):
            raise NothingMatchedError(f"the circuit keeps no edge into node {node}")
        return tuple((edge.source, edge.target) for edge in entering[: question.top])


@predict.register
def _(command: ExplainEdges, info: ModelInfo) -> Cost:
    prompt = len(command.circuit.tokens)
    streams = _STREAMS * info.n_layers * prompt * info.d_model * _FLOAT
    return Cost(tokens=prompt * (1 + len(command.edges)), memory_bytes=streams + _operators(prompt, info))


@predict.register
def _(command: TraceAttention, info: ModelInfo) -> Cost:
    """A pass, and every neuron's decoder at every position: as much as another."""
    prompt = tokens_of(command.prompt)
    width = info.d_mlp * info.d_model if NEURONS in command.sets else prompt * info.d_mlp
    return Cost(tokens=2 * prompt, memory_bytes=3 * width * _FLOAT + _operators(prompt, info))


def _operators(prompt: int, info: ModelInfo) -> int:
    block = 6 * info.d_model + 2 * info.d_mlp + info.n_heads * prompt
    return prompt * info.n_layers * block * _FLOAT

"""Edges of a circuit taken apart, and pattern entries explained."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.client.aio.circuit_queries import AsyncStoredCircuit
from trephine.client.aio.wire import AsyncWire
from trephine.client.circuit_view_requests import edges_request, trace_request
from trephine.client.decoding import decode
from trephine.client.set_ids import AnySet
from trephine.client.types import AttentionTrace, EdgeExplanations, ModelInfo


class AsyncExplainableCircuit(AsyncStoredCircuit):
    """The part of a circuit's surface that looks into edges."""

    async def explain(
        self,
        edges: Sequence[tuple[int, int]] = (),
        *,
        node: int | None = None,
        top: int | None = None,
        paths: int | None = None,
        heads: int | None = None,
        tokens: int | None = None,
        model: str = "",
    ) -> EdgeExplanations:
        """Split edges over heads and paths, and into what the weights and what the prompt decide.

        Args:
            edges: Source and target node of each; none: the heaviest into `node`.
            node: The node whose incoming edges are explained.
            top: How many of them; unset 5.
            paths: Paths of each edge; unset 10.
            heads: Heads of each edge; unset 20.
            tokens: Tokens per end of every path's de-embedding; unset none.
            model: Another name under which its weights are loaded.
        """
        request = edges_request(self.name, edges, node, top, paths, heads, tokens, model)
        return decode(EdgeExplanations, await self._wire.call(self._wire.circuits.ExplainEdges, request))


class AsyncTraceableModel:
    """The part of a model's surface that explains attention."""

    _wire: AsyncWire
    info: ModelInfo

    async def trace_attention(
        self,
        prompt: str,
        *,
        layer: int,
        head: int,
        query: int | None = None,
        key: int | None = None,
        replacement: AnySet = "",
        beside: Sequence[AnySet] = (),
        top: int | None = None,
    ) -> AttentionTrace:
        """Explain why a head looked where it looked.

        Args:
            prompt: At least one token.
            layer: Layer.
            head: Head.
            query: Position that looks; unset: the last.
            key: Position that is looked at; unset: the one with the largest weight.
            replacement: Loaded set whose features span the stream; unset: neurons.
            beside: Further sets, no two of which reconstruct the same site; `neurons`: of MLPs that are left.
            top: Sources of each side, and pairs; unset 20.
        """
        request = trace_request(self.info.name, prompt, layer, head, query, key, replacement, beside, top)
        return decode(AttentionTrace, await self._wire.call(self._wire.circuits.TraceAttention, request))

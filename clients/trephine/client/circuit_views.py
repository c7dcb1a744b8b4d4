"""Edges of a circuit taken apart, and pattern entries explained."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.client.circuit_queries import StoredCircuit
from trephine.client.decoding import decode
from trephine.client.requests import resource
from trephine.client.sendable import listed, sendable
from trephine.client.set_ids import AnySet, set_id
from trephine.client.types import AttentionTrace, EdgeExplanations, ModelInfo
from trephine.client.wire import Wire
from trephine.v1 import circuit_views_pb2 as pb


class ExplainableCircuit(StoredCircuit):
    """The part of a circuit's surface that looks into edges."""

    def explain(
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
        return decode(EdgeExplanations, self._wire.call(self._wire.circuits.ExplainEdges, request))


class TraceableModel:
    """The part of a model's surface that explains attention."""

    _wire: Wire
    info: ModelInfo

    def trace_attention(
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
        return decode(AttentionTrace, self._wire.call(self._wire.circuits.TraceAttention, request))


@sendable
def edges_request(
    circuit: str,
    edges: Sequence[tuple[int, int]],
    node: int | None,
    top: int | None,
    paths: int | None,
    heads: int | None,
    tokens: int | None,
    model: str,
) -> pb.ExplainEdgesRequest:
    """Explain edges of a circuit."""
    return pb.ExplainEdgesRequest(
        circuit=circuit,
        edges=[pb.EdgeEnds(source=source, target=target) for source, target in edges],
        node=node,
        top=top,
        paths=paths,
        heads=heads,
        tokens=tokens,
        model=resource("models", model) if model else "",
    )


@sendable
def trace_request(
    model: str,
    prompt: str,
    layer: int,
    head: int,
    query: int | None,
    key: int | None,
    replacement: AnySet,
    beside: Sequence[AnySet],
    top: int | None,
) -> pb.TraceAttentionRequest:
    """Explain a pattern entry."""
    return pb.TraceAttentionRequest(
        model=model,
        prompt=prompt,
        layer=layer,
        head=head,
        query=query,
        key=key,
        replacement=set_id(replacement, model),
        beside=[set_id(one, model) for one in listed(beside, "beside")],
        top=top,
    )

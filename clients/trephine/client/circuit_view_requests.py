"""Requests to take edges apart and to explain pattern entries."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.client.requests import resource
from trephine.client.sendable import listed, sendable
from trephine.client.set_ids import AnySet, set_id
from trephine.v1 import circuit_views_pb2 as pb


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

"""Edges taken apart, and pattern entries explained."""

from __future__ import annotations

from trephine.app.circuits.circuit_explanations import EdgeQuestion
from trephine.app.circuits.circuits import StoredCircuit
from trephine.domain.attention import (
    AttentionTrace,
    KeyWeight,
    KindTerm,
    PairTerm,
    SideTerm,
    Source,
    SourceKind,
    TraceAttention,
)
from trephine.domain.circuit_edges import (
    EdgeExplanations,
    EdgePath,
    ExplainedEdge,
    Factors,
    HeadShare,
    Hop,
    HopKind,
)
from trephine.domain.sites import NEURONS
from trephine.domain.tokens import Token
from trephine.rpc.wire.common import token_to_wire, version_to_wire
from trephine.rpc.wire.fields import at_least, clean, prompt, resource_id
from trephine.v1 import circuit_views_pb2 as pb

_HOPS: dict[HopKind, pb.HopKind.ValueType] = {
    HopKind.HEAD: pb.HOP_KIND_HEAD,
    HopKind.SKIP: pb.HOP_KIND_SKIP,
}
_SOURCES: dict[SourceKind, pb.StreamSourceKind.ValueType] = {
    SourceKind.FEATURE: pb.STREAM_SOURCE_KIND_FEATURE,
    SourceKind.ERROR: pb.STREAM_SOURCE_KIND_ERROR,
    SourceKind.HEAD: pb.STREAM_SOURCE_KIND_HEAD,
    SourceKind.SKIP: pb.STREAM_SOURCE_KIND_SKIP,
    SourceKind.TOKEN: pb.STREAM_SOURCE_KIND_TOKEN,
    SourceKind.BIAS: pb.STREAM_SOURCE_KIND_BIAS,
}


def edges_from_wire(request: pb.ExplainEdgesRequest) -> EdgeQuestion:
    """Read which edges are explained, with the defaults that the contract states.

    Raises:
        InvalidRequestError: Naming the field.
    """
    return EdgeQuestion(
        circuit=resource_id(request.circuit, "circuits", "circuit"),
        edges=tuple((edge.source, edge.target) for edge in request.edges),
        node=at_least(request.node, 0, "node") if request.HasField("node") else None,
        top=at_least(request.top, 1, "top") if request.HasField("top") else 5,
        paths=at_least(request.paths, 0, "paths") if request.HasField("paths") else 10,
        heads=at_least(request.heads, 0, "heads") if request.HasField("heads") else 20,
        tokens=at_least(request.tokens, 0, "tokens") if request.HasField("tokens") else 0,
        model=resource_id(request.model, "models", "model") if request.model else "",
    )


def trace_from_wire(request: pb.TraceAttentionRequest) -> TraceAttention:
    """Read which pattern entry is explained.

    Raises:
        InvalidRequestError: Naming the field.
    """
    return TraceAttention(
        prompt=prompt(request.prompt),
        layer=at_least(request.layer, 0, "layer"),
        head=at_least(request.head, 0, "head"),
        query=at_least(request.query, 0, "query") if request.HasField("query") else None,
        key=at_least(request.key, 0, "key") if request.HasField("key") else None,
        replacement=request.replacement or NEURONS,
        top=at_least(request.top, 1, "top") if request.HasField("top") else 20,
        beside=tuple(request.beside),
    )


def edges_to_wire(stored: StoredCircuit, found: EdgeExplanations) -> pb.ExplainEdgesResponse:
    """Write explained edges."""
    labels = [node.label for node in stored.circuit.nodes]
    return pb.ExplainEdgesResponse(
        edges=[_edge(edge, labels[edge.source], labels[edge.target]) for edge in found.edges],
        tokens=[token_to_wire(token) for token in stored.circuit.tokens],
        version=version_to_wire(found.model, found.weight_hash),
        caveats=[clean(caveat) for caveat in found.caveats],
    )


def _edge(edge: ExplainedEdge, source: str, target: str) -> pb.ExplainedEdge:
    return pb.ExplainedEdge(
        ends=pb.EdgeEnds(source=edge.source, target=edge.target),
        source_label=clean(source),
        target_label=clean(target),
        weight=edge.weight,
        stored=edge.stored,
        direct=edge.direct,
        heads=[_share(share) for share in edge.heads],
        heads_remainder=edge.heads_remainder,
        paths=[_path(path) for path in edge.paths],
        paths_remainder=edge.paths_remainder,
        estimated=edge.estimated,
    )


def _share(share: HeadShare) -> pb.HeadShare:
    return pb.HeadShare(hop=_hop(share.hop), weight=share.weight)


def _hop(hop: Hop) -> pb.Hop:
    return pb.Hop(
        kind=_HOPS[hop.kind],
        layer=hop.layer,
        head=hop.head,
        key=hop.key,
        query=hop.query,
        pattern=hop.pattern,
    )


def _path(path: EdgePath) -> pb.EdgePath:
    return pb.EdgePath(
        hops=[_hop(hop) for hop in path.hops],
        weight=path.weight,
        factors=[_factors(each) for each in path.factors],
        excites=[_excitation(*each) for each in path.excites],
        inhibits=[_excitation(*each) for each in path.inhibits],
    )


def _factors(factors: Factors) -> pb.PathFactors:
    return pb.PathFactors(
        readout=clean(factors.readout),
        invariant=factors.invariant,
        dependent=factors.dependent,
        weight=factors.weight,
    )


def _excitation(token: Token, score: float) -> pb.TokenExcitation:
    return pb.TokenExcitation(token=token_to_wire(token), score=score)


def trace_to_wire(trace: AttentionTrace) -> pb.TraceAttentionResponse:
    """Write an explained pattern entry."""
    return pb.TraceAttentionResponse(
        tokens=[token_to_wire(token) for token in trace.tokens],
        layer=trace.layer,
        head=trace.head,
        query=trace.query,
        key=trace.key,
        runner_up=trace.runner_up,
        softcap=trace.softcap,
        score=trace.score,
        terms_sum=trace.terms_sum,
        weight=trace.weight,
        even=trace.even,
        change=trace.change,
        shares_sum=trace.shares_sum,
        residual=trace.residual,
        nodes=trace.nodes,
        keys=[_key(key) for key in trace.keys],
        query_side=[_side(term) for term in trace.query_side],
        key_side=[_side(term) for term in trace.key_side],
        pairs=[_pair(term) for term in trace.pairs],
        kinds=[_kind(term) for term in trace.kinds],
        replacement=clean(trace.replacement),
        version=version_to_wire(trace.model, trace.weight_hash),
        caveats=[clean(caveat) for caveat in trace.caveats],
        beside=[clean(name) for name in trace.beside],
    )


def _key(key: KeyWeight) -> pb.AttentionKey:
    return pb.AttentionKey(
        position=key.position, score=key.score, weight=key.weight, sensitivity=key.sensitivity
    )


def _source(source: Source) -> pb.StreamSource:
    return pb.StreamSource(
        kind=_SOURCES[source.kind],
        position=source.position,
        layer=source.layer,
        index=source.index,
        label=clean(source.label),
        replacement=clean(source.replacement),
    )


def _side(term: SideTerm) -> pb.AttentionSideTerm:
    return pb.AttentionSideTerm(
        source=_source(term.source),
        score=term.score,
        log_odds=term.log_odds,
        share=term.share,
        alone=term.alone,
    )


def _pair(term: PairTerm) -> pb.AttentionPairTerm:
    return pb.AttentionPairTerm(
        query=_source(term.query), key=_source(term.key), score=term.score, share=term.share
    )


def _kind(term: KindTerm) -> pb.AttentionKindTerm:
    return pb.AttentionKindTerm(
        query=_SOURCES[term.query], key=_SOURCES[term.key], score=term.score, share=term.share
    )

"""ExplainEdges: edges of a stored circuit, split over heads and paths."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from heapq import nlargest
from itertools import groupby

import torch

from trephine.domain.circuit_edges import (
    EdgeExplanations,
    EdgePath,
    ExplainedEdge,
    ExplainEdges,
    Factors,
    HeadShare,
    Hop,
)
from trephine.domain.circuits import Circuit, NodeKind
from trephine.domain.commands import Progress
from trephine.domain.errors import InvalidRequestError
from trephine.domain.sites import NEURONS
from trephine.domain.targets import TargetKind
from trephine.engine.attribution.operators import capture
from trephine.engine.graphs.actives import ActiveFeatures, activate
from trephine.engine.graphs.edge_paths import EdgeSearch, FoundPath
from trephine.engine.graphs.tangents import Tangent
from trephine.engine.models.session import Handler, Session
from trephine.engine.replacements.contexts import degraded_caveats
from trephine.engine.tracing.edge_ends import EdgeSource, EdgeWork
from trephine.engine.tracing.edge_targets import EdgeTarget
from trephine.engine.verification.subject import check_circuit, opened_layers, unknown_set_caveats

_EVERY = 1 << 30
"""More hops than there are."""


def explain_edges(
    session: Session, command: ExplainEdges
) -> Generator[Progress | None, None, EdgeExplanations]:
    """Split edges over heads and paths; one edge per quantum.

    Raises:
        ParentChangedError: If the model's weights, or its set, are not those that the circuit was found with.
        ReplacementNotFoundError: If its set is not loaded any more.
        InvalidRequestError: If a node does not exist, or is no source or no target.
        UnsupportedOptionError: If what the circuit explains is not known.
    """
    hosted, circuit = session.require_model().pinned(), command.circuit
    check_circuit(hosted, circuit)
    _check_nodes(circuit, command.edges)
    ids = [token.id for token in circuit.tokens]
    operators = capture(hosted.model, hosted.architecture, ids)
    yield Progress(stage="forward", done=1, total=1)
    active: ActiveFeatures | None = None
    if circuit.replacement != NEURONS:
        active = yield from activate(hosted, operators, opened_layers(hosted, circuit))
    work = EdgeWork(hosted, circuit, operators, active)
    tangents: dict[int, tuple[EdgeSource, Tangent, Tangent]] = {}
    explained: dict[tuple[int, int], ExplainedEdge] = {}
    for number, (source, each) in enumerate(groupby(sorted(set(command.edges)), key=lambda edge: edge[0])):
        tangents.clear()  # of one source at a time: two streams per block
        for edge in each:
            with torch.inference_mode():
                if source not in tangents:
                    tangents[source] = work.sent(source)
                explained[edge] = _explain(work, command, edge, *tangents[source])
            yield Progress(stage="edges", done=len(explained), total=len(command.edges), detail=str(number))
    return EdgeExplanations(
        edges=tuple(explained[edge] for edge in command.edges),
        model=hosted.info.name,
        weight_hash=hosted.info.weight_hash,
        caveats=(
            *degraded_caveats(hosted, circuit.set_names),
            *unknown_set_caveats(circuit),
            *_caveats(circuit),
        ),
    )


def _check_nodes(circuit: Circuit, edges: tuple[tuple[int, int], ...]) -> None:
    for number, edge in enumerate(edges):
        for name, index in zip(("source", "target"), edge, strict=True):
            if not 0 <= index < len(circuit.nodes):
                raise InvalidRequestError(
                    f"there is no node {index}: the circuit has nodes 0 to {len(circuit.nodes) - 1}",
                    field=f"edges[{number}].{name}",
                )
        if circuit.nodes[edge[0]].kind is NodeKind.LOGIT:
            raise InvalidRequestError("what a circuit explains is no source", field=f"edges[{number}].source")
        if circuit.nodes[edge[1]].kind not in (NodeKind.FEATURE, NodeKind.LOGIT):
            raise InvalidRequestError(
                "only features and what the circuit explains are targets: nothing is traced into errors and "
                "tokens",
                field=f"edges[{number}].target",
            )


def _explain(
    work: EdgeWork,
    command: ExplainEdges,
    edge: tuple[int, int],
    source: EdgeSource,
    routed: Tangent,
    straight: Tangent,
) -> ExplainedEdge:
    targets = work.targets.of(edge[1])
    searches = [
        EdgeSearch(network=work.network, target=one.probe, routed=routed, straight=straight, cut=one.cut)
        for one in targets
    ]
    total = sum(search.total for search in searches) * source.amount
    direct = sum(search.direct(search.target) for search in searches) * source.amount
    heads = _heads(searches, command.heads, source.amount)
    found = [
        _path(work, command, path, source, target)
        for search, target in zip(searches, targets, strict=True)
        for path in (search.strongest(command.paths) if command.paths else ())
    ]
    paths = tuple(nlargest(command.paths, found, key=lambda path: abs(path.weight)))
    return ExplainedEdge(
        source=edge[0],
        target=edge[1],
        weight=total,
        stored=work.stored.get(edge),
        direct=direct,
        heads=heads,
        heads_remainder=total - direct - sum(head.weight for head in heads),
        paths=paths,
        paths_remainder=total - sum(path.weight for path in paths),
        estimated=any(target.estimated for target in targets),
    )


def _heads(searches: Sequence[EdgeSearch], most: int, amount: float) -> tuple[HeadShare, ...]:
    """Return the heaviest last hops; what two sides of a score read through one head is one share."""
    summed: dict[Hop, float] = {}
    each = most if len(searches) == 1 else _EVERY  # a hop that is light on either side may be heavy on both
    for search in searches:
        for hop, weight in search.hops(search.target, each):
            summed[hop] = summed.get(hop, 0.0) + weight * amount
    shares = (HeadShare(hop=hop, weight=weight) for hop, weight in summed.items())
    return tuple(nlargest(most, shares, key=lambda share: abs(share.weight)))


def _path(
    work: EdgeWork, command: ExplainEdges, found: FoundPath, source: EdgeSource, target: EdgeTarget
) -> EdgePath:
    scales = [scale * source.amount for scale in found.probe.scale.tolist()]
    factors = tuple(
        Factors(
            readout=name,
            invariant=part if source.invariant and not target.by_prompt else None,
            dependent=scale,
            weight=part * scale,
        )
        for name, part, scale in zip(target.readouts, found.parts, scales, strict=True)
    )
    excites, inhibits = work.read_tokens(found.probe, target, command.tokens) if command.tokens else ((), ())
    return EdgePath(
        hops=tuple(reversed(found.probe.hops)),
        weight=found.weight * source.amount,
        factors=factors,
        excites=excites,
        inhibits=inhibits,
    )


def _caveats(circuit: Circuit) -> tuple[str, ...]:
    caveats = [
        "Paths go through values (OV) and skip paths with attention patterns and norm scales held; what the "
        "patterns depend on is TraceAttention's part.",
        "A path's weight is its virtual weight (decoder, OV matrices, gains, encoder) times what the prompt "
        "decides (activation, patterns, norm scales). Paths are found greedily, heaviest hop first; what is "
        "not listed is in the remainder, exactly.",
    ]
    if NEURONS in circuit.set_names:
        caveats.append(
            "Edges into neurons follow the half rule (relp_half), an estimate: its two coefficients belong "
            "to the input-dependent factors."
        )
    if any(target.kind is TargetKind.ATTENTION for target in circuit.targets):
        caveats.append(
            "An edge into an attention score is half of what its source does on the query's side and half of "
            "that on the key's, each with the other held: there is no factor that weights alone decide."
        )
    return tuple(caveats)


HANDLERS: dict[type, Handler] = {ExplainEdges: explain_edges}
"""Commands of this module."""

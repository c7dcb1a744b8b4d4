"""Pruned circuits: which nodes stay when some are pinned, and the circuit that is left as one of its own."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trephine.app.circuits.pruning import edge_influence, numbers, prune, without_dangling
from trephine.app.storage.records import encode
from trephine.domain.arrays import Array
from trephine.domain.circuit_queries import Provenance, Pruning
from trephine.domain.circuits import Circuit, Edges, NodeKind, PrunedNodes, Rows
from trephine.domain.errors import InvalidRequestError

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

_PRUNABLE = {NodeKind.FEATURE, NodeKind.ERROR}


def kept_nodes(circuit: Circuit, bounds: Pruning, pinned: frozenset[int]) -> PrunedNodes:
    """Return what survives pruning: by cumulative influence, then by budgets, pinned nodes in any case.

    A pinned node that pruning would drop keeps its edges from and to the nodes that are left. What loses all
    its edges in or out to a budget goes too, pinned nodes excepted.

    Raises:
        InvalidRequestError: If a threshold is outside (0, 1], or a budget below 1.
    """
    for field, most in (("max_nodes", bounds.max_nodes), ("max_edges", bounds.max_edges)):
        if most is not None and most < 1:
            raise InvalidRequestError(f"{field} must be at least 1", field=field)
    kept = prune(circuit, node_threshold=bounds.node_threshold, edge_threshold=bounds.edge_threshold)
    always = pinned | frozenset(bounds.keep)
    within = _within_budget(circuit, kept.nodes, bounds.max_nodes)
    nodes = within | always
    crowded = bounds.max_edges is not None and len(kept.edges) > bounds.max_edges
    if nodes == set(kept.nodes) and not crowded:
        return kept
    source, target = numbers(circuit.edges.source), numbers(circuit.edges.target)
    stays, brought_back = np.zeros((2, len(circuit.nodes)), np.bool_)
    stays[list(nodes)] = True
    brought_back[list(always - set(kept.nodes))] = True
    survived = np.zeros(len(source), np.bool_)
    survived[list(kept.edges)] = True
    survived |= brought_back[source] | brought_back[target]
    fixed = np.zeros(len(circuit.nodes), np.bool_)
    fixed[list(always)] = True
    inside = survived & stays[source] & stays[target]
    if bounds.max_edges is None:
        left, edges = without_dangling(circuit, stays, inside, fixed=fixed)
    else:
        left, edges = _within_edge_budget(circuit, stays, inside, bounds.max_edges, fixed)
    return replace(
        kept, nodes=tuple(np.flatnonzero(left).tolist()), edges=tuple(np.flatnonzero(edges).tolist())
    )


def shown_nodes(
    circuit: Circuit,
    provenance: Provenance,
    pinned: frozenset[int],
    node_threshold: float | None = None,
    edge_threshold: float | None = None,
) -> PrunedNodes:
    """Return what a file of a circuit shows: by thresholds, both 1 for everything, and pinned nodes always.

    Unset they are circuit-tracer's. A circuit that is a part already, pruned or imported, is shown whole: it
    was cut as somebody wanted it. So is a global one, whose size was said when it was found.

    Raises:
        InvalidRequestError: If a threshold is outside (0, 1].
    """
    whole = bool(provenance.how) or circuit.across is not None
    unset = Pruning(node_threshold=1.0, edge_threshold=1.0) if whole else Pruning()
    bounds = Pruning(
        node_threshold=unset.node_threshold if node_threshold is None else node_threshold,
        edge_threshold=unset.edge_threshold if edge_threshold is None else edge_threshold,
    )
    kept = kept_nodes(circuit, bounds, pinned)
    if bounds.node_threshold < 1 or bounds.edge_threshold < 1:
        return kept
    return replace(
        kept,
        nodes=tuple(range(len(circuit.nodes))),
        edges=tuple(range(circuit.edges.weight.shape[0])),
    )


def _within_budget(circuit: Circuit, kept: tuple[int, ...], most: int | None) -> set[int]:
    prunable = [index for index in kept if circuit.nodes[index].kind in _PRUNABLE]
    if most is None or len(prunable) <= most:
        return set(kept)
    ranked = sorted(prunable, key=lambda index: (-circuit.nodes[index].influence, index))
    return set(kept) - set(ranked[most:])


def _within_edge_budget(
    circuit: Circuit, stays: Mask, inside: Mask, most: int, fixed: Mask
) -> tuple[Mask, Mask]:
    """Keep the edges that carry most influence and lead somewhere; those of nodes that stay come on top.

    Edges are taken by what they carry. What dangles then is no part of the circuit and does not count, so
    that more are taken, until there would be too many that lead somewhere.
    """
    source, target = numbers(circuit.edges.source), numbers(circuit.edges.target)
    always: Mask = inside & (fixed[source] | fixed[target])
    free = np.flatnonzero(inside & ~always)
    ranked = free[np.argsort(-edge_influence(circuit, inside)[free], kind="stable")]

    def taking(count: int) -> tuple[Mask, Mask]:
        chosen = always.copy()
        chosen[ranked[:count]] = True
        return without_dangling(circuit, stays, chosen, fixed=fixed)

    fits, last = min(most, len(ranked)), len(ranked)
    found = taking(fits)
    while fits < last:
        middle = (fits + last + 1) // 2
        tried = taking(middle)
        if np.count_nonzero(tried[1] & ~always) <= most:
            found, fits = tried, middle
        else:
            last = middle - 1
    return found


def pruned_circuit(circuit: Circuit, kept: PrunedNodes) -> tuple[Circuit, dict[int, int]]:
    """Return what is left as a circuit, and the new index of every node that stays.

    What a dropped edge carried goes into the remainder of the row that it entered, so that rows still sum
    to their totals. Influences and effects stay those of the whole graph.
    """
    places = {node: place for place, node in enumerate(kept.nodes)}
    place = np.full(len(circuit.nodes), -1, np.int64)
    place[list(kept.nodes)] = np.arange(len(kept.nodes))
    chosen = np.array(kept.edges, np.int64)
    edges = circuit.edges
    left = Edges(
        source=_int32(place[numbers(edges.source)[chosen]]),
        target=_int32(place[numbers(edges.target)[chosen]]),
        weight=_float32(numbers(edges.weight)[chosen]),
    )
    ends = [index for index, node in enumerate(circuit.nodes) if node.kind is NodeKind.LOGIT]
    smaller = replace(
        circuit,
        targets=tuple(target for target, node in zip(circuit.targets, ends, strict=True) if node in places),
        nodes=tuple(circuit.nodes[node] for node in kept.nodes),
        edges=left,
        rows=_rows(circuit, place, chosen),
    )
    return smaller, places


def _rows(circuit: Circuit, place: Indices, chosen: Indices) -> Rows:
    rows, edges = circuit.rows, circuit.edges
    dropped = numbers(edges.weight).astype(np.float64)  # a copy
    dropped[chosen] = 0.0
    lost = np.bincount(numbers(edges.target), weights=dropped, minlength=len(circuit.nodes))
    target = numbers(rows.target)
    stays = place[target] >= 0
    return Rows(
        target=_int32(place[target[stays]]),
        total=_float32(numbers(rows.total)[stays]),
        bias=_float32(numbers(rows.bias)[stays]),
        remainder=_float32(numbers(rows.remainder)[stays] + lost[target[stays]]),
    )


def noted(circuit: Circuit, smaller: Circuit, when: str) -> Circuit:
    """Return what is left of a circuit with a note that says what is gone, and what its figures are of.

    Args:
        circuit: The whole one.
        smaller: What is left of it.
        when: Of which circuit, or when, and by which bounds.
    """
    note = (
        f"Pruned {when}: {len(smaller.nodes)} of {len(circuit.nodes)} nodes and "
        f"{smaller.edges.weight.shape[0]} of {circuit.edges.weight.shape[0]} edges are stored. What is gone "
        "is in the remainders; influences, effects, figures and scores are those of the whole graph."
    )
    return replace(smaller, caveats=(*smaller.caveats, note))


def pruned_at_once(circuit: Circuit, bounds: Pruning) -> Circuit:
    """Prune a circuit that was just found, before it is stored; a note says what is gone.

    Raises:
        InvalidRequestError: If a threshold is outside (0, 1], or a budget below 1.
    """
    kept = kept_nodes(circuit, bounds, frozenset())
    smaller, _ = pruned_circuit(circuit, kept)
    return noted(circuit, smaller, f"when it was found ({in_words(bounds, 0)})")


def pruned_id(parent: str, bounds: Pruning, kept: PrunedNodes) -> str:
    """Return a pruned circuit's id: the same parent, bounds and kept nodes give the same."""
    asked = hashlib.sha256(encode(bounds) + b"\0" + parent.encode())
    asked.update(np.array(kept.nodes, np.int64).tobytes() + np.array(kept.edges, np.int64).tobytes())
    return asked.hexdigest()[:32]


def in_words(bounds: Pruning, pinned: int) -> str:
    """Say how a circuit was pruned."""
    said = [f"node threshold {bounds.node_threshold:g}", f"edge threshold {bounds.edge_threshold:g}"]
    if bounds.max_nodes is not None:
        said.append(f"at most {bounds.max_nodes} features and errors")
    if bounds.max_edges is not None:
        said.append(f"at most {bounds.max_edges} edges")
    if pinned:
        said.append(f"{pinned} pinned {'node' if pinned == 1 else 'nodes'} kept whatever these bounds say")
    return ", ".join(said)


def _int32(values: Indices) -> Array:
    return Array(dtype="int32", shape=values.shape, data=values.astype("<i4").tobytes())


def _float32(values: NDArray[np.floating]) -> Array:
    return Array(dtype="float32", shape=values.shape, data=values.astype("<f4").tobytes())

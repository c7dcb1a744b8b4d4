"""`trephine circuits nodes|edges|around|between|prune|diff|import|delete`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Annotated

import typer

from trephine.client.circuit import Circuit
from trephine.client.cli.arguments import path_argument
from trephine.client.cli.circuit_nodes import (
    NodeArgument,
    called,
    node_indices,
    print_nodes,
)
from trephine.client.cli.discover import show_circuit
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.decoding import message_json
from trephine.client.node_addresses import address, error_of
from trephine.client.types import CircuitDiff, ComparedNode, Edge, Node, NodeKind, NodeSort, Subgraph
from trephine.v1 import circuit_service_pb2

NameArgument = Annotated[str, typer.Argument(help="circuits/..., as `trephine circuits list` shows it.")]
MinWeightOption = Annotated[float, typer.Option(help="Follow only edges of at least this absolute weight.")]
TopOption = Annotated[int, typer.Option(min=0, help="Rows to print of each table.")]


def nodes(
    context: typer.Context,
    name: NameArgument,
    kind: Annotated[NodeKind | None, typer.Option(help="Only this kind.")] = None,
    layer: Annotated[list[int] | None, typer.Option(help="Only this layer. Repeatable.")] = None,
    position: Annotated[
        list[int] | None, typer.Option(help="Only this position; -1 is `all`. Repeatable.")
    ] = None,
    token: Annotated[str, typer.Option(help="Only at tokens, or with labels, that hold this text.")] = "",
    min_influence: Annotated[float | None, typer.Option(help="Only of at least this influence.")] = None,
    pinned: Annotated[bool, typer.Option("--pinned", help="Only pinned ones.")] = False,
    order: Annotated[NodeSort, typer.Option(help="Largest first, or by index.")] = NodeSort.INFLUENCE,
    top: TopOption = 50,
) -> None:
    """Print nodes of a circuit."""
    given = invocation(context)
    with given.connect() as trephine:
        circuit = trephine.circuits.get(name)
        found = circuit.nodes(
            kind=kind,
            min_influence=min_influence,
            layers=layer or (),
            positions=position or (),
            token=token,
            pinned=pinned,
            order=order,
        )
    if given.output.json:
        messages = [node.message for node in found]
        response = circuit_service_pb2.ListNodesResponse(nodes=messages, total_size=len(found))  # type: ignore[arg-type]
        given.output.document(message_json(response))
        return
    print_nodes(given.output, found[:top], circuit.info)
    given.output.note(f"{min(top, len(found))} of {len(found)} nodes")


def edges(
    context: typer.Context,
    name: NameArgument,
    source: Annotated[str | None, typer.Option(metavar="NODE", help="Only out of this node.")] = None,
    target: Annotated[str | None, typer.Option(metavar="NODE", help="Only into this node.")] = None,
    min_weight: Annotated[float | None, typer.Option(help="Only of at least this absolute weight.")] = None,
    top: TopOption = 50,
) -> None:
    """Print edges of a circuit, heaviest first."""
    given = invocation(context)
    with given.connect() as trephine:
        circuit = trephine.circuits.get(name)
        ends = {
            side: node_indices(circuit, [text])[0]
            for side, text in (("source", source), ("target", target))
            if text is not None
        }
        found = circuit.edges(min_weight=min_weight, **ends)
        named = {} if given.output.json else _named(circuit.nodes(), circuit)
    if given.output.json:
        messages = [edge.message for edge in found]
        response = circuit_service_pb2.ListEdgesResponse(edges=messages, total_size=len(found))  # type: ignore[arg-type]
        given.output.document(message_json(response))
        return
    _print_edges(given.output, found[:top], named)
    given.output.note(f"{min(top, len(found))} of {len(found)} edges")


def around(
    context: typer.Context,
    name: NameArgument,
    node: NodeArgument,
    ancestors: Annotated[int, typer.Option(help="Steps against the edges.")] = 1,
    descendants: Annotated[int, typer.Option(help="Steps along the edges.")] = 1,
    min_weight: MinWeightOption = 0.0,
    max_nodes: Annotated[
        int, typer.Option(help="At most so many nodes: those named, the most influential.")
    ] = 1000,
    top: TopOption = 20,
) -> None:
    """Print the part of a circuit around one node."""
    given = invocation(context)
    with given.connect() as trephine:
        circuit = trephine.circuits.get(name)
        part = circuit.around(
            node_indices(circuit, [node])[0],
            ancestors=ancestors,
            descendants=descendants,
            min_weight=min_weight,
            max_nodes=max_nodes,
        )
    _print_part(given.output, part, circuit, top)


def between(
    context: typer.Context,
    name: NameArgument,
    source: NodeArgument,
    target: NodeArgument,
    paths: Annotated[int, typer.Option(help="How many of the strongest paths, at most 100.")] = 10,
    min_weight: MinWeightOption = 0.0,
    max_nodes: Annotated[
        int, typer.Option(help="At most so many nodes: those named, the most influential.")
    ] = 1000,
    top: TopOption = 20,
) -> None:
    """Print all that leads from one node to another: the strongest paths, the nodes, the edges."""
    given = invocation(context)
    with given.connect() as trephine:
        circuit = trephine.circuits.get(name)
        start, end = node_indices(circuit, [source, target])
        part = circuit.between(start, end, paths=paths, min_weight=min_weight, max_nodes=max_nodes)
        written = {} if given.output.json else _addresses(circuit.nodes(), circuit)
    if not given.output.json:
        given.output.line(
            f"{part.n_paths:.6g} paths; their shares sum to {part.share:+.4g}, "
            f"absolute {part.absolute_share:.4g}"
        )
        given.output.table(
            ("SHARE", "CONTRIBUTION", "PATH"),
            (
                (
                    f"{path.share:+.3g}",
                    "" if path.contribution is None else f"{path.contribution:+.3g}",
                    " > ".join(written[index] for index in path.nodes),
                )
                for path in part.paths
            ),
        )
        given.output.line()
    _print_part(given.output, part, circuit, top)


def prune(
    context: typer.Context,
    name: NameArgument,
    node_threshold: Annotated[
        float | None, typer.Option(help="Share of the influence that nodes reach; unset 0.8.")
    ] = None,
    edge_threshold: Annotated[float | None, typer.Option(help="The same for edges; unset 0.98.")] = None,
    max_nodes: Annotated[
        int | None, typer.Option(help="At most so many features and errors; unset: no limit.")
    ] = None,
    max_edges: Annotated[int | None, typer.Option(help="At most so many edges; unset: no limit.")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="NODE", help="Keep it, as if it were pinned. Repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be left.")] = False,
) -> None:
    """Store a smaller circuit beside this one, without computing it again; pinned nodes stay."""
    given = invocation(context)
    with given.connect() as trephine:
        circuit = trephine.circuits.get(name)
        pruned = circuit.prune(
            node_threshold=node_threshold,
            edge_threshold=edge_threshold,
            max_nodes=max_nodes,
            max_edges=max_edges,
            keep=node_indices(circuit, keep or []),
            validate_only=dry_run,
        )
    if given.output.json:
        given.output.document(pruned.to_json())
        return
    info = pruned.info
    given.output.facts(
        [
            ("circuit", info.name or "none: only counted"),
            ("pruned from", info.provenance.parent),
            ("how", info.provenance.how),
            (
                "nodes, edges",
                f"{info.n_nodes} of {circuit.info.n_nodes}, {info.n_edges} of {circuit.info.n_edges}",
            ),
        ]
    )


def diff(
    context: typer.Context,
    first: NameArgument,
    second: NameArgument,
    sum_positions: Annotated[
        bool, typer.Option("--sum-positions", help="Match nodes whatever their position.")
    ] = False,
    top: TopOption = 20,
) -> None:
    """Print what two circuits have in common, and what is different."""
    given = invocation(context)
    with given.connect() as trephine:
        one, other = trephine.circuits.get(first), trephine.circuits.get(second)
        found = one.diff(other, sum_positions=sum_positions, max_nodes=max(top, 1), max_edges=max(top, 1))
    if given.output.json:
        given.output.document(found.to_json())
        return
    sets = {*one.info.set_names, *other.info.set_names}
    _print_diff(given.output, found, top, of_sets=len(sets) > 1)


def import_graph(
    context: typer.Context,
    file: Annotated[Path, path_argument("FILE", "JSON of circuit-tracer or Neuronpedia.")],
) -> None:
    """Store a foreign graph as a read-only circuit: it can be queried, labelled, pruned and compared."""
    given = invocation(context)
    with given.connect() as trephine:
        show_circuit(given.output, trephine.circuits.import_graph(file.expanduser()), 10)


def delete(context: typer.Context, name: NameArgument) -> None:
    """Forget a circuit, what was said about it, and its verifications."""
    given = invocation(context)
    with given.connect() as trephine:
        circuit = trephine.circuits.get(name)
        circuit.delete()
        given.output.note(f"deleted {circuit.name}")


def _addresses(found: Sequence[Node], circuit: Circuit) -> dict[int, str]:
    return {node.index: address(node, circuit.info.set_names) for node in found}


def _named(found: Sequence[Node], circuit: Circuit) -> dict[int, str]:
    written = _addresses(found, circuit)
    return {node.index: f"{written[node.index]} {called(node)}" for node in found}


def _print_part(output: Output, part: Subgraph, circuit: Circuit, top: int) -> None:
    if output.json:
        output.document(part.to_json())
        return
    print_nodes(output, part.nodes[:top], circuit.info)
    output.line()
    _print_edges(output, part.edges[:top], _named(part.nodes, circuit))
    output.note(
        f"{min(top, len(part.nodes))} of {part.n_nodes} nodes, "
        f"{min(top, len(part.edges))} of {part.n_edges} edges"
    )


def _print_edges(output: Output, found: Sequence[Edge], named: Mapping[int, str]) -> None:
    rows = ((f"{edge.weight:+.4g}", named[edge.source], named[edge.target]) for edge in found)
    output.table(("WEIGHT", "FROM", "TO"), rows)


def _print_diff(output: Output, found: CircuitDiff, top: int, *, of_sets: bool) -> None:
    for caveat in found.caveats:
        output.line(f"note: {caveat}")
    figures = [(one.first.name, _number(one.first.value), _number(one.second.value)) for one in found.figures]
    output.table(("FIGURE", "FIRST", "SECOND"), figures)
    output.facts([(one.name.replace("_", " "), _number(one.value)) for one in found.overlap])
    output.line()
    output.table(
        ("NODE", "IN", "FIRST", "SECOND", "CHANGE", "CALLED"),
        (
            (
                _compared(one, of_sets=of_sets),
                _whose(one.first is not None, one.second is not None),
                f"{one.first.influence:.4f}" if one.first else "",
                f"{one.second.influence:.4f}" if one.second else "",
                f"{one.change:+.4f}",
                one.label,
            )
            for one in found.nodes[:top]
        ),
    )
    output.line()
    output.table(
        ("FROM", "TO", "IN", "FIRST", "SECOND"),
        (
            (
                edge.source,
                edge.target,
                _whose(edge.first is not None, edge.second is not None),
                "" if edge.first is None else f"{edge.first:+.4g}",
                "" if edge.second is None else f"{edge.second:+.4g}",
            )
            for edge in found.edges[:top]
        ),
    )
    output.note(f"the most changed of {found.n_nodes} nodes and {found.n_edges} edges")


def _compared(one: ComparedNode, *, of_sets: bool) -> str:
    where = "" if one.position is None else f"@{one.position}"
    if one.kind is NodeKind.ERROR:
        return f"{error_of(one.layer, one.error_site)}{where}"
    if one.feature is None:
        return f"{one.kind.value}{where}"
    set_name = f"{one.feature.replacement or 'neurons'}:" if of_sets else ""
    return f"{set_name}{one.layer}:{one.feature.index}{where}"


def _whose(first: bool, second: bool) -> str:
    return "both" if first and second else "first" if first else "second"


def _number(value: float) -> str:
    return "-" if isnan(value) else f"{value:.6g}"

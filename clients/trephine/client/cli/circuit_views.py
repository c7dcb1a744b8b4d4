"""`trephine circuits explain` and `trephine trace-attention`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from trephine.client.cli.arguments import DEFAULT_MODEL, ModelOption
from trephine.client.cli.circuit_nodes import NODE_HELP, NodeArgument, node_indices
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.cli.sets import note_caveats, open_set, opened_name
from trephine.client.terminal import printable
from trephine.client.types import (
    AttentionSideTerm,
    AttentionTrace,
    EdgeExplanations,
    EdgePath,
    ExplainedEdge,
    Token,
    TokenExcitation,
)

EXPLAIN_EXAMPLES = (
    "trephine circuits explain circuits/3f9c target --top 3",
    "trephine circuits explain circuits/3f9c 12:345@6 --source token@3 --tokens 5",
)
TRACE_EXAMPLES = examples(
    'trephine trace-attention "When Mary and John went to the store, John gave a drink to" \\',
    "    --layer 16 --head 0",
    'trephine trace-attention "The capital of France is" --layer 12 --head 3 --query 4 --key 3 --set my-set',
)

_KINDS = 6
"""Kinds of terms that are printed, of at most 36."""


def explain(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="circuits/..., as `trephine circuits list` shows it.")],
    node: NodeArgument,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help=f"Only the edge from this node. Repeatable. {NODE_HELP}"),
    ] = None,
    top: Annotated[
        int, typer.Option(min=0, help="Heaviest edges into the node, where no source is named.")
    ] = 5,
    paths: Annotated[int, typer.Option(help="Paths of each edge.")] = 5,
    heads: Annotated[int, typer.Option(help="Heads of each edge.")] = 5,
    tokens: Annotated[int, typer.Option(help="Tokens of every path's de-embedding, per end.")] = 0,
) -> None:
    """Take edges into a node apart: which heads carry them, along which paths, what the weights decide."""
    given = invocation(context)
    with given.connect() as trephine:
        circuit = trephine.circuits.get(name)
        target, *sources = node_indices(circuit, [node, *(source or ())])
        edges = [(each, target) for each in sources]
        found = circuit.explain(edges, node=target, top=top, paths=paths, heads=heads, tokens=tokens)
    if given.output.json:
        given.output.document(found.to_json())
        return
    print_edges(given.output, found)


def print_edges(output: Output, found: EdgeExplanations) -> None:
    """Explained edges, one after the other."""
    for edge in found.edges:
        _print_edge(output, edge)
        output.line()
    note_caveats(output, found.caveats)


def _print_edge(output: Output, edge: ExplainedEdge) -> None:
    rule = " (estimate)" if edge.estimated else ""
    output.line(printable(f"{edge.source_label} > {edge.target_label}: {edge.weight:+.4g}{rule}"))
    rows = [("straight", f"{edge.direct:+.4g}", _part(edge.direct, edge.weight))]
    rows += [
        (str(share.hop), f"{share.weight:+.4g}", _part(share.weight, edge.weight)) for share in edge.heads
    ]
    rows.append(("other heads", f"{edge.heads_remainder:+.4g}", _part(edge.heads_remainder, edge.weight)))
    output.table(("ENTERS THROUGH", "WEIGHT", "SHARE"), rows)
    if not edge.paths:
        return
    rest = ("other paths", f"{edge.paths_remainder:+.4g}", "", "", "", "")
    output.table(
        ("PATH", "WEIGHT", "INVARIANT x DEPENDENT", "PATTERNS", "EXCITED BY", "INHIBITED BY"),
        [*map(_route, edge.paths), rest],
    )


def _part(weight: float, whole: float) -> str:
    return f"{weight / whole:.0%}" if whole else ""


def _route(path: EdgePath) -> tuple[str, ...]:
    products = " ".join(
        f"{factors.readout} {'' if factors.invariant is None else f'{factors.invariant:+.4g} x '}"
        f"{factors.dependent:.4g}"
        for factors in path.factors
    )
    return (
        " > ".join(map(str, path.hops)) or "straight",
        f"{path.weight:+.4g}",
        products,
        " ".join(f"{hop.pattern:.2f}" for hop in path.hops),
        _tokens(path.excites),
        _tokens(path.inhibits),
    )


def _tokens(found: Sequence[TokenExcitation]) -> str:
    return " ".join(repr(each.token.display) for each in found)


def trace_attention(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="The text in which the head looks somewhere.")],
    layer: Annotated[int, typer.Option(help="Its layer.")],
    head: Annotated[int, typer.Option(help="Its number.")],
    query: Annotated[int | None, typer.Option(help="Position that looks; unset: the last.")] = None,
    key: Annotated[
        int | None, typer.Option(help="Position that is looked at; unset: the one with the largest weight.")
    ] = None,
    replacement: Annotated[
        str | None,
        typer.Option("--set", "-s", metavar="SET", help="Replacement set, or folder; unset: neurons."),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SET",
            help="A further set or folder, or neurons (of MLPs that no set reconstructs). Repeatable.",
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    top: Annotated[int, typer.Option(min=0, help="Rows of each table.")] = 12,
) -> None:
    """Say why a head looked where it looked: its score taken apart, carried through the exact softmax."""
    given = invocation(context)
    with given.connect() as trephine:
        loaded = given.load(trephine, model)
        chosen = "" if replacement is None else open_set(given, trephine, loaded, replacement).set_id
        trace = loaded.trace_attention(
            prompt,
            layer=layer,
            head=head,
            query=query,
            key=key,
            replacement=chosen,
            beside=[opened_name(given, trephine, loaded, name) for name in beside or ()],
            top=top,
        )
    if given.output.json:
        given.output.document(trace.to_json())
        return
    print_trace(given.output, trace, top)


def print_trace(output: Output, trace: AttentionTrace, top: int) -> None:
    """A pattern entry with its tables."""
    output.facts(_facts(trace))
    output.line()
    keys = sorted(trace.keys, key=lambda each: -each.weight)[:top]
    output.table(
        ("KEY", "TOKEN", "SCORE", "WEIGHT", "WORTH OF A UNIT OF SCORE"),
        (
            (
                str(each.position),
                _token(trace.tokens, each.position),
                f"{each.score:+.3f}",
                f"{each.weight:.4f}",
                f"{each.sensitivity:+.4f}",
            )
            for each in keys
        ),
    )
    for title, terms in (("AT THE QUERY", trace.query_side), ("AT THE KEYS", trace.key_side)):
        output.line()
        output.table(
            (title, "SCORE", "LOG-ODDS", "SHARE OF WEIGHT", "WITHOUT IT"),
            map(_side, terms[:top]),
        )
    output.line()
    output.table(
        ("AT THE QUERY", "AT THE KEY", "SCORE", "SHARE OF WEIGHT"),
        (
            (pair.query.label, pair.key.label, f"{pair.score:+.3f}", f"{pair.share:+.4f}")
            for pair in trace.pairs[:top]
        ),
    )
    note_caveats(output, trace.caveats)


def _facts(trace: AttentionTrace) -> list[tuple[str, str]]:
    query, key = (_token(trace.tokens, position) for position in (trace.query, trace.key))
    facts = [
        ("head", f"{trace.layer}.{trace.head}, query {trace.query} {query} to key {trace.key} {key}"),
        ("weight", f"{trace.weight:.4f}, of an even spread {trace.even:.4f}: {trace.change:+.4f}"),
        (
            "shares",
            f"sum to {trace.shares_sum:+.6f}, residual {trace.residual:.1e} with {trace.nodes} nodes",
        ),
        ("score", f"{trace.score:+.4f}; its terms sum to {trace.terms_sum:+.4f}"),
    ]
    if trace.runner_up is not None:
        rival = trace.runner_up
        facts.append(("runner-up", f"key {rival} {_token(trace.tokens, rival)}"))
    kinds = sorted(trace.kinds, key=lambda term: -abs(term.score))[:_KINDS]
    told = ", ".join(f"{term.query.value} x {term.key.value} {term.score:+.3f}" for term in kinds)
    facts.append(("by kind", told))
    return facts


def _side(term: AttentionSideTerm) -> tuple[str, ...]:
    return (
        term.source.label,
        f"{term.score:+.3f}",
        f"{term.log_odds:+.3f}",
        f"{term.share:+.4f}",
        f"{-term.alone:+.4f}",
    )


def _token(tokens: Sequence[Token], position: int) -> str:
    return repr(tokens[position].display)

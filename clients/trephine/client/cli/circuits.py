from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from trephine.client.cli import circuit_annotations as annotating
from trephine.client.cli import circuit_queries as queries
from trephine.client.cli import circuit_verification as verification
from trephine.client.cli import circuit_views as views
from trephine.client.cli import group_scores as scoring
from trephine.client.cli.arguments import path_option
from trephine.client.cli.discover import show_circuit
from trephine.client.cli.discover_global import show_global_circuit
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.decoding import message_json
from trephine.client.types import CircuitInfo
from trephine.v1 import circuit_service_pb2

_NAMED = 3
"""Targets that a list names at most."""

app = typer.Typer(no_args_is_help=True, help="Look at circuits that were found.")

NameArgument = Annotated[str, typer.Argument(help="circuits/..., as `trephine circuits list` shows it.")]


@app.command("list")
def list_circuits(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", "-m", help="Only of this model.")] = "",
    replacements: Annotated[
        str, typer.Option("--replacements", "-r", help="Only over this set, alone or beside others.")
    ] = "",
    prompt: Annotated[str, typer.Option(help="Only of prompts that hold this text.")] = "",
    parent: Annotated[str, typer.Option(help="Only what was pruned from this circuit.")] = "",
) -> None:
    """List stored circuits, newest first."""
    given = invocation(context)
    with given.connect() as trephine:
        found = trephine.circuits.list(model=model, replacement=replacements, prompt=prompt, parent=parent)
        circuits = [circuit.info for circuit in found]
    if given.output.json:
        messages = [circuit.message for circuit in circuits]
        given.output.document(message_json(circuit_service_pb2.ListCircuitsResponse(circuits=messages)))  # type: ignore[arg-type]
        return
    rows = [
        (
            one.name,
            one.create_time,
            one.version.model,
            ", ".join(one.set_names),
            one.provenance.origin,
            f"{one.n_nodes}, {one.n_edges}",
            _explained(one),
            repr(one.prompt) if one.across is None else f"{one.across.training} texts",
        )
        for one in circuits
    ]
    columns = ("NAME", "CREATED", "MODEL", "SET", "ORIGIN", "NODES, EDGES", "TARGET", "PROMPT")
    given.output.table(columns, rows)


def _explained(info: CircuitInfo) -> str:
    """What a circuit explains; of many targets, as global circuits have, the first."""
    labels = [target.label for target in info.targets]
    more = len(labels) - _NAMED
    return info.target_label if more <= 0 else f"{', '.join(labels[:_NAMED])} and {more} more"


@app.command()
def show(
    context: typer.Context,
    name: NameArgument,
    top: Annotated[int, typer.Option(min=0, help="Features, or edges of a global circuit, to print.")] = 15,
) -> None:
    """Print a circuit and its strongest features, or a global one and its heaviest edges."""
    given = invocation(context)
    with given.connect() as trephine:
        circuit = trephine.circuits.get(name)
        show = show_circuit if circuit.info.across is None else show_global_circuit
        show(given.output, circuit, top)


@app.command(
    epilog=examples(
        "trephine circuits export circuits/3f9c --out out/circuit",
        "trephine circuits export circuits/3f9c --out out/circuit --feature-pages 20",
    )
)
def export(
    context: typer.Context,
    name: NameArgument,
    out: Annotated[Path, path_option("--out", "A folder, or one .html, .json or .graphml file.")],
    feature_pages: Annotated[
        int, typer.Option(min=0, help="Also write the pages of so many of its strongest features, linked.")
    ] = 0,
    node_threshold: Annotated[
        float | None,
        typer.Option(help="Share of the influence that nodes reach; unset 0.8, all if it was pruned."),
    ] = None,
    edge_threshold: Annotated[
        float | None, typer.Option(help="The same for edges; unset 0.98, all if it was pruned.")
    ] = None,
) -> None:
    """Write a circuit as an interactive page, as JSON in the Neuronpedia schema, or as GraphML."""
    given = invocation(context)
    with given.connect() as trephine:
        written = trephine.circuits.get(name).save(
            out, feature_pages=feature_pages, node_threshold=node_threshold, edge_threshold=edge_threshold
        )
        for path in written:
            given.output.line(str(path))


_COMMANDS: tuple[tuple[Callable[..., None], str, tuple[str, ...]], ...] = (
    (queries.nodes, "nodes", ("trephine circuits nodes circuits/3f9c --layer 12 --order effect",)),
    (queries.edges, "edges", ("trephine circuits edges circuits/3f9c --target 12:345@6",)),
    (queries.around, "around", ("trephine circuits around circuits/3f9c 12:345@6 --ancestors 2",)),
    (queries.between, "between", ("trephine circuits between circuits/3f9c token@3 target",)),
    (queries.prune, "prune", ("trephine circuits prune circuits/3f9c --max-nodes 50 --keep 12:345@6",)),
    (queries.diff, "diff", ("trephine circuits diff circuits/3f9c circuits/77ab --sum-positions",)),
    (queries.import_graph, "import", ("trephine circuits import graph.json",)),
    (queries.delete, "delete", ()),
    (annotating.pin, "pin", ("trephine circuits pin circuits/3f9c 12:345@6 token@3",)),
    (annotating.unpin, "unpin", ()),
    (annotating.label, "label", ('trephine circuits label circuits/3f9c 12:345@6 "capital cities"',)),
    (
        annotating.group,
        "group",
        (
            'trephine circuits group circuits/3f9c "France" 12:345@6 13:77@6',
            "trephine circuits group circuits/3f9c --auto --min-similarity 0.4",
            "trephine circuits group circuits/3f9c --auto --by edges --min-shown 0.8",
        ),
    ),
    (scoring.groups, "groups", ("trephine circuits groups circuits/3f9c",)),
    (views.explain, "explain", views.EXPLAIN_EXAMPLES),
    (verification.verify, "verify", verification.VERIFY_EXAMPLES),
    (verification.verifications, "verifications", ()),
    (annotating.said, "annotations", ("trephine circuits annotations circuits/3f9c --out said.json",)),
)
for command, title, shown in _COMMANDS:
    app.command(title, epilog=examples(*shown) if shown else None)(command)

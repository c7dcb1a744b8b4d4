from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trephine.client.cli.discover import show_circuit
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.decoding import message_json
from trephine.v1 import circuit_service_pb2

app = typer.Typer(no_args_is_help=True, help="Look at circuits that were found.")

NameArgument = Annotated[str, typer.Argument(help="circuits/..., as `trephine circuits list` shows it.")]


@app.command("list")
def list_circuits(context: typer.Context) -> None:
    """List stored circuits, newest first."""
    given = invocation(context)
    with given.connect() as trephine:
        circuits = [circuit.info for circuit in trephine.circuits.list()]
    if given.output.json:
        messages = [circuit.message for circuit in circuits]
        given.output.document(message_json(circuit_service_pb2.ListCircuitsResponse(circuits=messages)))  # type: ignore[arg-type]
        return
    rows = [
        (one.name, one.create_time, one.version.model, repr(one.target.display), repr(one.prompt))
        for one in circuits
    ]
    given.output.table(("NAME", "CREATED", "MODEL", "TARGET", "PROMPT"), rows)


@app.command()
def show(
    context: typer.Context,
    name: NameArgument,
    top: Annotated[int, typer.Option(help="Neurons to print.")] = 15,
) -> None:
    """Print a circuit and its strongest neurons."""
    given = invocation(context)
    with given.connect() as trephine:
        show_circuit(given.output, trephine.circuits.get(name), top)


@app.command(
    epilog=examples(
        "trephine circuits export circuits/3f9c --out out/circuit",
        "trephine circuits export circuits/3f9c --out out/circuit --feature-pages 20",
    )
)
def export(
    context: typer.Context,
    name: NameArgument,
    out: Annotated[Path, typer.Option(help="A folder, or one .html or .json file.")],
    feature_pages: Annotated[
        int, typer.Option(help="Also write the pages of so many of its strongest features, linked.")
    ] = 0,
) -> None:
    """Write a circuit as an interactive page and as JSON in the Neuronpedia schema."""
    given = invocation(context)
    with given.connect() as trephine:
        for path in trephine.circuits.get(name).save(out, feature_pages=feature_pages):
            given.output.line(str(path))

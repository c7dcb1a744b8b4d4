"""`trephine dataset-circuits list|show|graph`: circuits of behaviours that were found before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trephine.client.circuit_files import files_of
from trephine.client.cli.arguments import path_option
from trephine.client.cli.discover import show_circuit
from trephine.client.cli.discover_dataset import show_dataset_circuit
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.decoding import message_json
from trephine.client.downloads import require_writable, write_file
from trephine.v1 import dataset_circuits_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="Look at circuits of behaviours that were found.")


@app.command("list")
def list_dataset_circuits(context: typer.Context) -> None:
    """List stored circuits of behaviours, newest first."""
    given = invocation(context)
    with given.connect() as trephine:
        found = trephine.dataset_circuits.list()
    if given.output.json:
        messages = [one.message for one in found]
        given.output.document(message_json(pb.ListDatasetCircuitsResponse(dataset_circuits=messages)))  # type: ignore[arg-type]
        return
    rows = [
        (
            one.name,
            one.create_time,
            one.version.model,
            ", ".join((one.replacement, *one.beside)),
            f"{one.estimator.value}, {one.patch.value}",
            f"{one.training} + {one.held_out}",
        )
        for one in found
    ]
    given.output.table(("NAME", "CREATED", "MODEL", "NODES OF", "FOUND BY", "CONTEXTS"), rows)


@app.command()
def show(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="datasetCircuits/..., as `trephine dataset-circuits list` shows it.")
    ],
    top: Annotated[int, typer.Option(min=0, help="Nodes to print.")] = 15,
    out: Annotated[Path | None, path_option("--out", "Write everything into this .json file.")] = None,
) -> None:
    """Print a stored circuit of a behaviour, as it was printed when it was found."""
    given = invocation(context)
    with given.connect() as trephine:
        found = trephine.dataset_circuits.get(name)
    show_dataset_circuit(given.output, found, top)
    if out is not None:
        given.output.note(f"wrote {write_file(out, found.to_json().encode())}")


@app.command(
    epilog=examples(
        "trephine dataset-circuits graph datasetCircuits/3f9c --out out/behaviour",
        'trephine dataset-circuits graph datasetCircuits/3f9c --circuit "cluster 1" --out graph.graphml',
    )
)
def graph(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="datasetCircuits/..., as `trephine dataset-circuits list` shows it.")
    ],
    circuit: Annotated[str, typer.Option(help='`all`, or of a cluster: "cluster 1".')] = "all",
    top: Annotated[int, typer.Option(min=0, help="Nodes to print.")] = 15,
    out: Annotated[
        Path | None, path_option("--out", "A folder, or one .html, .json or .graphml file.")
    ] = None,
) -> None:
    """Store it as a graph, for `trephine circuits`: query, pin, label, group, prune, diff, export."""
    given = invocation(context)
    if out is not None:
        require_writable(*(path for _, path in files_of(out)))
    with given.connect() as trephine:
        found = trephine.dataset_circuits.graph(name, circuit)
        show_circuit(given.output, found, top)
        if out is not None:
            for path in found.save(out):
                given.output.note(f"wrote {path}")

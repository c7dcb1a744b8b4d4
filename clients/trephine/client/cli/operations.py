from __future__ import annotations

from typing import Annotated, Any

import typer
from google.longrunning import operations_pb2

from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.decoding import message_json
from trephine.client.operations import Operation

app = typer.Typer(no_args_is_help=True, help="Watch and cancel long work.")

NameArgument = Annotated[str, typer.Argument(help="operations/..., as --detach printed it.")]


@app.command("list")
def list_operations(context: typer.Context) -> None:
    """List operations, newest first."""
    given = invocation(context)
    with given.connect() as trephine:
        operations = trephine.operations.list()
    if given.output.json:
        messages = [operation.message for operation in operations]
        response = operations_pb2.ListOperationsResponse(operations=messages)
        given.output.document(message_json(response))
        return
    rows = [
        (one.name, meta.method, meta.state, meta.create_time, meta.result)
        for one in operations
        for meta in (one.metadata,)
    ]
    given.output.table(("NAME", "METHOD", "STATE", "CREATED", "RESULT"), rows)


@app.command()
def show(context: typer.Context, name: NameArgument) -> None:
    """Print where an operation is."""
    given = invocation(context)
    with given.connect() as trephine:
        _show(given.output, trephine.operations.get(name))


@app.command()
def wait(context: typer.Context, name: NameArgument) -> None:
    """Wait for an operation to end; Ctrl-C cancels it."""
    given = invocation(context)
    with given.connect() as trephine:
        operation = trephine.operations.get(name)
        given.complete(trephine, operation, operation.metadata.method)
        _show(given.output, operation)


@app.command()
def cancel(context: typer.Context, name: NameArgument) -> None:
    """Ask an operation to stop; it does within moments."""
    given = invocation(context)
    with given.connect() as trephine:
        operation = trephine.operations.get(name)
        operation.cancel()
        operation.refresh()
        _show(given.output, operation)


def _show(output: Output, operation: Operation[Any]) -> None:
    if output.json:
        output.document(operation.to_json())
        return
    meta = operation.metadata
    progress = f"{meta.progress.stage} {meta.progress.done}/{meta.progress.total}"
    output.facts(
        [
            ("operation", operation.name),
            ("method", meta.method),
            ("state", meta.state),
            ("progress", progress if meta.progress.stage else ""),
            ("started", f"{meta.create_time}, attempt {meta.attempts}"),
            ("ended", meta.end_time),
            ("result", meta.result),
        ]
    )

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from trephine.client.cli.arguments import DEFAULT_MODEL, ModelOption, path_argument, path_option
from trephine.client.cli.feature_sets import OWN, SetOption, features_of
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.decoding import message_json
from trephine.client.downloads import write_file
from trephine.v1 import feature_service_pb2

app = typer.Typer(no_args_is_help=True, help="Bring labels in and out.")

AuthorOption = Annotated[str | None, typer.Option(help="Who wrote it; unset: you.")]


@app.command("list")
def list_labels(
    context: typer.Context,
    set_name: SetOption = "",
    layer: Annotated[int | None, typer.Option(help="Only this layer.")] = None,
    model: ModelOption = DEFAULT_MODEL,
) -> None:
    """List the labels of a set."""
    given = invocation(context)
    with given.connect() as trephine:
        labels = features_of(given, trephine, model, set_name).labels(layer=layer)
    if given.output.json:
        messages = [label.message for label in labels]
        response = feature_service_pb2.ListFeatureLabelsResponse(labels=messages)  # type: ignore[arg-type]
        given.output.document(message_json(response))
        return
    rows = [(str(one.feature), one.text, one.author, one.create_time) for one in labels]
    given.output.table(("FEATURE", "LABEL", "AUTHOR", "CHANGED"), rows)


@app.command("import", epilog=examples("trephine features labels import labels.jsonl --set smollm2-135m-tc"))
def import_labels(
    context: typer.Context,
    file: Annotated[
        Path, path_argument("FILE", 'JSONL: {"layer": 12, "index": 345, "label": "..."} a line.')
    ],
    set_name: SetOption = "",
    author: AuthorOption = None,
    model: ModelOption = DEFAULT_MODEL,
) -> None:
    """Store the labels of a JSONL file; labels that are there are replaced.

    Without --set they are stored for the model's own neurons. A file that `export` wrote names its set,
    and is refused for another one.
    """
    given = invocation(context)
    with given.connect() as trephine:
        features = features_of(given, trephine, model, set_name)
        stored = features.import_labels(file.expanduser(), author=author or whoami())
    where = f"features of {set_name}" if set_name not in OWN else f"neurons of {model}"
    given.output.note(f"stored {stored} labels of {where}")
    if not set_name:
        given.output.note("for features of a replacement set name it with --set")


@app.command("export", epilog=examples("trephine features labels export --set my-set > labels.jsonl"))
def export_labels(
    context: typer.Context,
    set_name: SetOption = "",
    out: Annotated[Path | None, path_option("--out", "A file; unset: stdout.")] = None,
    model: ModelOption = DEFAULT_MODEL,
) -> None:
    """Write the labels of a set as JSONL, as `import` reads them."""
    given = invocation(context)
    with given.connect() as trephine:
        lines = features_of(given, trephine, model, set_name).export_labels()
    if out is None:
        given.output.document(lines.decode())
    else:
        given.output.line(str(write_file(out, lines)))


def whoami() -> str:
    """The user's name on this machine; empty where there is none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""

"""Deltas on the command line; neither needs a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from trephine.client.cli.arguments import path_argument, path_option
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.deltas import apply_delta, make_delta

MAKE_DELTA_EXAMPLES = examples("trephine make-delta smollm2 out/edited --out out/edited.delta")
APPLY_DELTA_EXAMPLES = examples("trephine apply-delta out/edited.delta --parent smollm2 --out out/again")


def make(
    context: typer.Context,
    parent: Annotated[
        str, typer.Argument(help="What the export was compiled from: a folder, or a fetched model's name.")
    ],
    exported: Annotated[Path, path_argument("EXPORTED", "A folder that `trephine export` made.")],
    out: Annotated[Path, path_option("--out", "Folder to make; it must not exist.")],
) -> None:
    """Write an export as its difference from the parent: small, and applied without a server."""
    output = invocation(context).output
    made = make_delta(parent, exported, out)
    size = sum(path.stat().st_size for path in made.iterdir())
    if output.json:
        output.document(json.dumps({"folder": str(made), "bytes": size}))
        return
    output.line(f"{made}: {size / 2**20:.1f} MiB")


def apply(
    context: typer.Context,
    delta: Annotated[Path, path_argument("DELTA", "A folder that `trephine make-delta` made.")],
    parent: Annotated[
        str, typer.Option(help="What the export was compiled from: a folder, or a fetched model's name.")
    ],
    out: Annotated[Path, path_option("--out", "Folder to make; it must not exist.")],
) -> None:
    """Rebuild an exported folder from its parent and a delta, every byte checked."""
    output = invocation(context).output
    made = apply_delta(delta, parent, out)
    if output.json:
        output.document(json.dumps({"folder": str(made)}))
        return
    output.line(
        f"{made}: every file has the sha256 that the delta names; whose it is, and if it is whole, says: "
        f"trephine verify {made}"
    )

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trephine.client.cli.arguments import DEFAULT_MODEL, ModelOption, path_option
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.demo.story import tell

DEMO_EXAMPLES = examples(
    "trephine demo --out out/demo",
)


def demo(
    context: typer.Context,
    out: Annotated[Path, path_option("--out", "Folder for everything that the demo makes.")] = Path(
        "out/demo"
    ),
    model: ModelOption = DEFAULT_MODEL,
) -> None:
    """The whole way on a real model: open it, find a circuit, cut it, prove it, export it, audit it.

    Takes a few minutes on two cores. The folder also holds the demo's own server state; it is cleared
    first, but only if an earlier demo made it.
    """
    raise typer.Exit(tell(out, model=model, output=invocation(context).output))

"""GGUF files of an export: how much of the edit each still carries."""

from __future__ import annotations

from typing import Annotated

import typer

from trephine.client.cli.output import Output
from trephine.client.types import Certificate
from trephine.client.types.gguf import GgufType, QuantisedCopy

GgufOption = Annotated[
    list[str] | None,
    typer.Option(
        "--gguf",
        metavar="TYPE",
        help="Write a GGUF file of this type as well and measure whether it still carries the edit: "
        f"{', '.join(kind.value for kind in list(GgufType)[1:])}. Repeat for several.",
    ),
]


def show_quantised(output: Output, certificate: Certificate) -> None:
    """Print the figures of every file; nothing where there is none."""
    if certificate.quantised:
        output.table(
            ("GGUF", "MIB", "EDIT KL", "LEFT", "RECOVERY", "ON FIRING", "PPL RATIO", "QUANTISING"),
            [_row(copy) for copy in certificate.quantised],
        )


def _row(copy: QuantisedCopy) -> tuple[str, ...]:
    return (
        copy.file,
        f"{copy.size / 2**20:.0f}",
        f"{copy.edit_kl:.2e}",
        f"{copy.kl:.2e}",
        _share(copy.recovery, copy.kl),
        _share(copy.recovery_firing, copy.kl_firing),
        f"{copy.perplexity_ratio:.4f}",
        f"{copy.quantisation_kl:.2e}",
    )


def _share(share: float | None, left: float | None) -> str:
    """Write a share; a dash where nothing was measured, and a word where what was measured did not move."""
    if share is not None:
        return f"{share:.4f}"
    return "-" if left is None else "no effect"

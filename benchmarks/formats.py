"""The table of formats, measured from the committed fixtures: `python -m benchmarks.formats`.

Each fixture was written by the format's own library; the difference is this project's encode, decode,
forward (with skip) and error against that library's, the largest relative to the largest expected value.
`docs/formats.md` holds what it printed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

# The fixtures belong to the tests; this command prints what they assert.
from tests.replacement_fixtures import ROOT, Fixture, differences, fixtures  # noqa: TID251
from trephine.domain.replacements import SetFormat
from trephine.engine.replacements.formats.opening import UNVERIFIED

_WRITERS = {
    SetFormat.SAELENS: ("requirements_saelens.txt", "sae-lens"),
    SetFormat.CIRCUIT_TRACER: ("requirements_circuit_tracer.txt", "circuit-tracer"),
    SetFormat.CIRCUIT_TRACER_CLT: ("requirements_circuit_tracer.txt", "circuit-tracer"),
    SetFormat.GEMMA_SCOPE_2_CLT: ("requirements_circuit_tracer.txt", "circuit-tracer"),
    SetFormat.SPARSIFY: ("requirements_sparsify.txt", "eai-sparsify"),
}
_FLAT = ("requirements_saelens_flat.txt", "sae-lens")
"""SAELens before version 6; its fixtures are named `flat_...`."""
_HEADINGS = ("format", "fixture", "kind", "support", "normalisation", "written by", "difference", "standing")


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatRow:
    """One fixture."""

    format: str
    fixture: str
    kind: str
    support: str
    normalisation: str
    writer: str
    difference: float
    verified: bool

    @property
    def cells(self) -> tuple[str, ...]:
        """What the table shows."""
        standing = "verified" if self.verified else "layout only"
        shown = "0" if self.difference == 0 else f"{self.difference:.0e}"
        return (
            self.format,
            self.fixture,
            self.kind,
            self.support,
            self.normalisation,
            self.writer,
            shown,
            standing,
        )


def rows() -> Iterator[FormatRow]:
    """Measure every fixture."""
    for fixture in fixtures():
        info = fixture.open().layers[0].info
        yield FormatRow(
            format=fixture.format.value,
            fixture=fixture.name,
            kind=info.kind.value,
            support=info.support.value,
            normalisation=info.normalisation,
            writer=_writer(fixture),
            difference=max(differences(fixture).values()),
            verified=fixture.format not in UNVERIFIED,
        )


def _writer(fixture: Fixture) -> str:
    """Return library and version as its environment pins them."""
    flat = fixture.name.startswith("flat_")
    requirements, library = _FLAT if flat else _WRITERS[fixture.format]
    lines = (ROOT / "writers" / requirements).read_text(encoding="utf-8").splitlines()
    version = next(line.split("==")[1] for line in lines if line.startswith(f"{library}=="))
    by = "laid by hand, read by " if fixture.format in UNVERIFIED else ""
    return f"{by}{library} {version}"


def table() -> str:
    """Return the Markdown table."""
    lines = [_HEADINGS, ("---",) * len(_HEADINGS), *(row.cells for row in rows())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())

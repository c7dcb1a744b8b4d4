"""A fit's training curve: a handful of points on the terminal, all of them as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from trephine.client.cli.output import Output
from trephine.client.downloads import require_writable, write_file
from trephine.client.errors import InvalidRequestError
from trephine.client.types import FitPoint, FitReport

_COLUMNS = ("phase", "layer", "tokens", "fvu", "l0", "dead_share", "kl")
_LINES = 24
"""Lines that a terminal spares for curves; more curves get their two ends each."""
_POINTS = 6
"""Most points of one curve."""


def show_curve(output: Output, points: Sequence[FitPoint], *, dead_after_tokens: int) -> None:
    """Print evenly spread points of every phase and layer, first and last included.

    Args:
        output: Where to.
        points: All of them.
        dead_after_tokens: Within fewer tokens no feature can be called dead, and none is said to be.
    """
    if not points:
        return
    curves: dict[tuple[str, int], list[FitPoint]] = {}
    for point in points:
        curves.setdefault((point.phase, point.layer), []).append(point)
    most = min(_POINTS, max(2, _LINES // len(curves)))
    shown = [point for curve in curves.values() for point in _spread(curve, most)]
    output.line()
    output.table(
        ("PHASE", "LAYER", "TOKENS", "FVU", "L0", "DEAD", "KL"),
        [_row(point, dead_after_tokens) for point in shown],
    )
    output.line()
    if any(point.tokens < dead_after_tokens for point in shown):
        output.note(f"DEAD counts what was silent for {dead_after_tokens:,} tokens; before as many it is -")
    if len(shown) < len(points):
        output.note(f"{len(shown)} of {len(points)} points of the curves; --out FILE.csv writes all")


def curve_csv(points: Sequence[FitPoint]) -> str:
    """All points, one a line; `kl` is empty outside the end-to-end phase, layer -1 is all layers."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(_COLUMNS)
    lines.writerows([getattr(point, column) for column in _COLUMNS] for point in points)
    return text.getvalue()


def check_fit_file(path: Path | None) -> None:
    """Refuse a file of another kind, or one that cannot be written, before any work.

    Raises:
        InvalidRequestError: If it is neither CSV nor JSON.
        LocalFileError: If it cannot be written.
    """
    if path is None:
        return
    if path.suffix not in (".csv", ".json"):
        raise InvalidRequestError(
            f"{path} is neither *.csv (the curves) nor *.json (the report)", field="out"
        )
    require_writable(path)


def write_fit(path: Path, report: FitReport) -> Path:
    """Write the curves as CSV, or the whole report as JSON.

    Raises:
        InvalidRequestError: If the file is of another kind.
        LocalFileError: If it cannot be written.
    """
    check_fit_file(path)
    text = curve_csv(report.curve) if path.suffix == ".csv" else report.to_json()
    return write_file(path.expanduser(), text.encode())


def _spread(curve: Sequence[FitPoint], most: int) -> list[FitPoint]:
    count = min(most, len(curve))
    places = [round(place * (len(curve) - 1) / max(1, count - 1)) for place in range(count)]
    return [curve[place] for place in places]


def _row(point: FitPoint, dead_after_tokens: int) -> tuple[str, ...]:
    return (
        point.phase.replace("_", " "),
        "all" if point.layer < 0 else str(point.layer),
        f"{point.tokens:,}",
        f"{point.fvu:.3f}",
        f"{point.l0:.1f}",
        f"{point.dead_share:.1%}" if point.tokens >= dead_after_tokens else "-",
        "" if point.kl is None else f"{point.kl:.4f}",
    )

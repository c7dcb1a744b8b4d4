"""How good a circuit's groups are, in tables: `trephine circuits groups`, `... group --auto`."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from trephine.client.cli.circuit_queries import NameArgument
from trephine.client.cli.circuit_verification import STANDINGS
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.types import (
    ControlRange,
    GroupFigure,
    GroupingScores,
    GroupQuality,
    GroupScore,
    PictureFigures,
)

_NAMES = {
    GroupQuality.SOURCES: "lumpability of sources (0 is best)",
    GroupQuality.GOALS: "lumpability of goals (0 is best)",
    GroupQuality.EFFECT_SIGN: "sign of effects (1 is best)",
    GroupQuality.EDGE_SIGN: "sign of edges (1 is best)",
    GroupQuality.SHOWN: "path mass shown (1 is best)",
}
_OF_GROUPS = (GroupQuality.SOURCES, GroupQuality.GOALS, GroupQuality.EFFECT_SIGN, GroupQuality.EDGE_SIGN)


def groups(context: typer.Context, name: NameArgument) -> None:
    """Score a circuit's groups, found or made by hand, beside random ones of the same sizes."""
    given = invocation(context)
    with given.connect() as trephine:
        scores = trephine.circuits.get(name).group_scores()
        if given.output.json:
            given.output.document(scores.to_json())
            return
        show_scores(given.output, scores)


def show_scores(output: Output, scores: GroupingScores) -> None:
    """Print each group's figures, then the whole's beside both controls, then what it means."""
    output.line(
        f"each figure beside random groups of the same size and place: median and p of {scores.draws} draws"
    )
    columns = ("GROUP", "NODES", "INFLUENCE", "SOURCES", "GOALS", "EFFECT SIGN", "EDGE SIGN")
    output.table(columns, [_row(one) for one in scores.groups])
    output.line()
    rows = [
        (
            _NAMES.get(one.quality, one.quality.value),
            f"{one.value:.3f}",
            *_cells(one.random),
            *_cells(one.by_layer),
            STANDINGS.get(one.standing, one.standing.value),
        )
        for one in scores.whole
    ]
    output.table(("ALL GROUPS", "VALUE", "RANDOM, 95 %", "P", "BY LAYER, 95 %", "P", "CONTROLS"), rows)
    output.line()
    output.facts(_picture(scores))
    for caveat in scores.caveats:
        output.line(f"note: {caveat}")


def _row(one: GroupScore) -> tuple[str, ...]:
    figures = {figure.quality: figure for figure in one.figures}
    cells = [_beside_random(figures.get(quality)) for quality in _OF_GROUPS]
    return (one.group, str(one.nodes), f"{one.influence:.4f}", *cells)


def _beside_random(figure: GroupFigure | None) -> str:
    if figure is None:
        return ""
    return f"{figure.value:.2f} ({figure.random.median:.2f}, p {figure.random.p:.3f})"


def _cells(found: ControlRange) -> tuple[str, str]:
    return f"{found.median:.3f} [{found.low:.3f}, {found.high:.3f}]", f"{found.p:.3f}"


def _picture(scores: GroupingScores) -> Iterable[tuple[str, str]]:
    before, after = scores.before, scores.after
    yield "nodes", f"{before.nodes} -> {after.nodes}"
    yield "edges", f"{before.edges} -> {after.edges}"
    yield "path mass not shown", f"{scores.inside:.3f} inside groups, {scores.cancelled:.3f} cancelled"
    if before.replacement is not None and before.completeness is not None:
        yield "replacement, completeness", f"{_scores(before)} -> {_scores(after)}"
    yield "verdict", scores.verdict


def _scores(one: PictureFigures) -> str:
    return ", ".join("unknown" if x is None else f"{x:.3f}" for x in (one.replacement, one.completeness))

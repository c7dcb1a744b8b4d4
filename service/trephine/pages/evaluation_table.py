"""An evaluation of a replacement set as plain data: one line per figure, or everything as JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import StringIO
from math import isfinite

from trephine.domain.findings import Figure
from trephine.domain.replacements import ReplacementEvaluation, SplicedScore
from trephine.pages.embed import json_island, printable

LAYER_FIGURES = ("fvu", "l0", "ce_score", "ce_score_zero", "kl_score", "kl_score_zero", "top1_agreement")
"""Figures that every layer has; `error_share` is none of them, since older evaluations lack it."""
SPLICED_FIGURES = (
    "ce_plain",
    "ce_spliced",
    "ce_mean_ablated",
    "ce_zero_ablated",
    "ce_score",
    "ce_score_zero",
    "kl",
    "kl_score",
    "kl_score_zero",
    "top1_agreement",
    "error_share",
)
SPLICED_ACTIVITY = ("fvu", "l0", "dead_share")
"""Means over layers in the spliced run, and of each layer there; older evaluations lack them."""
_COLUMNS = ("scope", "dictionary", "figure", "value", "low", "high", "unit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One figure with where it belongs."""

    scope: str
    """`layer 3`, `all layers`, `layer 3 of all spliced`, `depth 2`."""
    dictionary: str
    figure: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""


def lines(evaluation: ReplacementEvaluation) -> Iterator[Line]:
    """Every figure of an evaluation: layers, all layers, depths."""
    for layer in evaluation.layers:
        scope, dictionary = f"layer {layer.layer}", layer.dictionary.value
        for name in LAYER_FIGURES:
            yield _line(scope, dictionary, name, getattr(layer, name))
        if layer.error_share is not None:
            yield _line(scope, dictionary, "error_share", layer.error_share)
        yield _line(scope, dictionary, "dead_share", layer.dead_share)
    for spliced in evaluation.spliced:
        for name in SPLICED_FIGURES:
            yield _line("all layers", spliced.dictionary.value, name, getattr(spliced, name))
        yield from _spliced(spliced)
    for depth in evaluation.depths:
        scope, dictionary = f"depth {depth.depth}", depth.dictionary.value
        yield _line(scope, dictionary, "cosine", depth.cosine)
        yield _line(scope, dictionary, "nmse", depth.nmse)


def _spliced(score: SplicedScore) -> Iterator[Line]:
    """What layers do while all are spliced; nothing of an older evaluation."""
    dictionary = score.dictionary.value
    for name in SPLICED_ACTIVITY:
        figure = getattr(score, name)
        if figure is not None:
            yield _line("all layers", dictionary, name, figure)
    for layer in score.layers:
        for name in SPLICED_ACTIVITY:
            yield _line(f"layer {layer.layer} of all spliced", dictionary, name, getattr(layer, name))


def evaluation_csv(evaluation: ReplacementEvaluation) -> str:
    """Return a table with a header row; what is no finite number is an empty cell."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for line in lines(evaluation):
        numbers = (_cell(line.value), _cell(line.low), _cell(line.high))
        writer.writerow((line.scope, line.dictionary, line.figure, *numbers, printable(line.unit)))
    return text.getvalue()


def evaluation_json(evaluation: ReplacementEvaluation, *, name: str) -> str:
    """Return everything, the set with its admission included; what is no finite number is null."""
    plain = json.loads(json_island({"name": name, **asdict(evaluation)}))
    return json.dumps(plain, indent=1, ensure_ascii=True) + "\n"


def _line(scope: str, dictionary: str, name: str, figure: Figure | float) -> Line:
    if not isinstance(figure, Figure):
        return Line(scope=scope, dictionary=dictionary, figure=name, value=figure)
    return Line(
        scope=scope,
        dictionary=dictionary,
        figure=name,
        value=figure.value,
        low=figure.low,
        high=figure.high,
        unit=figure.unit,
    )


def _cell(value: float | None) -> str:
    return "" if value is None or not isfinite(value) else repr(float(value))

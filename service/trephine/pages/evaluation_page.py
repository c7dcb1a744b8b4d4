"""An evaluation of a replacement set as one self-contained page without any script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from jinja2 import Environment
from markupsafe import Markup

from trephine.domain.findings import Figure
from trephine.domain.replacements import (
    DepthFaithfulness,
    Dictionary,
    LayerScore,
    ReplacementEvaluation,
    SplicedLayer,
)
from trephine.pages.embed import asset, content_policy, printable
from trephine.pages.evaluation_plot import Series, layer_plot
from trephine.pages.evaluation_table import SPLICED_ACTIVITY, SPLICED_FIGURES

DICTIONARIES = {
    Dictionary.GIVEN: "the set",
    Dictionary.RANDOM: "random dictionary",
    Dictionary.FROZEN_DECODER: "frozen decoder",
    Dictionary.FROZEN_ENCODER: "frozen encoder",
}
FIGURES = {
    "ce_plain": "cross-entropy of the model",
    "ce_spliced": "cross-entropy, spliced",
    "ce_mean_ablated": "cross-entropy, mean-ablated",
    "ce_zero_ablated": "cross-entropy, zero-ablated",
    "ce_score": "cross-entropy recovered",
    "ce_score_zero": "cross-entropy recovered, of zero ablation",
    "kl": "divergence from the model",
    "kl_score": "divergence avoided",
    "kl_score_zero": "divergence avoided, of zero ablation",
    "top1_agreement": "same most likely token",
    "error_share": "share of the error in the norm",
    "fvu": "variance unexplained, mean of layers",
    "l0": "active features, mean of layers",
    "dead_share": "share of dead features, mean of layers",
}
LAYER_TITLES = {
    "fvu": "FVU",
    "l0": "L0",
    "dead_share": "dead",
    "ce_score": "CE score",
    "ce_score_zero": "CE score, of zero",
    "kl_score": "KL score",
    "kl_score_zero": "KL score, of zero",
    "top1_agreement": "top-1",
    "error_share": "error share",
}
Cell = Figure | float | None
"""A figure, a share without an interval, or nothing: not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplicedRow:
    """One figure of all layers spliced, a cell per dictionary."""

    title: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer of one dictionary, a cell per figure."""

    layer: int
    dictionary: Dictionary
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthRow:
    """One depth, a cell per dictionary."""

    depth: int
    pairs: int
    cells: tuple[DepthFaithfulness | None, ...]


def evaluation_html(evaluation: ReplacementEvaluation, *, name: str, create_time: str) -> str:
    """Return the page: claims, all layers spliced, plots and table by layer, depths, admission, caveats."""
    return _TEMPLATES.from_string(asset("evaluation.html")).render(
        evaluation=evaluation,
        info=evaluation.replacement,
        name=name,
        create_time=create_time,
        titles=DICTIONARIES,
        dictionaries=_dictionaries(evaluation),
        spliced=_spliced(evaluation),
        layer_titles=tuple(LAYER_TITLES.values()),
        layers=_rows({(one.layer, one.dictionary): one for one in evaluation.layers}, tuple(LAYER_TITLES)),
        spliced_titles=tuple(LAYER_TITLES[name] for name in SPLICED_ACTIVITY),
        spliced_layers=_rows(_spliced_layers(evaluation), SPLICED_ACTIVITY),
        depths=_depths(evaluation),
        fvu_plot=layer_plot(_series(evaluation, "fvu"), lowest=0.0, highest=1.5),
        ce_plot=layer_plot(_series(evaluation, "ce_score"), lowest=-0.5, highest=1.1),
        policy=content_policy(),
        style=Markup(asset("look.css") + asset("audit.css") + asset("evaluation.css")),  # noqa: S704  our own files
    )


def _dictionaries(evaluation: ReplacementEvaluation) -> tuple[Dictionary, ...]:
    found = {score.dictionary for score in evaluation.layers}
    found |= {score.dictionary for score in evaluation.spliced}
    found |= {row.dictionary for row in evaluation.depths}
    return tuple(one for one in Dictionary if one in found)


def _spliced(evaluation: ReplacementEvaluation) -> Sequence[SplicedRow]:
    """Return a row per figure that was measured of any dictionary."""
    found = {score.dictionary: score for score in evaluation.spliced}
    rows = [
        SplicedRow(
            title=FIGURES[name],
            cells=tuple(getattr(found.get(one), name, None) for one in _dictionaries(evaluation)),
        )
        for name in (*SPLICED_FIGURES, *SPLICED_ACTIVITY)
    ]
    return [row for row in rows if any(cell is not None for cell in row.cells)]


def _spliced_layers(evaluation: ReplacementEvaluation) -> Mapping[tuple[int, Dictionary], SplicedLayer]:
    return {(one.layer, score.dictionary): one for score in evaluation.spliced for one in score.layers}


def _rows(
    found: Mapping[tuple[int, Dictionary], LayerScore | SplicedLayer], names: Sequence[str]
) -> Sequence[LayerRow]:
    """Return a row per layer and dictionary: by layer, the set first and its controls under it."""
    order = list(Dictionary)
    return [
        LayerRow(layer=layer, dictionary=one, cells=tuple(getattr(score, name) for name in names))
        for (layer, one), score in sorted(
            found.items(), key=lambda item: (item[0][0], order.index(item[0][1]))
        )
    ]


def _depths(evaluation: ReplacementEvaluation) -> Sequence[DepthRow]:
    found = {(row.depth, row.dictionary): row for row in evaluation.depths}
    return [
        DepthRow(
            depth=depth,
            pairs=max(row.pairs for row in evaluation.depths if row.depth == depth),
            cells=tuple(found.get((depth, one)) for one in _dictionaries(evaluation)),
        )
        for depth in dict.fromkeys(row.depth for row in evaluation.depths)
    ]


def _series(evaluation: ReplacementEvaluation, name: str) -> Sequence[Series]:
    return [
        Series(
            dictionary=one,
            points=tuple(
                (score.layer, getattr(score, name))
                for score in sorted(evaluation.layers, key=lambda score: score.layer)
                if score.dictionary is one
            ),
        )
        for one in _dictionaries(evaluation)
    ]


def _number(value: float) -> str:
    return f"{value:.4g}" if isfinite(value) else "–"


def _value(figure: Cell) -> str:
    if figure is None:
        return ""
    if not isinstance(figure, Figure):
        return _number(figure)
    unit = f" {printable(figure.unit)}" if figure.unit else ""
    return f"{_number(figure.value)}{unit}"


def _interval(figure: Cell) -> str:
    if not isinstance(figure, Figure) or figure.low is None or figure.high is None:
        return ""
    return f"{_number(figure.low)} to {_number(figure.high)}"


_TEMPLATES = Environment(autoescape=True, trim_blocks=True)
_TEMPLATES.filters |= {"shown": printable, "number": _number, "value": _value, "interval": _interval}

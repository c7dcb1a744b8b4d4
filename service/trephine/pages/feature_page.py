"""A feature as one self-contained page: what it writes, where it fires, what is near it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import isfinite, log1p

from jinja2 import Environment
from markupsafe import Markup

from trephine.domain.features import FeatureContext, FeatureDescription, FeatureStatistics
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.domain.tokens import Token
from trephine.pages.embed import asset, content_policy, printable

_CHART_WIDTH, _CHART_HEIGHT = 420.0, 120.0


_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bar:
    """A bar of the histogram, in the chart's own units."""

    x: float
    width: float
    height: float
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """A token of a context."""

    text: str
    title: str
    share: float
    """Of the peak, 0 to 1."""
    negative: bool
    peak: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Linked:
    """A feature that is mentioned."""

    name: str
    href: str
    """Empty where no page lies beside this one."""
    label: str
    value: str
    more: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weight:
    """A token with a number and the length of its bar, 0 to 1."""

    text: str
    value: str
    share: float


def feature_file(feature: FeatureRef) -> str:
    """Return the file name under which pages link to a feature's page: `neurons-12-345.html`."""
    name = _UNFIT.sub("-", feature.replacement).strip("-.") or "feature"
    return f"{name[:100]}-{feature.layer}-{feature.index}.html"


def feature_html(description: FeatureDescription, *, beside: Collection[tuple[int, int]] = ()) -> str:
    """Return the page. It loads nothing, and nothing in its texts can run.

    Args:
        description: What is known.
        beside: Features `(layer, index)` whose pages lie in the same folder under `feature_file`.
    """
    view, statistics = description.view, description.statistics
    feature, script = view.feature, asset("feature.js")
    labels = {label.feature: label.text for label in description.labels}
    kind = "Neuron" if feature.replacement == NEURONS else "Feature"
    name = f"{kind} {feature.layer}:{feature.index}"
    return _TEMPLATES.from_string(asset("feature.html")).render(
        policy=content_policy(script),
        style=Markup(asset("look.css") + asset("feature.css")),  # noqa: S704  our own files
        script=Markup(script),  # noqa: S704  our own file
        name=name,
        feature=feature,
        label=description.label,
        index=description.index,
        view=view,
        statistics=statistics,
        tiles=_tiles(description),
        chart=(_CHART_WIDTH, _CHART_HEIGHT),
        bars=[] if statistics is None else _bars(statistics),
        ticks=[] if statistics is None else _ticks(statistics),
        promotes=_weights(view.promotes),
        suppresses=_weights(view.suppresses),
        excited=_weights(view.excited_by),
        inhibited=_weights(view.inhibited_by),
        tokens=[]
        if statistics is None
        else [
            _Weight(text=one.token.display, value=f"{one.share:.1%}", share=one.share)
            for one in statistics.tokens
        ],
        contexts=[] if statistics is None else [_context(one) for one in statistics.contexts],
        neighbours=[_linked(one, labels, beside, f"{cosine:.3f}") for one, cosine in view.neighbours],
        cofiring=[]
        if statistics is None
        else [
            _linked(one.feature, labels, beside, f"{one.count} of {one.of}", f"{one.jaccard:.3f}")
            for one in statistics.cofiring
        ],
        caveats=description.caveats,
    )


def _tiles(description: FeatureDescription) -> list[tuple[str, str, str]]:
    """Name, value and explanation of the head figures."""
    view, statistics = description.view, description.statistics
    tiles = []
    if statistics is not None and description.index is not None:
        tiles += [
            (
                "density",
                _share(statistics.density),
                f"fires at {statistics.count:,} of {description.index.tokens:,} positions",
            ),
            ("mean", _number(statistics.mean), "activation where it fires"),
            ("largest", _number(statistics.largest), "activation of the largest magnitude"),
        ]
    tiles.append(("decoder norm", _number(view.decoder_norm), "length of what one unit of activation writes"))
    if view.threshold is not None:
        tiles.append(("threshold", _number(view.threshold), "smallest pre-activation at which it is active"))
    return tiles


def _bars(statistics: FeatureStatistics) -> list[_Bar]:
    """Lay out the histogram; heights are logarithmic, so that rare large activations can be seen."""
    edges, counts = statistics.histogram.edges, statistics.histogram.counts
    if not counts:
        return []
    width, tallest = _CHART_WIDTH / len(counts), log1p(max(counts))
    return [
        _Bar(
            x=round(place * width, 2),
            width=round(max(width - 1.5, 1.0), 2),
            height=round(_CHART_HEIGHT * log1p(count) / tallest, 2),
            title=f"{_number(edges[place])} to {_number(edges[place + 1])}: {count}",
        )
        for place, count in enumerate(counts)
    ]


def _ticks(statistics: FeatureStatistics) -> list[tuple[float, str]]:
    """Return about five labelled places on the axis."""
    edges = statistics.histogram.edges
    if len(edges) < 2:
        return []
    bins = len(edges) - 1
    step = max(1, -(-bins // 4))
    return [
        (round(place * _CHART_WIDTH / bins, 2), _number(edges[place], digits=2))
        for place in range(0, len(edges), step)
    ]


def _context(context: FeatureContext) -> tuple[str, str, list[_Cell]]:
    """Peak value, where it is, and the tokens."""
    peak = context.activations[context.peak]
    cells = [
        _Cell(
            text=token.display,
            title=f"{_number(value)} on {token.display}",
            share=round(min(1.0, abs(value / peak)), 3) if peak else 0.0,
            negative=value < 0,
            peak=place == context.peak,
        )
        for place, (token, value) in enumerate(zip(context.tokens, context.activations, strict=True))
    ]
    return _number(peak), f"document {context.document}, position {context.position}", cells


def _weights(tokens: Sequence[tuple[Token, float]]) -> list[_Weight]:
    largest = max((abs(value) for _, value in tokens), default=0.0) or 1.0
    return [
        _Weight(
            text=token.display, value=f"{value:+.3f}".replace("-", "−"), share=round(abs(value) / largest, 3)
        )
        for token, value in tokens
    ]


def _linked(
    feature: FeatureRef,
    labels: dict[FeatureRef, str],
    beside: Collection[tuple[int, int]],
    value: str,
    more: str = "",
) -> _Linked:
    there = (feature.layer, feature.index) in beside
    return _Linked(
        name=f"{feature.layer}:{feature.index}",
        href=feature_file(feature) if there else "",
        label=labels.get(feature, ""),
        value=value,
        more=more,
    )


def _number(value: float, digits: int = 4) -> str:
    if not isfinite(value):
        return "–"
    small = value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5)
    return (f"{value:.2e}" if small else f"{value:.{digits}g}").replace("-", "−")


def _share(value: float) -> str:
    return "–" if not isfinite(value) else f"{value:.3%}" if value < 0.01 else f"{value:.1%}"


_TEMPLATES = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
_TEMPLATES.filters["shown"] = printable

"""A figure per layer as inline SVG: the set with its intervals, and its controls beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from markupsafe import Markup

from trephine.domain.findings import Figure
from trephine.domain.replacements import Dictionary

_WIDTH, _HEIGHT = 460, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 26
_TICKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One dictionary's figure by layer."""

    dictionary: Dictionary
    points: tuple[tuple[int, Figure], ...]


def layer_plot(series: Sequence[Series], *, lowest: float, highest: float) -> Markup:
    """Return the plot. What lies outside `lowest` to `highest` is drawn at the edge.

    Only numbers and names of ours enter the markup.
    """
    known = [(layer, one.value) for each in series for layer, one in each.points if isfinite(one.value)]
    if not known:
        return Markup("")
    layers = [layer for layer, _ in known]
    values = [min(max(value, lowest), highest) for _, value in known]
    frame = _Frame(first=min(layers), last=max(layers), low=min(0.0, *values), high=max(values) * 1.05 or 1.0)
    drawn = [frame.axes(), *(_drawn(each, frame) for each in series)]
    body = "".join(drawn)
    return Markup(  # noqa: S704  numbers and our own words
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="by layer">{body}</svg>'
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """From layers and values to coordinates."""

    first: int
    last: int
    low: float
    high: float

    def x(self, layer: int) -> float:
        """Where a layer is drawn; a single one in the middle."""
        width = _WIDTH - _LEFT - _RIGHT
        span = self.last - self.first
        return _LEFT + width * ((layer - self.first) / span if span else 0.5)

    def y(self, value: float) -> float:
        """Where a value is drawn."""
        inside = min(max(value, self.low), self.high)
        share = (inside - self.low) / ((self.high - self.low) or 1.0)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self) -> str:
        """Grid lines with their values, and the first, middle and last layer."""
        parts = []
        for tick in range(_TICKS):
            value = self.low + (self.high - self.low) * tick / (_TICKS - 1)
            y = self.y(value)
            parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2g}</text>')
        for layer in sorted({self.first, (self.first + self.last) // 2, self.last}):
            parts.append(
                f'<text x="{self.x(layer):.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{layer}</text>'
            )
        return "".join(parts)


def _drawn(series: Series, frame: _Frame) -> str:
    points = [(layer, one) for layer, one in series.points if isfinite(one.value)]
    path = " ".join(f"{frame.x(layer):.1f},{frame.y(one.value):.1f}" for layer, one in points)
    name = series.dictionary.value
    parts = [f'<polyline class="{name}" points="{path}"/>']
    for layer, one in points:
        x = frame.x(layer)
        if one.low is not None and one.high is not None and isfinite(one.low) and isfinite(one.high):
            low, high = frame.y(one.low), frame.y(one.high)
            parts.append(f'<line class="{name}" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(
            f'<circle class="{name}" cx="{x:.1f}" cy="{frame.y(one.value):.1f}" r="2.4">'
            f"<title>layer {layer}, {name}: {one.value:.4g}</title></circle>"
        )
    return "".join(parts)

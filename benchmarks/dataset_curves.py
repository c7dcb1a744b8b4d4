"""Faithfulness against budget as one self-contained HTML file of SVG plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite, log2

from trephine.domain.dataset_circuits import Faithfulness

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 460, 230, 44, 12, 12, 30
_LOW, _HIGH = -0.4, 1.4
_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;"
    "color-scheme:light dark}figure{display:inline-block;margin:0 1rem 1.5rem 0;width:29rem}"
    "svg{width:100%;height:auto}"
    "text{font-size:10px;fill:currentColor}line{stroke:currentColor;stroke-opacity:.2}"
    ".f{stroke:#2a78d6;fill:none;stroke-width:2}"
    ".c{stroke:#c2571a;fill:none;stroke-width:2;stroke-dasharray:5 3}"
    ".band{fill:#2a78d6;fill-opacity:.18}.goal{stroke-dasharray:2 3;stroke-opacity:.7}.r{fill:currentColor;"
    "fill-opacity:.55}figcaption{font-weight:600}"
)


_LEGEND = (
    "Budget of nodes (log) against faithfulness (solid, 95 % interval), completeness (dashed, 0 is ideal), "
    "random circuits of its size and layers (dots). Dotted line: 0.8."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One task and dictionary under one ablation."""

    title: str
    found: Faithfulness


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One curve of the figure: a line of its colour in one of its panels."""

    row: str
    column: str
    series: str
    found: Faithfulness


_COLOURS = ("#2a78d6", "#c2571a", "#3a9a5b", "#9a4fb3")
_PANEL_WIDTH, _PANEL_HEIGHT, _MARGIN = 250, 190, 40


def curves_figure(curves: Sequence[Curve]) -> str:
    """Draw faithfulness against budget as one SVG: ablations down, tasks across, kinds of nodes coloured."""
    rows, columns, series = (
        list(dict.fromkeys(getattr(curve, name) for curve in curves)) for name in ("row", "column", "series")
    )
    most = max(1.0, *(log2(max(1, point.nodes)) for curve in curves for point in curve.found.curve))
    width, height = _MARGIN + _PANEL_WIDTH * len(columns), _MARGIN + _PANEL_HEIGHT * len(rows) + 24
    body = [
        f'<text x="{_MARGIN + 230 * k}" y="14" fill="{_COLOURS[k % len(_COLOURS)]}">{escape(name)}</text>'
        for k, name in enumerate(series)
    ]
    for r, row in enumerate(rows):
        for c, column in enumerate(columns):
            inside = [curve for curve in curves if (curve.row, curve.column) == (row, column)]
            lines = "".join(
                _small(curve, _COLOURS[series.index(curve.series) % len(_COLOURS)], most) for curve in inside
            )
            title = f'<text x="4" y="12">{escape(column)}, {escape(row)} ablation</text>'
            x, y = _MARGIN + c * _PANEL_WIDTH, _MARGIN + r * _PANEL_HEIGHT
            body.append(f'<g transform="translate({x},{y})">{title}{_small_axes(most)}{lines}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="system-ui,sans-serif" font-size="11">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(body)}</svg>\n'
    )


def _small_at(nodes: float, value: float | None, most: float) -> tuple[float, float]:
    x = (_PANEL_WIDTH - 24) * log2(max(1.0, nodes)) / most
    return x, 18 + (_y(value) - _TOP) * (_PANEL_HEIGHT - 50) / (_HEIGHT - _TOP - _BOTTOM)


def _small(curve: Curve, colour: str, most: float) -> str:
    points = [_small_at(point.nodes, point.faithfulness.value, most) for point in curve.found.curve]
    low = [_small_at(point.nodes, point.faithfulness.low, most) for point in curve.found.curve]
    high = [_small_at(point.nodes, point.faithfulness.high, most) for point in curve.found.curve]
    x, y = _small_at(curve.found.circuit.nodes, max(curve.found.random, default=0.0), most)
    return (
        f'<polygon points="{_points([*high, *reversed(low)])}" fill="{colour}" fill-opacity=".1"/>'
        f'<polyline points="{_points(points)}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="none" stroke="{colour}"/>'
    )


def _small_axes(most: float) -> str:
    parts = []
    for value in (0.0, 0.8, 1.0):
        _, y = _small_at(1, value, most)
        dashes = ' stroke-dasharray="2 3"' if value == 0.8 else ""
        parts.append(
            f'<line x1="0" x2="{_PANEL_WIDTH - 24}" y1="{y:.1f}" y2="{y:.1f}" stroke="#999"{dashes}/>'
        )
        parts.append(f'<text x="-4" y="{y + 4:.1f}" text-anchor="end" fill="#555">{value:g}</text>')
    for power in range(0, int(most) + 1, 4):
        x, _ = _small_at(2**power, 0, most)
        parts.append(
            f'<text x="{x:.1f}" y="{_PANEL_HEIGHT - 16}" text-anchor="middle" fill="#555">{2**power:,}</text>'
        )
    return "".join(parts)


def curves_page(panels: Sequence[Panel], command: str) -> str:
    """Draw all panels: faithfulness solid with its 95 % band, completeness dashed, random circuits dots."""
    figures = "".join(
        f"<figure>{_plot(panel.found)}<figcaption>{escape(panel.title)}</figcaption></figure>"
        for panel in panels
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Dataset circuits</title>'
        f"<style>{_STYLE}</style><h1>Dataset circuits on held-out contexts</h1><p>{_LEGEND}</p>"
        f"<p><code>{escape(command)}</code></p>{figures}</html>"
    )


def _plot(found: Faithfulness) -> str:
    most = max(1.0, log2(max(point.nodes for point in found.curve)))

    def x(nodes: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * log2(max(1.0, nodes)) / most

    body = [_axes(x, most)]
    low = [(x(p.nodes), _y(p.faithfulness.low)) for p in found.curve]
    high = [(x(p.nodes), _y(p.faithfulness.high)) for p in found.curve]
    body.append(f'<polygon class="band" points="{_points([*high, *reversed(low)])}"/>')
    body.append(_line("f", [(x(p.nodes), _y(p.faithfulness.value)) for p in found.curve]))
    body.append(_line("c", [(x(p.nodes), _y(p.completeness.value)) for p in found.curve]))
    body += [
        f'<circle class="r" r="2" cx="{x(found.circuit.nodes):.1f}" cy="{_y(value):.1f}"/>'
        for value in found.random
    ]
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(body)}</svg>'


def _y(value: float | None) -> float:
    finite = 0.0 if value is None or not isfinite(value) else value
    share = (min(max(finite, _LOW), _HIGH) - _LOW) / (_HIGH - _LOW)
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share)


def _axes(x: Callable[[float], float], most: float) -> str:
    parts = []
    for value in (0.0, 0.5, 0.8, 1.0):
        kind = ' class="goal"' if value == 0.8 else ""
        y = _y(value)
        parts.append(f'<line{kind} x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 3:.1f}" text-anchor="end">{value:g}</text>')
    for power in range(0, int(most) + 1, 3):
        parts.append(
            f'<text x="{x(2**power):.1f}" y="{_HEIGHT - 10}" text-anchor="middle">{2**power:,}</text>'
        )
    return "".join(parts)


def _line(kind: str, points: Sequence[tuple[float, float]]) -> str:
    return f'<polyline class="{kind}" points="{_points(points)}"/>'


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)

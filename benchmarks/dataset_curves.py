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

"""A circuit as one self-contained page: layers upwards, positions across, details of a node beside."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from trephine.domain.circuit_queries import DISCOVERED, Provenance
from trephine.domain.circuits import Circuit, PrunedNodes
from trephine.domain.features import FeatureDescription
from trephine.domain.sites import FeatureRef
from trephine.pages.circuit_data import page_data
from trephine.pages.embed import asset, content_policy, json_island, printable

_TEMPLATES = Environment(autoescape=True)
_NAMED = 4
"""Targets that the heading names at most."""
_PARTS = (
    "graph.js",
    "words.js",
    "said.js",
    "layout.js",
    "view.js",
    "edges.js",
    "drawing.js",
    "room.js",
    "labels.js",
    "panel.js",
    "search.js",
    "input.js",
    "page.js",
)


def circuit_html(
    circuit: Circuit,
    kept: PrunedNodes,
    *,
    name: str,
    pages: Collection[FeatureRef] = (),
    features: Iterable[FeatureDescription] = (),
    view: Mapping[str, Any] | None = None,
    provenance: Provenance = DISCOVERED,
) -> str:
    """Return the page. It loads nothing, and nothing in the circuit's texts can run.

    Args:
        circuit: What was discovered.
        kept: Which nodes and edges survive pruning.
        name: Resource name, shown.
        pages: Features whose own pages lie beside this one; the side panel links to them.
        features: What is known of features; the side panel shows it.
        view: `qParams` of the JSON document: pins, supernodes and labels. None takes the document's own.
        provenance: Where the circuit came from; the page says whether it is a part of a larger one.
    """
    library, script = asset("vendor/d3.js"), circuit_script()
    data = page_data(
        circuit, kept, name=name, pages=pages, features=features, view=view, provenance=provenance
    )
    goal, against = _heading(circuit)
    return _TEMPLATES.from_string(asset("circuit.html")).render(
        policy=content_policy(library, script),
        style=Markup(asset("look.css") + asset("circuit.css")),  # noqa: S704  our own files
        library=Markup(library),  # noqa: S704  vendored, named by its hash in the policy
        script=Markup(script),  # noqa: S704  our own file
        data=json_island(data),
        goal=goal if against is None else f"{goal} against {against}",
        target=goal,
        against=against,
        prompt=printable(circuit.prompt),
        across=circuit.across,
        sets=len(circuit.sets),
    )


def _heading(circuit: Circuit) -> tuple[str, str | None]:
    """What is explained, and what it is held against. Of several targets the weightiest are named."""
    if len(circuit.targets) == 1:
        one = circuit.targets[0]
        against = None if one.against is None else printable(one.against.display)
        return printable(one.label if one.token is None or against is None else one.token.display), against
    ranked = sorted(circuit.targets, key=lambda target: -target.share)
    named = ", ".join(printable(target.label) for target in ranked[:_NAMED])
    return named + (f" and {len(ranked) - _NAMED} more" if len(ranked) > _NAMED else ""), None


@cache
def circuit_script() -> str:
    """Return the page's own script: its parts in one scope, none of it visible from outside."""
    parts = "\n".join(asset(f"circuit/{part}") for part in _PARTS)
    return f'"use strict";\n(() => {{\n{parts}\n}})();\n'

"""A browser, and circuits' pages opened in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser import browser, problems
from tests.e2e.circuit_pages import Open, Opened
from tests.synthetic_circuits import synthetic_circuit, whole
from trephine.domain.circuits import Circuit, PrunedNodes
from trephine.pages.circuit_json import circuit_json
from trephine.pages.circuit_page import circuit_html


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as running:
        yield running


@pytest.fixture
def opened(chromium: Browser, tmp_path: Path) -> Iterator[Open]:
    """Open a circuit's page; at the end it must not have complained."""
    pages, complaints = [], []

    def open_page(
        circuit: Circuit,
        kept: PrunedNodes | None = None,
        *,
        width: int = 1280,
        view: object = None,
        **given: object,
    ) -> Opened:
        kept = kept or whole(circuit)
        document = circuit_json(circuit, kept, slug="x")
        file = tmp_path / f"{len(pages)}.html"
        chosen = document["qParams"] | (view(document) if callable(view) else {})
        file.write_text(circuit_html(circuit, kept, name="circuits/1", view=chosen, **given), "utf-8")
        page = chromium.new_page(viewport={"width": width, "height": 860}, reduced_motion="reduce")
        complaints.append(problems(page))
        pages.append(page)
        page.goto(file.as_uri())
        return page, document

    yield open_page
    for page in pages:
        page.close()
    assert complaints == [[] for _ in pages]


@pytest.fixture
def small(opened: Open) -> Opened:
    """A page of 100 nodes and 600 edges."""
    return opened(synthetic_circuit(nodes=100, edges=600, tokens=14))

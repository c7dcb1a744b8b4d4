"""An evaluation's page in a real browser: every figure of every dictionary, and no table beyond its frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import problems
from tests.unit.replacement_values import evaluation, figure, layer_score
from trephine.domain.replacements import Dictionary, SplicedLayer, SplicedScore
from trephine.pages.evaluation_page import evaluation_html

pytestmark = pytest.mark.e2e

Open = Callable[[int], Page]
LAYERS = 3
_INSIDE = """() => [...document.querySelectorAll('section')].every(one => one.scrollWidth <= one.clientWidth)
    && document.documentElement.scrollWidth <= innerWidth"""


def spliced(dictionary: Dictionary) -> SplicedScore:
    """Long figures of every layer, as real ones are."""
    layers = tuple(
        SplicedLayer(layer=layer, fvu=figure(1.23456), l0=figure(132.4567), dead_share=0.12345)
        for layer in range(LAYERS)
    )
    score = evaluation().spliced[0]
    return replace(score, dictionary=dictionary, fvu=figure(1.23456), dead_share=0.12345, layers=layers)


@pytest.fixture
def opened(chromium: Browser, tmp_path: Path) -> Iterator[Open]:
    """Open the page of a set with all controls; at the end it must not have complained."""
    rows = [layer_score(one, -1.23456, layer) for layer in range(LAYERS) for one in Dictionary]
    scores = tuple(map(spliced, Dictionary))
    shown = replace(evaluation(), layers=tuple(rows), spliced=scores, text=f"t (sha256 {64 * 'a'})")
    file = tmp_path / "evaluation.html"
    file.write_text(evaluation_html(shown, name="evaluations/e", create_time="now"), "utf-8")
    pages, complaints = [], []

    def open_page(width: int) -> Page:
        page = chromium.new_page(viewport={"width": width, "height": 860})
        complaints.append(problems(page))
        pages.append(page)
        page.goto(file.as_uri())
        return page

    yield open_page
    for page in pages:
        page.close()
    assert complaints == [[] for _ in pages]


def test_every_dictionary_has_every_figure(opened):
    """Nine figures a layer and three while all are spliced, the controls' under the set's, none empty."""
    alone, together = (opened(1280).locator(".by-layer").nth(place) for place in (1, 0))
    for table, columns in ((alone, 9), (together, 3)):
        expect(table.locator("tbody")).to_have_count(LAYERS)
        rows = table.locator("tbody").nth(1).locator("tr")
        expect(rows).to_have_count(4)
        for row in rows.all():
            texts = row.locator("td.number").all_inner_texts()
            assert len(texts) == columns
            assert all(texts)
    names = alone.locator("tbody").first.locator("td:not(.number)").all_inner_texts()
    assert names == ["the set", "random dictionary", "frozen decoder", "frozen encoder"]


def test_tables_stay_in_their_frames(opened):
    """On a laptop nothing is cut off; on a telephone tables scroll in their own frame, the page does not."""
    assert opened(1280).evaluate(_INSIDE)
    narrow = opened(400)
    assert narrow.evaluate("document.documentElement.scrollWidth <= innerWidth")
    frame = narrow.locator("section", has=narrow.locator(".by-layer")).first
    assert frame.evaluate("one => getComputedStyle(one).overflowX") == "auto"

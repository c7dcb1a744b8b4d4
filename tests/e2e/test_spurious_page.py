"""A removal's page in a real browser: its figures are the report's, what is copied from it is an address."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.browser import problems
from tests.spurious_report import judged, report
from trephine.app.spurious.spurious_removals import StoredRemoval
from trephine.client.results import removal_of
from trephine.client.types import FeatureRef as Address
from trephine.domain.findings import Figure
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_arms import Arm, ArmOutcome, BenchScores
from trephine.domain.spurious_removal import ChoicePoint, SpuriousRemoval, Standing
from trephine.pages.spurious_page import ARMS, FIGURES, spurious_html
from trephine.rpc.wire.spurious_removals import removal_to_wire

pytestmark = pytest.mark.e2e

GROUPS = [f"group {label}/{value}" for label in ("nurse", "physician") for value in ("female", "male")]


def figures(start: int, names: Sequence[str]) -> tuple[Figure, ...]:
    """A value of its own for every name, 0 and 1 among them; one without an interval."""
    shares = [min(1.0, (start + 7 * place) % 33 / 31) for place in range(len(names))]
    return tuple(
        Figure(
            name=name,
            value=share,
            low=None if not place else max(0.0, share - 0.0432),
            high=None if not place else min(1.0, share + 0.0321),
            unit="share",
        )
        for place, (name, share) in enumerate(zip(names, shares, strict=True))
    )


def every_figure() -> SpuriousRemoval:
    """A report with all arms, all figures, features of a set and of the first layer, and zeros."""
    found = report()
    names = [*FIGURES, *GROUPS]
    arms = tuple(ArmOutcome(arm=arm, figures=figures(place, names)) for place, arm in enumerate(Arm))
    (said,) = found.features[0].evidence
    features = (
        replace(judged(Standing.SPURIOUS, 0, removed=True), feature=FeatureRef(layer=0, index=0), exact=0.0),
        replace(
            judged(Standing.UNDECIDED, 1),
            feature=FeatureRef(replacement="small.tc", layer=2, index=1234),
            effect=-0.000123456,
            score=0.0,
            attribute_probe=None,
            evidence=(replace(said, attribute_effect=0.0, label_effect=12345.678, p_value=0.0),),
        ),
        replace(judged(Standing.TASK, 2, override="seen"), score=1.0, evidence=(said, said)),
    )
    choices = (
        ChoicePoint(count=0, criterion=0.0, ambiguous_accuracy=1.0, leak=0.0, trained=False),
        ChoicePoint(
            count=5, criterion=0.98765, ambiguous_accuracy=0.0, leak=None, error=0.0123, trained=True
        ),
        ChoicePoint(
            count=500,
            criterion=1.0,
            ambiguous_accuracy=0.5,
            leak=1.0,
            erased=True,
            error=0.5,
            taken=True,
            trained=True,
        ),
    )
    return replace(
        found,
        arms=arms,
        features=features,
        choices=choices,
        chosen=500,
        scores=BenchScores(scr=0.0, tpp=-0.0123),
    )


@pytest.fixture
def opened(chromium: Browser, tmp_path: Path) -> Iterator[tuple[Page, dict[str, Any]]]:
    """The page beside the report, as a user's `--page` and `--out` hold them."""
    stored = StoredRemoval(name="spuriousRemovals/r", create_time="now", edit="", found=every_figure())
    file = tmp_path / "decisions.html"
    file.write_text(spurious_html(stored.found, name=stored.name, edit="", create_time="now"), "utf-8")
    page = chromium.new_page(viewport={"width": 1280, "height": 860})
    complaints = problems(page)
    page.goto(file.as_uri())
    yield page, json.loads(removal_of(removal_to_wire(stored)).to_json())
    page.close()
    assert complaints == []


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def cells(page: Page, table: int) -> list[list[str]]:
    """Texts of a table, row by row, the first line first."""
    rows = page.locator("table").nth(table).locator("tr")
    told = [row.locator("th, td").all_inner_texts() for row in rows.all()]
    return [[" ".join(text.split()) for text in row] for row in told]


def test_every_figure_of_every_arm_is_the_report_s(opened):
    """Value and interval, arm by arm; none is on the page alone, and none in the report alone."""
    page, told = opened
    shown = {}
    for table in (0, 1):
        (_, *titles), *rows = cells(page, table)
        for title, *values in rows:
            shown |= {(arm, title): value for arm, value in zip(titles, values, strict=True) if value}
    meant = {}
    for arm in told["arms"]:
        title = ARMS[Arm(arm["arm"].removeprefix("REMOVAL_ARM_").lower())]
        title += " (ships)" if arm["arm"] == told["ships"] else ""
        for one in arm["figures"]:
            between = f"{share(one.get('low'))} to {share(one.get('high'))}"
            meant[title, FIGURES.get(one["name"], one["name"])] = f"{share(one['value'])} {between}"
    assert shown == meant
    assert len(shown) == len(Arm) * (len(FIGURES) + 4)


def test_every_figure_of_every_feature_is_the_report_s(opened):
    """Score, effect, ablation, probe, and what each judge measured, under its one address."""
    page, told = opened
    rows = cells(page, 2)[1:]
    assert len(rows) == len(told["features"]) == 3
    for (address, decision, *measures, evidence, _), one in zip(rows, told["features"], strict=True):
        feature = one["feature"]
        written = str(Address(**feature))
        assert address == written + (" removed" if one["removed"] else "")
        assert decision.startswith(one["standing"].removeprefix("FEATURE_STANDING_").lower())
        named = ("score", "effect", "exact", "attributeProbe")
        assert measures == [number(one.get(name)) for name in named]
        for said in one["evidence"]:
            measured = f"attribute {number(said['attributeEffect'])}, label {number(said['labelEffect'])}"
            assert f"{measured}, p = {number(said['pValue'])}" in evidence


def test_what_was_tried_and_told_beside_it_is_the_report_s(opened):
    """Numbers of features with their criterion, scores, texts, seed and time."""
    page, told = opened
    rows = cells(page, 3)[1:]
    assert len(rows) == len(told["choices"])
    for (count, head, criterion, accuracy, leak, taken), one in zip(rows, told["choices"], strict=True):
        named = "free" if one["trained"] else "as it was"
        assert head == ("without the attribute" if one["erased"] else named)
        error = f" ± {number(one['error'])}" if one["error"] else ""
        assert (count, criterion) == (str(one["count"]), number(one["criterion"]) + error)
        assert (accuracy, leak) == (share(one["ambiguousAccuracy"]), share(one.get("leak")))
        assert (taken == "taken") is one["taken"]
    text = " ".join(page.locator("main").inner_text().split())
    assert f"SCR {number(told['scr'])}, TPP {number(told['tpp'])}" in text
    learnt, held, tested = told["texts"]
    assert f"{learnt} texts to learn from, {held} held out, {tested} to test on" in text
    assert f"of {told['considered']}. Effects" in text
    assert f"{told['seed']}, {told['seconds']:.1f} s" in text
    assert told["outcome"]["why"][1:] in text
    assert told["criterion"] in text
    assert told["version"]["weightHash"] in text


def test_a_click_selects_an_address(opened):
    """And nothing beside it: what is copied is what an override file takes."""
    page, _ = opened
    for place, written in enumerate(("0:0", "small.tc:2:1234")):
        page.locator("code.address").nth(place).click()
        assert page.evaluate("getSelection().toString()") == written


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_stays_in_its_frame_in_either_scheme(opened, width: int, scheme: str):
    """Wide tables scroll by themselves, and text stands out from what is behind it."""
    page, _ = opened
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 860})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for selector in ("h1", "td.number", "code.address", "small", ".badge.spurious", ".badge.undecided"):
        assert page.locator(selector).first.evaluate(_CONTRAST) >= 4.5, selector


_CONTRAST = """one => {
    const light = text => {
        const parts = text.match(/[\\d.]+/g).slice(0, 3).map(Number).map(part => part / 255)
        const [r, g, b] = parts.map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    }
    let behind = one
    const clear = text => text === 'transparent' || text.endsWith(', 0)')
    const ground = of => getComputedStyle(of).backgroundColor
    while (behind.parentElement && clear(ground(behind))) behind = behind.parentElement
    const [a, b] = [getComputedStyle(one).color, ground(behind)].map(light)
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
}"""
"""Of a text to its ground, by WCAG's formula."""

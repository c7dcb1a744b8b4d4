"""A feature's page in a real browser: what is known is to be seen, read by keys, followed, at any width."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import problems
from tests.unit.pages.circuits import HOSTILE, token
from tests.unit.pages.test_feature_page import FEATURE, NEAR, PARTNER, description, label, statistics
from trephine.domain.features import FeatureContext, FeatureDescription
from trephine.pages.feature_page import feature_file, feature_html

pytestmark = pytest.mark.e2e

Open = Callable[..., Page]
LONG = "films-and-plays-" * 12


def context(place: int) -> FeatureContext:
    """A context whose second token has the peak, 4, 3, 2, ... from the strongest one on."""
    return FeatureContext(
        tokens=(token(1, f" film {place}"), token(2, " store"), token(3, "ש"), token(4, LONG)),
        activations=(1.0, 4.0 - place, 0.0, -0.5),
        peak=1,
        document=place,
        position=17 + place,
    )


def told() -> FeatureDescription:
    """A feature with three contexts and a label that is long and without a blank."""
    contexts = tuple(map(context, range(3)))
    return description(
        statistics=dataclasses.replace(statistics(), contexts=contexts),
        label=dataclasses.replace(label(FEATURE), text=LONG),
    )


@pytest.fixture
def opened(chromium: Browser, tmp_path: Path) -> Iterator[Open]:
    """Open a feature's page among others in its folder; at the end it must not have complained."""
    pages, complaints = [], []

    def open_page(
        shown: FeatureDescription, *others: FeatureDescription, width: int = 1280, dark: bool = False
    ) -> Page:
        beside = {(one.view.feature.layer, one.view.feature.index) for one in (shown, *others)}
        for one in (*others, shown):
            file = tmp_path / feature_file(one.view.feature)
            file.write_text(feature_html(one, beside=beside), "utf-8")
        page = chromium.new_page(
            viewport={"width": width, "height": 860}, color_scheme="dark" if dark else "light"
        )
        complaints.append(problems(page))
        pages.append(page)
        page.goto(file.as_uri())
        return page

    yield open_page
    for page in pages:
        page.close()
    assert complaints == [[] for _ in pages]


def of_feature(feature: object) -> FeatureDescription:
    """The same of another feature, without a label."""
    known = told()
    return dataclasses.replace(known, label=None, view=dataclasses.replace(known.view, feature=feature))


def colour(page: Page, selector: str, name: str = "backgroundColor") -> str:
    return str(
        page.locator(selector).first.evaluate("(element, name) => getComputedStyle(element)[name]", name)
    )


def test_what_is_known_is_to_be_seen(opened):
    """Label, figures, histogram, tokens and contexts; the peak has a colour, a silent token has none."""
    page = opened(told())
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{LONG} Feature 12:345")
    tiles = page.locator(".tiles div")
    assert tiles.locator("dt").all_inner_texts() == [
        "density",
        "mean",
        "largest",
        "decoder norm",
        "threshold",
    ]
    expect(tiles.first.locator("dd")).to_have_text("0.125%")
    heights = [bar.bounding_box()["height"] for bar in page.locator("svg rect").all()]
    assert len(heights) == 3
    assert heights == sorted(heights, reverse=True)
    contexts = page.locator(".contexts li")
    assert contexts.locator(".value").all_inner_texts() == ["4", "3", "2"]
    expect(contexts.first).to_contain_text("film 0 store")
    peak, silent = (colour(page, f".contexts li span:nth-child({place})") for place in (2, 3))
    assert re.search(r"/ 0\)$|^rgba\(.*, 0\)$", silent)
    assert peak not in (silent, colour(page, ".contexts li span:nth-child(1)"))
    bars = [one.bounding_box()["width"] for one in page.locator(".weights.plus").first.locator(".bar").all()]
    assert bars[1] == pytest.approx(0.4 * bars[0], rel=0.02)  # logits of 1.0 and 2.5


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_by_button_and_by_key(opened, dark):
    """It begins as the system wishes; the button and `d` turn it, and it stays readable."""
    page = opened(told(), dark=dark)
    grounds = [colour(page, "body")]
    page.get_by_role("button", name="Light or dark").click()
    grounds.append(colour(page, "body"))
    assert colour(page, "body", "color") != grounds[-1]
    page.keyboard.press("d")
    assert colour(page, "body") == grounds[0] != grounds[1]
    lightness = [sum(map(int, ground[4:-1].split(","))) for ground in grounds]
    assert (lightness[0] < lightness[1]) is dark


def test_keys_go_from_context_to_context(opened):
    """`j` goes down and stops at the last, `k` goes up; with Ctrl they are the browser's."""
    page = opened(told())
    contexts = page.locator(".contexts li")
    for key, place in (("j", 0), ("j", 1), ("j", 2), ("j", 2), ("k", 1), ("Control+j", 1)):
        page.keyboard.press(key)
        expect(contexts.nth(place)).to_be_focused()
    assert colour(page, ".contexts li:focus-visible", "outlineStyle") == "solid"


def test_a_neighbour_is_followed_and_leads_back(opened):
    """The nearest decoder has a page beside it; the partner has none and is no link."""
    page = opened(told(), of_feature(NEAR))
    expect(page.get_by_role("link")).to_have_count(1)
    expect(page.get_by_role("row", name=f"{PARTNER.layer}:{PARTNER.index}")).to_be_visible()
    page.get_by_role("link", name=f"{NEAR.layer}:{NEAR.index}").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Feature {NEAR.layer}:{NEAR.index}")
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Feature 12:345")


@pytest.mark.parametrize("width", [420, 1440])
def test_nothing_is_wider_than_the_screen(opened, width):
    """Long labels, tokens, notes and names are broken; on a phone the contexts come first."""
    page = opened(told(), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for part in ("h1", "#theme", ".tiles", "svg", ".contexts", "table", "footer"):
        box = page.locator(part).first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    contexts, side = (page.locator(part).bounding_box() for part in (".contexts", ".side"))
    assert (contexts["y"] < side["y"]) is (width == 420)
    assert (contexts["x"] > side["x"] + side["width"]) is (width == 1440)


def test_hostile_texts_are_shown_and_do_nothing(opened):
    """Script ends and images in labels, tokens, notes and names are text."""
    page = opened(description())
    assert page.locator("img").count() == 0
    assert page.evaluate("document.scripts.length") == 1
    assert "</script><img" in HOSTILE
    expect(page.locator(".caveats")).to_contain_text("</script><img src=x onerror=alert(1)>")

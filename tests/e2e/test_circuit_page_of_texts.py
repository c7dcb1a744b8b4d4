"""The page of a circuit over many texts in a real browser: of no prompt, beside what held-out texts say."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.e2e.circuit_pages import spot, state
from tests.e2e.conftest import Open
from tests.global_circuits import global_circuit

pytestmark = pytest.mark.e2e


def test_it_speaks_of_texts_and_not_of_a_prompt(opened: Open):
    """The heading counts texts; nodes have a layer and no position, and no effect on a target."""
    page, document = opened(global_circuit())
    expect(page.get_by_role("heading", level=1)).to_have_text("What feeds what over 30 texts")
    expect(page.locator("header .prompt")).to_contain_text(
        "240 tokens, no single prompt; checked on 10 other texts"
    )
    node = next(one["node_id"] for one in document["nodes"] if one["feature_type"].startswith("cross"))
    page.mouse.click(*spot(page, node))
    assert state(page, "selected") == node
    facts = page.get_by_role("complementary").locator("dl").first
    expect(facts).to_contain_text("whereL0")
    for absent in ("position", "token there", "effect on target"):
        expect(facts).not_to_contain_text(absent)


def test_what_was_measured_on_held_out_texts_stands_beside_it(opened: Open):
    """Both ways of measuring, with every baseline and its verdict in words; coverage and halves."""
    page, _ = opened(global_circuit())
    side = page.get_by_role("complementary")
    for way in ("where the source is active", "where the target is active"):
        expect(side.get_by_role("heading", name=f"On held-out texts, {way}")).to_be_visible()
    for told in (
        "rank correlation, 16 edges0.50 (0.40 to 0.60)",
        "beats virtual weight0.30 (0.20 to 0.40)",
        "does not beat virtual weight x activation0.30",
        "inconclusive permuted edges0.30",
        "measured between60 of 100 active",
        "direct effects that edges carry0.40 (0.30 to 0.50)",
        "edges that both halves keep70 %",
    ):
        expect(side).to_contain_text(told)
    expect(side).not_to_contain_text("on this prompt")

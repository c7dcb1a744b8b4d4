"""What a circuit's page says in words, and how it is reached: targets, parts, keys, paper, directions."""

from __future__ import annotations

import dataclasses

import pytest
from playwright.sync_api import expect

from tests.e2e.circuit_pages import features, grouped, settled, state
from tests.synthetic_circuits import synthetic_circuit
from trephine.app.circuits.pruning import prune
from trephine.domain.circuit_queries import Provenance

pytestmark = pytest.mark.e2e

_LEFT_OF = """([text, word]) => {
  const bdi = [...document.querySelectorAll("aside ol.edges bdi")].find(one => one.textContent === text);
  const range = document.createRange(), at = text.indexOf(word);
  range.setStart(bdi.firstChild, at);
  range.setEnd(bdi.firstChild, at + word.length);
  return range.getBoundingClientRect().left;
}"""
"""Where a word of a label in the panel begins on the screen."""
_ON_PAPER = """addEventListener("beforeprint", () => {
  const pen = document.getElementById("graph").getContext("2d");
  window.printed = [trephine.theme, pen.getImageData(3, 3, 1, 1).data[0], trephine.drawing.edgesReady];
})"""


def test_targets_say_their_share_and_their_probability(opened):
    """A word for each number, in the list, at the pointer and in the panel."""
    circuit = synthetic_circuit(nodes=60, edges=200, tokens=14, targets=3)
    page, document = opened(circuit)
    side = page.get_by_role("complementary")
    rows = side.locator("button.told")
    assert rows.count() == 3
    for row, target, node in zip(rows.all(), circuit.targets, circuit.nodes[-3:], strict=True):
        expect(row).to_contain_text(
            f"share {100 * target.share:.0f} %, probability {100 * node.activation:.1f} %"
        )
    rows.first.click()
    assert state(page, "selected") == document["nodes"][-3]["node_id"]
    expect(side.locator("dl").first).to_contain_text("probability70.0 %")
    expect(side.locator("dl").first).to_contain_text(f"share of what is explained{100 * 6 / 11:.1f} %")


def test_a_probability_that_is_small_is_not_shown_as_nothing(opened):
    """Less than what is shown is said to be less."""
    circuit = synthetic_circuit(nodes=40, edges=100, tokens=5, targets=2)
    nodes = (*circuit.nodes[:-1], dataclasses.replace(circuit.nodes[-1], activation=4.8e-5))
    page, _ = opened(dataclasses.replace(circuit, nodes=nodes))
    expect(page.get_by_role("complementary")).to_contain_text("probability < 0.1 %")


def test_a_part_of_a_graph_says_that_its_figures_are_of_the_whole(opened):
    """How the circuit was cut and how the page was, each in a sentence; a whole one says nothing."""
    made = synthetic_circuit(nodes=100, edges=600, tokens=14)
    found = sum(node.kind.value == "feature" for node in made.nodes)
    circuit = dataclasses.replace(made, figures=dataclasses.replace(made.figures, selected_features=found))
    page, _ = opened(circuit)
    side = page.get_by_role("complementary")
    expect(side).to_contain_text("features' influence inside the graph60.0 %")
    expect(side.locator(".extent")).to_have_count(0)
    kept = prune(circuit, node_threshold=0.8, edge_threshold=0.98)
    page, _ = opened(
        circuit,
        kept,
        provenance=Provenance(origin="pruned", parent="circuits/whole", how="node threshold 0.9"),
    )
    side = page.get_by_role("complementary")
    expect(side).to_contain_text("features' influence inside the whole graph60.0 %")
    expect(side.locator(".extent")).to_have_text(
        [
            "Pruned from circuits/whole: node threshold 0.9.",
            f"Shown: {len(kept.nodes)} of 100 nodes and {len(kept.edges)} of 600 edges (pruned: nodes that "
            "together carry 80 % of the influence, edges that carry 98 %; targets, tokens and pinned nodes "
            "stay).",
        ]
    )


def test_the_slider_counts_the_nodes_that_the_panel_counts(small):
    """All nodes at first; of fewer both how many are shown and how many there are."""
    page, _ = small
    expect(page.locator("#nodes-shown")).to_have_text("all 100")
    expect(page.get_by_role("complementary")).to_contain_text("nodes here, of found100 of 100")
    page.locator("#node-cut").fill("0.8")
    expect(page.locator("#nodes-shown")).to_have_text(f"{state(page, 'shown.nodes')} of 100")


def test_supernodes_are_listed_with_their_effect_and_size(opened):
    """One member is one node."""
    page, _ = opened(
        synthetic_circuit(nodes=100, edges=600, tokens=14),
        view=lambda document: {
            "supernodes": [["alone", features(document)[0]], *grouped(document)["supernodes"]]
        },
    )
    side = page.get_by_role("complementary")
    expect(side.get_by_role("button", name="alone · 1 node")).to_be_visible()
    expect(side).not_to_contain_text("1 nodes")


def test_keys_work_at_once_and_the_graph_can_be_skipped_to(small):
    """Home and arrows need no click; the first stop of Tab leads to the graph and leaves the address."""
    page, document = small
    target = next(one["node_id"] for one in document["nodes"] if one["is_target_logit"])
    page.keyboard.press("Home")
    assert state(page, "selected") == target
    page.keyboard.press("ArrowDown")
    assert state(page, "selected") != target
    chosen = state(page, "selected")
    page.get_by_role("searchbox").focus()
    page.keyboard.press("Shift+Tab")
    link = page.get_by_role("link", name="Skip to the graph")
    expect(link).to_be_focused()
    expect(link).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.get_by_role("application")).to_be_focused()
    assert not page.url.endswith("#over")
    assert state(page, "selected") == chosen


def test_a_page_in_a_frame_leaves_the_focus_where_it_is(opened, tmp_path):
    """As in a notebook, whose reader types elsewhere."""
    page, _ = opened(synthetic_circuit(nodes=60, edges=200, tokens=14))
    (tmp_path / "notebook.html").write_text(
        "<!doctype html><input autofocus aria-label=cell><iframe src=0.html width=900 height=600></iframe>"
    )
    page.goto((tmp_path / "notebook.html").as_uri())
    cell = page.get_by_role("textbox", name="cell")
    expect(page.frame_locator("iframe").get_by_role("application")).to_be_visible()
    cell.focus()
    page.frames[1].goto((tmp_path / "0.html").as_uri())
    expect(page.frame_locator("iframe").get_by_role("heading", name="This circuit")).to_be_visible()
    expect(cell).to_be_focused()
    page.keyboard.type("text")
    expect(cell).to_have_value("text")


def test_it_is_printed_light_and_stays_dark_on_the_screen(small, tmp_path):
    """A real print of a page that was turned dark: its canvas is drawn light, edges and all."""
    page, _ = small
    if state(page, "theme") == "light":
        page.get_by_role("button", name="Light or dark").click()
    settled(page, "drawing.milliseconds.length")
    page.evaluate(_ON_PAPER)
    page.pdf(path=tmp_path / "printed.pdf")
    theme, red, edges = page.evaluate("window.printed")
    assert (theme, edges) == ("light", True)
    assert red > 200
    settled(page, "drawing.milliseconds.length")
    assert state(page, "theme") == "dark"


def test_a_label_that_begins_in_hebrew_reads_from_the_left_as_in_the_graph(opened):
    """Its English rest is not put before it, and what stands behind it is not drawn in."""
    text = "שלום, hello (12)"
    page, _ = opened(
        synthetic_circuit(nodes=100, edges=600, tokens=14),
        view=lambda document: {
            "pinnedIds": features(document)[:1],
            "clerps": [[features(document)[0], text]],
        },
    )
    hebrew, english, number = (page.evaluate(_LEFT_OF, [text, word]) for word in ("שלום", "hello", "(12)"))
    assert hebrew < english < number

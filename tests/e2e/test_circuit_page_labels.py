"""What stands beside the nodes of a circuit's page: labels that cover nothing, and what is typed and kept."""

from __future__ import annotations

import dataclasses
import math
import re
from itertools import combinations

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.circuit_pages import busiest, features, press, settled, spot, state
from tests.global_circuits import global_circuit
from tests.synthetic_circuits import synthetic_circuit, whole
from trephine.domain.circuits import NodeKind
from trephine.domain.sites import FeatureRef
from trephine.pages.circuit_page import circuit_html

pytestmark = pytest.mark.e2e

_BLOCKED = """Object.defineProperty(window, "sessionStorage", {
  get() { throw new DOMException("denied", "SecurityError"); },
});"""
"""As a browser does where cookies of files are blocked."""


def _glyphs(page: Page) -> dict[str, tuple[float, float, float]]:
    """Centre and radius of every node that is drawn."""
    seen = page.evaluate(
        "trephine.shown.vertices.filter(id => !id.startsWith('group')).map(id => [id, trephine.spot(id)])"
    )
    return {name: (at["x"], at["y"], at["r"]) for name, at in seen}


def _apart(label, x: float, y: float) -> float:
    """From a label's edge to a point; 0 inside."""
    dx = max(label["left"] - x, 0.0, x - label["left"] - label["width"])
    dy = max(label["top"] - y, 0.0, y - label["top"] - label["height"])
    return math.hypot(dx, dy)


def _meet(a, b) -> bool:
    return (
        a["left"] < b["left"] + b["width"]
        and b["left"] < a["left"] + a["width"]
        and a["top"] < b["top"] + b["height"]
        and b["top"] < a["top"] + a["height"]
    )


def _crowd(nodes: int, kind: NodeKind = NodeKind.FEATURE):
    """Features of two layers at one position, as graphs over behaviours have them, and long names."""
    circuit = synthetic_circuit(nodes=nodes, edges=150, tokens=3)
    made = [
        dataclasses.replace(
            node,
            position=2,
            layer=28 + place % 2,
            feature=place,
            kind=kind,
            label=f"neuron {place}, effect 0.1",
        )
        if node.kind in (NodeKind.FEATURE, NodeKind.ERROR)
        else node
        for place, node in enumerate(circuit.nodes)
    ]
    return dataclasses.replace(circuit, nodes=tuple(made))


@pytest.mark.parametrize("width", [420, 1280])
@pytest.mark.parametrize(
    "circuit",
    [
        synthetic_circuit(nodes=60, edges=200, tokens=14),
        synthetic_circuit(nodes=60, edges=200, tokens=14, targets=3),
        _crowd(40),
        global_circuit(),
    ],
    ids=["one", "three", "crowd", "texts"],
)
def test_no_label_covers_a_node_or_another_label(opened, circuit, width):
    """At rest, and with pins and matches, which are labelled first."""
    page, document = opened(circuit, width=width)
    page.mouse.click(*spot(page, busiest(document)))
    press(page, "p", "Escape")
    page.get_by_role("searchbox").fill("e")
    for text in ("e", ""):
        page.get_by_role("searchbox").fill(text)
        settled(page, "drawing.milliseconds.length")
        labels = state(page, "labels")
        assert labels
        assert not [pair for pair in combinations(labels, 2) if _meet(*pair)]
        for name, (x, y, r) in _glyphs(page).items():
            assert not [one["text"] for one in labels if _apart(one, x, y) < 0.98 * r], name


@pytest.mark.parametrize("width", [420, 1280])
@pytest.mark.parametrize("targets", [2, 3, 6])
def test_every_target_is_seen_and_its_own_name_is_the_nearest(opened, targets, width):
    """Several at one position stand apart; on a phone not all have a name, but none that of another."""
    page, document = opened(synthetic_circuit(nodes=60, edges=200, tokens=14, targets=targets), width=width)
    settled(page, "drawing.milliseconds.length")
    glyphs, labels = _glyphs(page), state(page, "labels")
    ends = [one["node_id"] for one in document["nodes"] if one["feature_type"] == "logit"]
    assert len(ends) == targets
    for one, other in combinations(ends, 2):
        (x, y, r), (x2, y2, _) = glyphs[one], glyphs[other]
        assert math.hypot(x - x2, y - y2) > 2.4 * r
    named = {label["id"] for label in labels}
    assert named >= set(ends) if width == 1280 else named & set(ends)
    for end in named & set(ends):
        x, y, _ = glyphs[end]
        assert min(labels, key=lambda label: _apart(label, x, y))["id"] == end


def test_targets_at_two_positions_have_their_own_names(opened):
    """A target at the place before does not lie behind the other's label."""
    circuit = synthetic_circuit(nodes=40, edges=100, tokens=5, targets=2)
    first = next(place for place, node in enumerate(circuit.nodes) if node.kind is NodeKind.LOGIT)
    moved = dataclasses.replace(circuit.nodes[first], position=3, label=" of after position 3")
    nodes = (*circuit.nodes[:first], moved, *circuit.nodes[first + 1 :])
    page, document = opened(dataclasses.replace(circuit, nodes=nodes))
    settled(page, "drawing.milliseconds.length")
    ends = [one["node_id"] for one in document["nodes"] if one["feature_type"] == "logit"]
    glyphs, labels = _glyphs(page), state(page, "labels")
    for end in ends:
        x, y, r = glyphs[end]
        nearest = min(labels, key=lambda label: _apart(label, x, y))
        assert (nearest["id"], _apart(nearest, x, y) > r) == (end, True)


def test_a_chosen_node_is_named_even_in_a_crowd(opened):
    """Its label may lie on nodes that are faint then, as nothing else is free."""
    page, document = opened(_crowd(400))
    node = busiest(document)
    page.get_by_role("searchbox").fill(node)
    page.keyboard.press("Enter")
    settled(page, "drawing.milliseconds.length")
    assert node in {label["id"] for label in state(page, "labels")}


def test_a_label_typed_is_there_after_leaving_and_coming_back(opened, tmp_path):
    """Typed, not confirmed, and off by a real click to the feature's page; Back and reload have it still."""
    circuit = synthetic_circuit(nodes=100, edges=600, tokens=14)
    beside = {
        FeatureRef(replacement=one.replacement, layer=one.layer, index=one.feature)
        for one in circuit.nodes
        if one.kind is NodeKind.FEATURE
    }
    page, document = opened(circuit, pages=beside)
    node = busiest(document)
    page.mouse.click(*spot(page, node))
    link = page.get_by_role("link", name="Page of this feature")
    (tmp_path / str(link.get_attribute("href"))).write_text("<h1>the feature</h1>")
    page.get_by_role("textbox", name="Call it").press_sequentially("says Mary")
    link.click()
    expect(page.get_by_role("heading", name="the feature")).to_be_visible()
    page.go_back()
    for _ in range(2):
        assert state(page, "said")["clerps"] == [[node, "says Mary"]]
        assert page.evaluate("id => trephine.node(id).label", node) == "says Mary"
        expect(page.get_by_role("textbox", name="Call it")).to_have_value("says Mary")
        page.reload()
    page.get_by_role("textbox", name="Call it").fill("")
    page.reload()
    assert state(page, "said")["clerps"] == []


def test_a_pin_set_on_leaving_is_kept(small):
    """It is in the address at once."""
    page, document = small
    page.mouse.click(*spot(page, busiest(document)))
    press(page, "p")
    page.reload()
    assert state(page, "pinned") == [busiest(document)]


def test_labels_of_nodes_that_a_smaller_page_does_not_show_are_not_lost(opened):
    """Two pages of one circuit in a tab: what is typed in the one is kept while the other is used."""
    circuit = synthetic_circuit(nodes=100, edges=600, tokens=14)
    page, document = opened(circuit)
    gone, left = features(document)[0], features(document)[-1]
    page.get_by_role("searchbox").fill(gone)
    page.keyboard.press("Enter")
    page.get_by_role("textbox", name="Call it").fill("only in the whole")
    whole_page = page.url.split("#")[0]
    index = next(n for n, one in enumerate(document["nodes"]) if one["node_id"] == gone)
    everything = whole(circuit)
    smaller = dataclasses.replace(
        everything, nodes=tuple(n for n in everything.nodes if n != index), edges=()
    )
    other, _ = opened(circuit, smaller)
    page.goto(other.url)
    assert state(page, "said")["clerps"] == []
    page.get_by_role("searchbox").fill(left)
    page.keyboard.press("Enter")
    page.get_by_role("textbox", name="Call it").fill("in both")
    page.goto(whole_page)
    assert dict(state(page, "said")["clerps"]) == {gone: "only in the whole", left: "in both"}


def test_a_given_label_is_in_the_field_and_can_be_changed(opened):
    """What was said on the server is edited, not typed anew; only the change is said here."""
    page, document = opened(
        synthetic_circuit(nodes=100, edges=600, tokens=14),
        view=lambda document: {"clerps": [[busiest(document), "my name"]]},
    )
    node = busiest(document)
    page.mouse.click(*spot(page, node))
    field = page.get_by_role("textbox", name="Call it")
    expect(field).to_have_value("my name")
    assert state(page, "said")["clerps"] == []
    field.press("End")
    field.press_sequentially(", changed")
    expect(page.get_by_role("complementary").get_by_role("heading").first).to_have_text("my name, changed")
    field.press("Enter")
    assert state(page, "said")["clerps"] == [[node, "my name, changed"]]
    field.fill("")
    field.press("Enter")
    expect(field).to_have_value("my name")
    assert state(page, "said")["clerps"] == []


def test_leaving_is_asked_about_only_where_labels_cannot_be_kept(chromium, tmp_path):
    """With storage blocked the browser asks, until the labels are saved; nothing else complains."""
    circuit = synthetic_circuit(nodes=100, edges=600, tokens=14)
    file = tmp_path / "blocked.html"
    file.write_text(circuit_html(circuit, whole(circuit), name="circuits/1"), "utf-8")
    page = chromium.new_page(viewport={"width": 1280, "height": 860})
    page.add_init_script(_BLOCKED)
    asked, errors = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.goto(file.as_uri())
    page.mouse.click(*spot(page, "E_100_0"))
    page.wait_for_url(re.compile("node="))
    page.reload()
    assert asked == []
    page.get_by_role("textbox", name="Call it").press_sequentially("one")
    page.reload()
    assert asked == ["beforeunload"]
    page.get_by_role("textbox", name="Call it").press_sequentially("two")
    press(page, "Escape")
    with page.expect_download():
        page.get_by_role("button", name="Save pins and labels").click()
    page.reload()
    assert (asked, errors) == (["beforeunload"], [])
    page.close()

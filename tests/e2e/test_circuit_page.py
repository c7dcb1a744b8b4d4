"""The circuit's page in a real browser, with real clicks, wheels and keys: what it shows is the JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import defaultdict

import pytest
from playwright.sync_api import expect

from tests.e2e.circuit_pages import busiest, features, grouped, links, press, settled, spot, state
from tests.synthetic_circuits import synthetic_circuit, whole
from tests.unit.pages.circuits import HOSTILE, everything, hostile_circuit
from tests.unit.pages.test_feature_page import described, description
from trephine.pages.circuit_annotations import identities, read_document
from trephine.pages.circuit_json import circuit_json, node_ids
from trephine.pages.circuit_page import circuit_html

pytestmark = pytest.mark.e2e

_INK = """id => {
  const at = window.trephine.spot(id), canvas = document.getElementById("graph");
  const box = canvas.getBoundingClientRect();
  const [x, y] = [at.x - box.left, at.y - box.top].map(value => Math.round(value * devicePixelRatio));
  const [r, g, b] = canvas.getContext("2d").getImageData(x, y, 1, 1).data;
  return [`rgb(${r}, ${g}, ${b})`, getComputedStyle(document.querySelector("#legend i.faint")).color];
}"""
"""The colour that a node is drawn in, and that of what is not known."""


def test_counts_figures_and_every_edge_are_those_of_the_json(small):
    """Of every node the kind, place, cumulative influence and the edges in and out."""
    page, document = small
    assert (state(page, "nodes"), state(page, "edges")) == (100, 600)
    for node in document["nodes"]:
        name = node["node_id"]
        shown = page.evaluate(
            "id => ({ ...trephine.node(id), into: trephine.into(id), out: trephine.out(id) })", name
        )
        assert shown["position"] == node["ctx_idx"]
        assert shown["cumulative"] == pytest.approx(node["influence"], rel=1e-6)
        if node["activation"] is not None:
            assert shown["activation"] == pytest.approx(node["activation"], rel=1e-6)
        assert {one["id"]: one["weight"] for one in shown["into"]} == pytest.approx(
            links(document, name, "target")
        )
        assert {one["id"]: one["weight"] for one in shown["out"]} == pytest.approx(
            links(document, name, "source")
        )


def test_a_click_shows_a_nodes_figures_and_its_strongest_edges(small):
    """The panel lists edges by weight, and a click on one goes there."""
    page, document = small
    node = busiest(document)
    page.mouse.click(*spot(page, node))
    assert state(page, "selected") == node
    side = page.get_by_role("complementary")
    expect(side.locator("dl").first).to_contain_text(node)
    expect(page.locator("#status")).to_contain_text(f"{len(links(document, node, 'target'))} edges in")
    strongest = sorted(links(document, node, "target").items(), key=lambda one: -abs(one[1]))
    rows = side.locator("ol[data-direction=in] button:not(.more)")
    weights = [float(text.replace("−", "-")) for text in rows.locator(".weight").all_inner_texts()]
    assert weights == pytest.approx([weight for _, weight in strongest[:12]], abs=6e-4)
    rows.first.click()
    assert state(page, "selected") == strongest[0][0]


def test_the_pointer_over_a_node_shows_its_name(small):
    """A hint appears beside it and goes when the pointer does; nothing is selected."""
    page, document = small
    node = busiest(document)
    page.mouse.move(*spot(page, node))
    assert state(page, "hovered") == node
    expect(page.locator("#tip")).to_be_visible()
    page.mouse.move(5, 5)
    assert state(page, "hovered") is None
    assert state(page, "selected") is None


def test_thresholds_hide_the_nodes_and_edges_that_the_json_says(small):
    """Nodes by their cumulative influence in the JSON; edges by their share of what enters their target."""
    page, document = small
    entering: dict[str, float] = defaultdict(float)
    for one in document["links"]:
        entering[one["target"]] += abs(one["weight"])
    page.locator("#node-cut").fill("0.8")
    kept = {
        one["node_id"]
        for one in document["nodes"]
        if one["feature_type"] in ("embedding", "logit") or one["influence"] <= 0.8
    }
    assert set(state(page, "shown.vertices")) == kept
    between = [one for one in document["links"] if {one["source"], one["target"]} <= kept]
    assert 0 < len(between) < 600
    assert state(page, "shown.edges") == len(between)
    page.locator("#edge-cut").fill("70")
    share = state(page, "cuts.edges")
    assert share == pytest.approx(10**-0.9)
    heavy = [one for one in between if abs(one["weight"]) / entering[one["target"]] >= share]
    assert 0 < len(heavy) < len(between)
    assert state(page, "shown.edges") == len(heavy)
    expect(page.locator("#edges-shown")).to_have_text(f"{len(heavy)} of 600")


def test_search_finds_by_feature_layer_token_and_id(small):
    """Matches are counted, Enter jumps to the most influential, n goes on, Escape clears."""
    page, document = small
    node = busiest(document)
    layer, index, position = node.split("_")
    box = page.get_by_role("searchbox")
    for text in (f"#{index}", f"{layer}:{index}", f"{layer}:{index}@{position}", node):
        box.fill(text)
        assert state(page, "matches") == [node]
    box.fill(f"L{layer}")
    expected = {one["node_id"] for one in document["nodes"] if one["layer"] == layer}
    assert set(state(page, "matches")) == {one for one in expected if not one.startswith("E")}
    box.fill("mentions of")
    found = state(page, "matches")
    assert {one["node_id"] for one in document["nodes"] if "mentions of" in one["clerp"]} == set(found)
    box.press("Enter")
    assert state(page, "selected") == found[0]
    expect(page.locator("#matches")).to_have_text(f"1 of {len(found)}")
    press(page, "n")
    assert state(page, "selected") == found[1]
    box.fill("no such thing")
    expect(page.locator("#matches")).to_have_text("0 matches")


def test_a_supernode_stands_for_its_members_until_it_is_opened(opened):
    """Closed it has the sums of its members' edges; a double click shows them, g closes it again."""
    page, document = opened(synthetic_circuit(nodes=100, edges=600, tokens=14), view=grouped)
    members = grouped(document)["supernodes"][0][1:4]
    assert state(page, "groups") == [{"label": "one concept", "members": members, "collapsed": True}]
    vertices = state(page, "shown.vertices")
    assert "group 0" in vertices
    assert not set(members) & set(vertices)
    summed: dict[str, float] = defaultdict(float)
    for one in document["links"]:
        if one["source"] in members and one["target"] not in members:
            summed[one["target"]] += one["weight"]
    out = {one["id"]: one["weight"] for one in page.evaluate("trephine.out('group 0')")}
    assert out == pytest.approx(dict(summed), rel=1e-5, abs=1e-6)
    page.mouse.click(*spot(page, "group 0"))
    assert state(page, "selected") == "group 0"
    expect(page.get_by_role("complementary")).to_contain_text("one concept")
    page.mouse.dblclick(*spot(page, "group 0"))
    assert state(page, "groups[0].collapsed") is False
    assert set(members) <= set(state(page, "shown.vertices"))
    press(page, "g")
    assert state(page, "groups[0].collapsed") is True


def test_pins_and_labels_come_from_the_json_and_pins_can_be_changed(opened):
    """A pinned node keeps its name and its place whatever the threshold."""
    page, document = opened(synthetic_circuit(nodes=100, edges=600, tokens=14), view=grouped)
    pinned = grouped(document)["pinnedIds"][0]
    assert state(page, "pinned") == [pinned]
    assert page.evaluate("id => trephine.node(id).label", pinned) == "my name"
    page.locator("#node-cut").fill(page.locator("#node-cut").get_attribute("min"))
    assert pinned in state(page, "shown.vertices")
    page.get_by_role("complementary").get_by_role("button", name="my name").first.click()
    page.get_by_role("button", name="Unpin").click()
    assert state(page, "pinned") == []
    press(page, "p")
    assert state(page, "pinned") == [pinned]


def test_pins_and_labels_of_the_page_are_saved_as_the_command_line_reads_them(opened, tmp_path):
    """A name typed and a pin set are in the saved file, and the file is read back as annotations."""
    circuit = synthetic_circuit(nodes=100, edges=600, tokens=14)
    page, document = opened(circuit)
    node = busiest(document)
    page.mouse.click(*spot(page, node))
    page.get_by_role("button", name="Pin").click()
    field = page.get_by_role("textbox", name="Call it")
    field.fill("pigs, d and f: capital <b>cities</b>")
    field.press("Enter")
    assert page.evaluate("id => trephine.node(id).label", node) == "pigs, d and f: capital <b>cities</b>"
    press(page, "Escape")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save pins and labels").click()
    saved.value.save_as(tmp_path / "said.json")
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["pinnedIds"] == [node]
    read, skipped = read_document(said, identities(circuit), author="me", now="2026-01-01T00:00:00Z")
    index = node_ids(circuit).index(node)
    assert (read.pinned, skipped) == ({index}, ())
    assert read.texts == {index: "pigs, d and f: capital <b>cities</b>"}


def test_the_keyboard_alone_is_enough(small):
    """Arrows move, i and o follow edges, ? lists the keys, d turns the colours, Escape clears."""
    page, document = small
    press(page, "Home")
    target = next(one["node_id"] for one in document["nodes"] if one["is_target_logit"])
    assert state(page, "selected") == target
    strongest = max(links(document, target, "target").items(), key=lambda one: abs(one[1]))[0]
    press(page, "i")
    assert state(page, "selected") == strongest
    before = spot(page, strongest)
    press(page, "ArrowUp")
    assert spot(page, state(page, "selected"))[1] < before[1]
    press(page, "Escape")
    assert state(page, "selected") is None
    press(page, "?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    theme = state(page, "theme")
    press(page, "d")
    assert state(page, "theme") != theme
    drawn = [state(page, "edgesAtRest")["drawn"]]
    for _ in range(2):
        press(page, "e")
        drawn.append(state(page, "edgesAtRest")["drawn"])
    assert sorted(drawn) == [0, 220, 600]
    press(page, "/")
    expect(page.get_by_role("searchbox")).to_be_focused()


def test_wheel_drag_and_buttons_move_the_view(small):
    """The wheel zooms about the pointer, a drag moves without selecting, fit goes back."""
    page, document = small
    home = state(page, "transform")
    node = busiest(document)
    x, y = spot(page, node)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -400)
    expect(page.locator("#tip")).to_be_hidden()
    assert settled(page, "transform.k") > 1.2 * home["k"]
    assert spot(page, node) == pytest.approx((x, y), abs=1.0)
    page.mouse.down()
    page.mouse.move(x + 80, y - 30, steps=4)
    page.mouse.up()
    assert spot(page, node) == pytest.approx((x + 80, y - 30), abs=1.0)
    assert state(page, "selected") is None
    page.get_by_role("button", name="Zoom out").click()
    page.get_by_role("button", name="Fit").click()
    assert state(page, "transform") == pytest.approx(home)


@pytest.mark.parametrize("width", [320, 420, 1920])
def test_nothing_is_wider_than_the_screen(opened, width):
    """At phone and at desk width everything is inside, and all controls have names."""
    page, document = opened(synthetic_circuit(nodes=100, edges=600, tokens=14), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for button in page.get_by_role("button").all():
        assert button.get_attribute("aria-label") or button.inner_text().strip()
    for node in document["nodes"]:
        x, _ = spot(page, node["node_id"])
        assert 0 < x < width
    page.mouse.click(*spot(page, busiest(document)))
    press(page, "p")
    page.get_by_role("textbox", name="Call it").fill("w" * 200)
    page.get_by_role("textbox", name="Call it").press("Enter")
    press(page, "Escape")
    expect(page.get_by_role("button", name="Save pins and labels")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_hostile_texts_are_shown_and_do_nothing(opened):
    """Script ends, controls, marks of direction and lone surrogates, in every place: text, and only text."""
    view = {"supernodes": [[HOSTILE, "0_7_0"]], "clerps": [["2_9_1", HOSTILE]]}
    page, _ = opened(hostile_circuit(), everything(), view=lambda _: view, features=[description()])
    page.get_by_role("searchbox").fill("</script><img")
    assert "2_9_1" in state(page, "matches")
    page.keyboard.press("Enter")
    press(page, "g", "i", "o", "p", "Escape")
    assert page.locator("img").count() == 0
    assert page.evaluate("document.scripts.length") == 3
    expect(page.get_by_role("complementary")).to_contain_text("</script><img src=x onerror=alert(1)>")


def test_a_long_prompt_of_many_scripts_begins_at_its_end(opened):
    """With 1,024 positions the target is in view, the beginning can be reached, and ids stay right."""
    page, document = opened(synthetic_circuit(nodes=1500, edges=4000, tokens=1024, targets=3))
    targets = [one["node_id"] for one in document["nodes"] if one["feature_type"] == "logit"]
    for target in targets:
        assert 0 < spot(page, target)[0] < 1280
    overview = page.get_by_role("complementary")
    expect(overview.get_by_role("heading", name="Targets")).to_be_visible()
    first = next(one["node_id"] for one in document["nodes"] if one["ctx_idx"] == 0)
    assert spot(page, first)[0] < 0
    page.get_by_role("searchbox").fill(first)
    page.keyboard.press("Enter")
    assert state(page, "selected") == first
    assert 0 < spot(page, first)[0] < 1280


def test_what_is_known_of_a_feature_stands_beside_it(opened):
    """The card of the feature's page, with its contexts, is in the panel of that feature alone."""
    circuit = synthetic_circuit(nodes=100, edges=600, tokens=14)
    one = next(node for node in circuit.nodes if node.kind.value == "feature")
    page, document = opened(circuit, features=[described(one)])
    name = f"{one.layer}_{one.feature}_{one.position}"
    page.get_by_role("searchbox").fill(name)
    page.keyboard.press("Enter")
    side = page.get_by_role("complementary")
    expect(side.get_by_role("heading", name="Strongest contexts")).to_be_visible()
    expect(side).to_contain_text("0.125 %")
    page.get_by_role("searchbox").fill(next(other for other in features(document) if other != name))
    page.keyboard.press("Enter")
    expect(side.get_by_role("heading", name="Strongest contexts")).to_be_hidden()


def test_a_bookmark_shows_what_was_chosen(opened):
    """Selection, pins, thresholds and opened supernodes are in the address and come back with it."""
    page, document = opened(synthetic_circuit(nodes=100, edges=600, tokens=14), view=grouped)
    node = busiest(document)
    press(page, "g")
    page.mouse.click(*spot(page, node))
    press(page, "p")
    page.locator("#edge-cut").fill("40")
    page.wait_for_url(re.compile("edges=40"))
    before = [state(page, name) for name in ("selected", "pinned", "groups", "shown")]
    page.reload()
    assert [state(page, name) for name in ("selected", "pinned", "groups", "shown")] == before
    assert before[0] == node


def test_a_circuit_without_tokens_or_influence_can_be_looked_at(opened):
    """Positions summed, as over a data set, and figures that an imported graph does not have."""
    circuit = synthetic_circuit(nodes=60, edges=200, tokens=14)
    bare = [
        dataclasses.replace(node, position=-1, influence=math.nan, effect=math.nan) for node in circuit.nodes
    ]
    page, document = opened(dataclasses.replace(circuit, tokens=(), nodes=tuple(bare)))
    assert len(state(page, "shown.vertices")) == 60
    feature = features(document)[0]
    page.get_by_role("searchbox").fill(feature)
    page.keyboard.press("Enter")
    expect(page.get_by_role("complementary")).to_contain_text("all positions")


def test_an_effect_that_is_not_known_has_no_sign(opened):
    """As in imported graphs: neither colour of the legend, and no list of the largest."""
    circuit = synthetic_circuit(nodes=60, edges=200, tokens=14)
    bare = [dataclasses.replace(node, effect=math.nan) for node in circuit.nodes]
    page, document = opened(dataclasses.replace(circuit, nodes=tuple(bare)))
    feature = features(document)[0]
    settled(page, "drawing.milliseconds.length")
    drawn, faint = page.evaluate(_INK, feature)
    assert drawn == faint
    expect(page.locator("#legend")).to_contain_text("effect not known")
    expect(page.get_by_role("complementary")).not_to_contain_text("Largest estimated effects")
    page.get_by_role("searchbox").fill(feature)
    page.keyboard.press("Enter")
    expect(page.locator("dt:has-text('effect on target') + dd")).to_have_class("faint")


def test_two_fingers_zoom(chromium, tmp_path):
    """A pinch on a touch screen zooms in, and a tap selects."""
    circuit = synthetic_circuit(nodes=100, edges=600, tokens=14)
    file = tmp_path / "touch.html"
    file.write_text(circuit_html(circuit, whole(circuit), name="circuits/1"), "utf-8")
    context = chromium.new_context(viewport={"width": 800, "height": 900}, has_touch=True)
    page = context.new_page()
    page.goto(file.as_uri())
    target = next(
        node["node_id"]
        for node in circuit_json(circuit, whole(circuit), slug="x")["nodes"]
        if node["is_target_logit"]
    )
    page.touchscreen.tap(*spot(page, target))
    assert state(page, "selected") == target
    before = state(page, "transform.k")
    session = context.new_cdp_session(page)
    session.send(
        "Input.synthesizePinchGesture", {"x": 400, "y": 400, "scaleFactor": 2, "relativeSpeed": 4000}
    )
    assert settled(page, "transform.k") > 1.2 * before
    context.close()

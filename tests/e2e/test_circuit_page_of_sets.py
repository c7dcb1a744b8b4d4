"""The page of a circuit over several sets in a real browser: which set a node is of, and where it lies."""

from __future__ import annotations

from dataclasses import replace

import pytest
from playwright.sync_api import expect

from tests.circuits_of_sets import ATTENTION, MLPS, circuit_of_sets, feature
from tests.e2e.circuit_pages import spot, state
from tests.e2e.conftest import Open
from tests.unit.app.house import circuit
from trephine.domain.circuits import NodeKind

pytestmark = pytest.mark.e2e
FIRST, OTHER = "0_5_0", "0_5_0_1"


def test_edges_inside_a_layer_go_upwards(opened: Open):
    """Attention's features lie under those of the MLP that they feed, whichever set was named first."""
    circuit = circuit_of_sets()
    turned = replace(circuit, replacement=ATTENTION, beside=(replace(circuit.beside[0], name=MLPS),))
    for graph in (circuit, turned):
        page, document = opened(graph)
        for link in document["links"]:
            assert spot(page, link["source"])[1] > spot(page, link["target"])[1] + 5


def test_sets_that_change_places_between_layers_lie_as_they_feed_in_each(opened: Open):
    """One set is attention's in layer 0 and the MLP's above, the other the reverse; letters stay a set's."""
    plain = circuit_of_sets()
    crossing = [
        (feature(ATTENTION, 0, 5), feature(MLPS, 0, 6)),
        (feature(MLPS, 1, 2), feature(ATTENTION, 1, 3)),
        (feature(MLPS, 2, 7), feature(ATTENTION, 2, 8)),
    ]
    # What lies above comes first, so that edges alone can tell.
    features = [each for pair in crossing for each in reversed(pair)]
    rest = [each for each in plain.nodes if each.kind is not NodeKind.FEATURE]
    edges = [(1, 0, 2.0), (0, 3, 1.0), (3, 2, 0.5), (2, 5, 1.0), (5, 4, 0.25)]
    drawn = circuit([], edges)
    page, document = opened(replace(plain, nodes=(*features, *rest), edges=drawn.edges, rows=drawn.rows))
    assert len(document["links"]) == len(edges)
    for link in document["links"]:
        assert spot(page, link["source"])[1] > spot(page, link["target"])[1] + 5
    assert state(page, "bands") == ["L0b", "L0a", "L1a", "L1b", "L2a", "L2b"]


def test_a_node_says_its_set_and_is_found_by_it(opened: Open):
    """In the panel, in its address, in the legend; the search takes a set in front of layer and index."""
    page, _ = opened(circuit_of_sets())
    expect(page.locator("#legend")).to_contain_text(f"b{MLPS}")
    page.mouse.click(*spot(page, OTHER))
    assert state(page, "selected") == OTHER
    side = page.get_by_role("complementary")
    facts = side.locator("dl").first
    for told in (f"set{ATTENTION}", f"{ATTENTION}:0:5@0", f"L0 of {ATTENTION}, position 0"):
        expect(facts).to_contain_text(told)
    expect(side.locator("ol[data-direction=out]")).to_contain_text(f"feature {MLPS}:0:5")
    search = page.get_by_role("searchbox")
    for text, found in (
        ("0:5", {FIRST, OTHER}),
        (f"{ATTENTION}:0:5", {OTHER}),
        (f"{MLPS.upper()}:0:5@0", {FIRST}),
        (f"{MLPS}:0:5@1", set()),
        (ATTENTION, {OTHER}),
        (OTHER, {OTHER}),
    ):
        search.fill(text)
        assert set(state(page, "matches")) == found, text


def test_a_graph_of_one_set_is_as_it_was(opened: Open):
    """No set in addresses, names and legend where there is one alone."""
    circuit = circuit_of_sets()
    page, _ = opened(
        replace(
            circuit,
            nodes=tuple(replace(n, feature=6) if n.replacement == ATTENTION else n for n in circuit.nodes),
            beside=(),
        )
    )
    expect(page.locator("#legend")).not_to_contain_text(MLPS)
    page.mouse.click(*spot(page, FIRST))
    facts = page.get_by_role("complementary").locator("dl").first
    expect(facts).to_contain_text("commands0:5@0")

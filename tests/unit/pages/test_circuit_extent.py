"""What a page says of what is not on it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.synthetic_circuits import synthetic_circuit, whole
from tests.unit.pages.circuits import HOSTILE, everything, hostile_circuit
from trephine.domain.circuit_queries import DISCOVERED, Provenance
from trephine.pages.circuit_data import page_data
from trephine.pages.circuit_extent import told_extent

PARENT = "circuits/whole"


def test_a_whole_circuit_says_nothing():
    """Found here, stored and shown as it is."""
    told = told_extent(hostile_circuit(), everything(), DISCOVERED)
    assert told == {"part": False, "of": "found", "told": []}


def test_a_page_that_leaves_nodes_out_says_how():
    """Counts of both, and thresholds in words."""
    kept = replace(everything(), nodes=(1, 4, 5), edges=(1, 3), node_threshold=0.8, edge_threshold=0.985)
    told = told_extent(hostile_circuit(), kept, DISCOVERED)
    assert told["part"]
    assert told["told"] == [
        "Shown: 3 of 6 nodes and 2 of 5 edges (pruned: nodes that together carry 80 % of the influence, "
        "edges that carry 98.5 %; targets, tokens and pinned nodes stay)."
    ]


@pytest.mark.parametrize(
    ("provenance", "chosen", "part", "said"),
    [
        (Provenance(), 9, True, "Pruned when it was found: 2 of 9 features are left."),
        (Provenance(how="at most 4 edges"), 2, True, "Pruned when it was found: at most 4 edges."),
        (
            Provenance(origin="pruned", parent=PARENT, how="node threshold 0.5, 3 pinned nodes kept"),
            9,
            True,
            "Pruned from circuits/whole: node threshold 0.5, 3 pinned nodes kept; 2 of 9 features are left.",
        ),
        (
            Provenance(origin="pruned", parent=PARENT, how="at most 4 edges", foreign=True),
            2,
            True,
            "Pruned from circuits/whole, which was imported: at most 4 edges.",
        ),
        (
            Provenance(origin="imported", how="a file written by circuit-tracer"),
            2,
            False,
            "Imported, a file written by circuit-tracer: it may be a part of a larger graph.",
        ),
    ],
    ids=["at once", "at once, edges alone", "pruned", "pruned import", "import"],
)
def test_a_stored_part_says_of_what(provenance, chosen, part, said):
    """Of which circuit and how; figures of an import are those of its own edges."""
    circuit = hostile_circuit()
    circuit = replace(circuit, figures=replace(circuit.figures, selected_features=chosen))
    told = told_extent(circuit, everything(), provenance)
    assert (told["part"], told["told"]) == (part, [said])
    assert told["of"] == "those stored"


def test_a_hostile_file_is_named_without_its_controls():
    """Marks of direction in what a file says of itself become escapes."""
    told = told_extent(hostile_circuit(), everything(), Provenance(origin="imported", how=HOSTILE))
    assert "\u202e" not in told["told"][0]
    assert "\\u202e" in told["told"][0]


def test_targets_have_their_share_at_their_place():
    """By place on the page; where not every target node is known there is none."""
    circuit = synthetic_circuit(nodes=40, edges=100, tokens=5, targets=3)
    kept = whole(circuit)
    smaller = replace(kept, nodes=tuple(kept.nodes[2:]), edges=())
    shares = page_data(circuit, smaller, name="circuits/1")["shares"]
    assert shares == {str(35 + place): target.share for place, target in enumerate(circuit.targets)}
    fewer = replace(circuit, targets=circuit.targets[:1])
    assert page_data(fewer, kept, name="circuits/1")["shares"] == {}

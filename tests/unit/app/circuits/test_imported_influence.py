"""What share of all influence enters through the errors of an imported circuit: its own figure, or none."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isnan

import pytest

from tests.layered_circuits import layered
from tests.unit.app.circuits.test_circuit_files import document_of
from trephine.app.circuits.circuit_diff import compare
from trephine.app.circuits.circuit_imports import read_graph
from trephine.domain.circuits import NodeKind
from trephine.domain.errors import InvalidRequestError


def test_errors_share_of_all_influence_is_the_files_own_or_none():
    """Over links alone it is another figure: that is said in words, never under the same name."""
    graph = layered()
    graph = replace(graph, figures=replace(graph.figures, error_share=0.29))
    document = document_of(graph)
    read = read_graph(json.dumps(document).encode()).circuit
    assert read.figures.error_share == 0.29
    assert not any("through the file's links" in one for one in read.caveats)
    assert read_graph(json.dumps(document_of(read)).encode()).circuit.figures.error_share == 0.29
    del document["metadata"]["info"]["error_share"]  # as files of before
    old = read_graph(json.dumps(document).encode()).circuit
    assert isnan(old.figures.error_share)
    share = sum(node.influence for node in old.nodes if node.kind is NodeKind.ERROR)
    assert old.caveats[1].startswith(f"{share:.1%} of what enters through the file's links")
    again = read_graph(json.dumps(document_of(old)).encode()).circuit
    assert again.caveats == old.caveats
    [(first, second)] = [
        pair for pair in compare(graph, old, sum_positions=False).figures if pair[0].name == "error_share"
    ]
    assert first.value == 0.29
    assert isnan(second.value)


@pytest.mark.parametrize("share", [-0.1, 1.5, "much", True, [0.1]])
def test_a_share_of_errors_that_is_none_is_refused(share):
    """By the field that says it."""
    document = document_of(layered())
    document["metadata"]["info"]["error_share"] = share
    with pytest.raises(InvalidRequestError, match=r"info\.error_share is no share"):
        read_graph(json.dumps(document).encode())

"""The bench of groups: what its cells say, and errors of additivity."""

from __future__ import annotations

from benchmarks.group_additivity import Ablations, relative_error, strongest
from benchmarks.group_scores import Scored, grouped, layer_lines, quality_lines, size_lines
from benchmarks.planted_groups import planted
from trephine.app.circuits.group_scores import score_groups
from trephine.domain.circuit_annotations import AutomaticGroups, NodeGroup


def test_errors_are_weighted_by_what_groups_do():
    """Sums that are off where groups do much weigh more; no groups are told."""
    found = [Ablations(together=(4.0, -1.0), added=(3.0, -1.0)), Ablations(together=(5.0,), added=(4.0,))]
    assert relative_error(found).startswith("0.20 [")
    assert relative_error(found).endswith("(3 groups)")
    assert relative_error([Ablations(together=(), added=())]) == "no groups"


def test_lines_tell_groupings_that_beat_from_those_that_were_not_found():
    """Planted groups beat both controls in a cell; where nothing is alike a row says so."""
    truth = planted()
    groups = tuple(
        NodeGroup(name=f"{number}", nodes=nodes, author="", create_time="")
        for number, nodes in enumerate(truth.groups)
    )
    rows = [
        Scored(
            over="planted",
            basis=basis,
            threshold="0.5",
            circuit=truth.circuit,
            groups=kept,
            scores=score_groups(truth.circuit, kept, draws=99) if kept else None,
        )
        for basis, kept in (("edges", groups), ("directions", ()))
    ]
    sizes = list(size_lines(rows))
    assert (
        "| planted | edges | 0.5 | 16 | 80 of 80 | 87 -> 23 | 660 -> 36 | 1.00 (1.00 to 1.00) | 1 BEATS |"
        in sizes
    )
    assert "| planted | directions | 0.5 | none | | | | | |" in sizes
    assert all("1 better, 0 worse" in cell for cell in list(quality_lines(rows))[2].split("|")[4:-1])
    assert strongest(truth.circuit, [(0,), (0, 1, 2), (3, 4)], 2) == [1, 2]
    assert "87 -> 15" in list(layer_lines([("planted", truth.circuit)]))[2]


def test_groups_are_found_as_the_service_finds_them():
    """By edges without a model; what is not there is none, not an error."""
    truth = planted()
    assert len(grouped(truth.circuit, AutomaticGroups(basis="edges"), None)) >= 14
    noisy = planted(noise=1.0)
    assert grouped(noisy.circuit, AutomaticGroups(basis="edges", min_similarity=1.0), None) == ()

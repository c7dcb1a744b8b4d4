"""Gates of the discovery bench on a GPU: each of them can fail, and none passes on what was not measured."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.discovery_gpu import gates

GOOD = {"faster": 7.0, "edges": 2e-5, "fair": True}


def verdicts(*rows: dict[str, Any]):
    """What each gate says, by its first words."""
    return {gate.what.split(" (")[0]: gate.passed for gate in gates(rows)}


def test_cells_that_meet_their_targets_pass():
    """A cell without a figure beside them decides nothing."""
    said = verdicts(GOOD, GOOD, {"tokens": 64})
    assert said.pop("cells without a figure") is None
    assert set(said.values()) == {True}


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({"faster": 4.9}, "times faster, worst cell"),
        ({"edges": 1.1e-4}, "edges, largest difference over the row's largest"),
        ({"fair": False}, "cells scored below the peer"),
    ],
)
def test_a_cell_that_misses_a_target_fails(changed, failing):
    """One cell is enough; the median holds."""
    said = verdicts(GOOD, GOOD, GOOD | changed)
    assert [what for what, passed in said.items() if passed is False] == [failing]


def test_nothing_measured_is_no_pass():
    """Neither are cells that all failed."""
    assert set(verdicts({"tokens": 64}).values()) == {None}

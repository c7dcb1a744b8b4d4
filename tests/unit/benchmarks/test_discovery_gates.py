"""Gates of the discovery bench: each of them can fail, and none passes on what was not measured."""

from __future__ import annotations

import pytest

from benchmarks.discovery_gates import gates

GOOD_SLOPES = {"seconds": 1.1, "extra_bytes": 0.8}
GOOD_CHECK = {"off": -0.05}
MEDIAN = "times faster, median of the cells that agree (at least 10)"


def cell(changed=None):
    """A cell that meets every target but for what is changed."""
    good = {"tokens": 64, "faster": 12.0, "leaner": 5.0, "edges": 2e-5, "overlap": 0.99, "fair": True}
    return good | (changed or {})


def verdicts(rows, slopes=GOOD_SLOPES, check=GOOD_CHECK, left_out=0):
    """What each gate says."""
    return {gate.what: gate.passed for gate in gates(rows, slopes, check, left_out=left_out)}


def failing(rows, slopes=GOOD_SLOPES, check=GOOD_CHECK):
    """The gates that fail."""
    return [what for what, passed in verdicts(rows, slopes, check).items() if passed is False]


def test_a_bench_that_meets_its_targets_passes():
    """Every gate says so, and the line for people as well."""
    assert all(passed is True for passed in verdicts([cell(), cell({"tokens": 16})]).values())
    said = str(gates([cell()], GOOD_SLOPES, GOOD_CHECK)[0])
    assert said == "PASS  times faster, median of the cells that agree (at least 10): 12"


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"faster": 5.9}, "worst cell"),
        ({"leaner": 2.9}, "leaner"),
        ({"edges": 1.1e-4}, "edges"),
        ({"overlap": 0.89}, "nodes in common"),
        ({"fair": False}, "below the peer"),
    ],
)
def test_one_bad_cell_fails_its_gate(changed, part):
    """The other cells do not make up for it."""
    found = failing([cell(), cell(), cell(changed)])
    assert len(found) == 1
    assert part in found[0]


def test_the_median_fails_before_the_worst_cell():
    """Nine times everywhere is above 6 and below 10."""
    assert failing([cell({"faster": 9.0})] * 2) == [MEDIAN]


SAMPLED = {"tokens": 64, "faster": 19.0, "leaner": 7.0}
"""A cell of which the peer ran a sample: no graph, so nothing that could agree."""


@pytest.mark.parametrize(
    "other", [SAMPLED, cell({"faster": 19.0, "edges": 2e-4}), cell({"faster": 19.0, "fair": False})]
)
def test_cells_that_were_not_seen_to_agree_do_not_help_the_median(other):
    """Two such cells beside one of 9.7 times: the median of all is shown, and decides nothing."""
    found = gates([cell({"faster": 9.7}), other, other], GOOD_SLOPES, GOOD_CHECK)
    assert [(gate.measured, gate.passed) for gate in found if "median" in gate.what] == [
        (9.7, False),
        (19.0, None),
    ]


def test_a_cell_that_was_not_compared_can_be_the_worst():
    """Slow is slow, whatever its graph would have been."""
    assert failing([cell(), cell(), SAMPLED | {"faster": 5.0}]) == ["times faster, worst cell (at least 6)"]


def test_a_median_of_nothing_that_agrees_is_none():
    """Sampled cells alone claim nothing."""
    assert verdicts([SAMPLED])[MEDIAN] is None


def test_memory_of_short_prompts_decides_nothing():
    """The target holds from 64 tokens on."""
    found = verdicts([cell({"tokens": 16, "leaner": 1.0})])
    assert [passed for what, passed in found.items() if "leaner" in what] == [None]


@pytest.mark.parametrize(("name", "part"), [("seconds", "time"), ("extra_bytes", "memory")])
def test_growth_beyond_the_slope_fails(name, part):
    """Each of the two on its own."""
    assert failing([cell()], slopes=GOOD_SLOPES | {name: 1.31}) == [f"growth of {part} (at most 1.3)"]


@pytest.mark.parametrize("off", [0.11, -0.11])
def test_an_extrapolation_that_is_off_fails(off):
    """Above as well as below."""
    assert failing([cell()], check={"off": off}) == ["extrapolation is off by (at most 0.1)"]


def test_a_failed_cell_fails_and_a_cell_left_out_is_said():
    """A cell without figures is a failure; one that the minutes left out is neither."""
    assert failing([cell(), {"tokens": 64}]) == ["cells that failed (at most 0)"]
    assert verdicts([cell()], left_out=2)["cells left out for time"] is None


def test_nothing_measured_passes_nothing():
    """Without cells, growth and check nothing is claimed; no exception either."""
    found = verdicts([], slopes={}, check={})
    measured = {what: passed for what, passed in found.items() if not what.startswith("cells")}
    assert set(measured.values()) == {None}

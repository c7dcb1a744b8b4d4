"""What a difference of two circuits says about their sets and units."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.app.house import small_circuit
from trephine.app.circuits.circuit_diff import compare
from trephine.app.circuits.circuits import StoredCircuit
from trephine.domain.targets import TargetKind
from trephine.rpc.wire.circuit_queries import diff_to_wire


def test_figures_of_different_units_are_not_compared_and_it_is_said():
    """A baseline in logits and one of an attention score."""
    logits = small_circuit()
    target = replace(logits.targets[0], kind=TargetKind.ATTENTION)
    scored = replace(logits, targets=(target, *logits.targets[1:]))
    sides = [
        StoredCircuit(name=f"circuits/{n}", create_time="t", circuit=one)
        for n, one in enumerate((logits, scored))
    ]
    found = compare(logits, scored, sum_positions=False)
    told = diff_to_wire(sides, found, False, 9, 9)
    assert "baseline" not in {one.first.name for one in told.figures}
    assert any("different units (logits and no unit): baselines are not" in one for one in told.caveats)


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (("a", "b"), "They were found with different sets of the name sae"),
        (("a", ""), "features of sae are matched by that name alone"),
        (("", ""), "features of sae are matched by that name alone"),
        (("a", "a"), None),
    ],
)
def test_circuits_of_one_set_name_say_whether_the_set_is_one(contents, said):
    """Different contents, unknown ones, and the same, of which there is nothing to say."""
    sides = [
        StoredCircuit(
            name=f"circuits/{number}",
            create_time="t",
            circuit=replace(small_circuit(), replacement="sae", set_hash=content),
        )
        for number, content in enumerate(contents)
    ]
    found = compare(sides[0].circuit, sides[1].circuit, sum_positions=False)
    caveats = list(diff_to_wire(sides, found, False, 9, 9).caveats)
    assert len(caveats) == (said is not None)
    assert all(said in caveat for caveat in caveats)

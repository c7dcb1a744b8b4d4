"""What a difference of two circuits says about their sets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.app.house import small_circuit
from trephine.app.circuits.circuit_diff import compare
from trephine.app.circuits.circuits import StoredCircuit
from trephine.rpc.wire.circuit_queries import diff_to_wire


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

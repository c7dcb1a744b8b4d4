"""Gates are planned from the parent's noise and judged without mercy."""

from __future__ import annotations

import pytest

from trephine.engine.gates import REMEDIES, finite, judge, planned_gates, remedies
from trephine.engine.noise import NoiseFloor, Spread


def floor(mean, p99):
    half = Spread(mean=mean / 2, p99=p99 / 2)
    return NoiseFloor(attention=half, dtype=half)


def limits(dtype, mean, p99):
    return {gate.name: gate.limit for gate in planned_gates(dtype, floor(mean, p99))}


def test_float32_bounds_do_not_grow_with_negligible_noise():
    """1e-6 nats at the mean and 1e-5 at the 99th percentile are absolute where the floor is far below."""
    found = limits("float32", 1e-11, 1e-10)
    assert found["kl_intervened_exported_mean"] == 1e-6
    assert found["kl_intervened_exported_p99"] == 1e-5
    assert found["retain_excess"] == 1e-5


def test_bfloat16_bounds_follow_the_parents_own_noise():
    """One and a half times the floor; under the same attention the floor itself."""
    found = limits("bfloat16", 4e-3, 3e-2)
    assert found["kl_intervened_exported_mean"] == pytest.approx(6e-3)
    assert found["kl_intervened_exported_p99"] == pytest.approx(4.5e-2)
    assert found["kl_intervened_exported_same_attention_mean"] == pytest.approx(4e-3)


def test_every_gate_says_where_its_limit_comes_from():
    """No gate without unit and reason, no name twice; counts allow nothing."""
    gates = planned_gates("float32", floor(0, 0))
    assert len({gate.name for gate in gates}) == len(gates)
    assert all(gate.unit and len(gate.reason) > 20 for gate in gates)
    assert all(gate.limit == 0 for gate in gates if gate.unit in ("tensors", "elements", "values", "keys"))


@pytest.mark.parametrize(("value", "passed"), [(0.0, True), (1e-6, True), (1.1e-6, False)])
def test_a_gate_holds_up_to_its_limit(value, passed):
    """Equal to the limit is within it."""
    gate = planned_gates("float32", floor(0, 0))[0]
    (result,) = judge((gate,), {gate.name: value})
    assert result.passed is passed
    assert result.measured == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), None])
def test_what_is_missing_or_no_number_has_not_passed(value):
    """Fail closed; the report stays plain JSON."""
    gate = planned_gates("float32", floor(0, 0))[0]
    (result,) = judge((gate,), {} if value is None else {gate.name: value})
    assert not result.passed
    assert result.measured == finite(float("nan")) > 1e300


@pytest.mark.parametrize("kind", [{}, {"grafted": True}, {"fitted": True}])
def test_every_gate_says_what_to_do_about_it(kind):
    """For each that can be planned; the same advice is given once."""
    gates = planned_gates("bfloat16", floor(0, 0), **kind)
    assert {gate.name for gate in gates} <= set(REMEDIES)
    for gate in gates:
        (result,) = judge((gate,), {})
        assert remedies((result,)) == (REMEDIES[gate.name],)
        assert len(REMEDIES[gate.name]) > 40
    missed = judge(gates, {})
    assert len(remedies(missed)) == len({REMEDIES[gate.name] for gate in gates}) < len(gates)
    assert remedies(judge(gates, dict.fromkeys(REMEDIES, 0.0))) == ()

"""Gates are planned from the parent's noise and judged without mercy."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from trephine.engine.certificates.edit_floor import EditFloor
from trephine.engine.certificates.firing_floor import FeatureFloor, FiringFloor
from trephine.engine.certificates.gates import finite, judge, planned_gates, told_apart
from trephine.engine.certificates.noise import NoiseFloor, Spread
from trephine.engine.certificates.remedies import EXACT_REMEDIES, REMEDIES, remedies
from trephine.engine.certificates.rounding_floor import WideFloor

WRITTEN = "the rounding of the tensors that are written"


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


def test_exact_edits_of_narrower_files_follow_what_rounding_costs_them():
    """What is written is rounded to the files' type, however wide the runtime; activations are not."""
    narrow = replace(floor(1e-11, 1e-10), stored=Spread(mean=4e-3, p99=3e-2))
    whole = EditFloor(tokens=9, floor=1e-11, edit=0.05)
    rounded = Spread(mean=4e-5, p99=3e-4)
    gates = planned_gates("float32", narrow, whole=whole, rounded=rounded)
    found = {gate.name: gate.limit for gate in gates}
    assert found["kl_intervened_exported_mean"] == pytest.approx(6e-5)
    assert found["kl_intervened_exported_p99"] == pytest.approx(4.5e-4)
    assert found["kl_intervened_exported_after_first_mean"] == pytest.approx(6e-5)
    assert found["kl_intervened_exported_same_attention_mean"] == pytest.approx(6e-5)
    assert found["unrecovered"] == pytest.approx((10 * whole.floor + 1.5 * rounded.mean) / whole.edit)
    assert found["retain_excess"] == 1e-3
    assert "the rounding of the tensors that are written" in gates[0].reason


@pytest.mark.parametrize(
    ("dtype", "rounded", "changed"),
    [
        (False, False, "its attention implementation"),
        (True, False, "its attention implementation and its dtype"),
        (False, True, f"its attention implementation and {WRITTEN}"),
        (True, True, f"its attention implementation, its dtype and {WRITTEN}"),
    ],
)
def test_a_floor_is_said_to_be_of_what_was_measured(dtype: bool, rounded: bool, changed: str):
    """A float32 runtime is not run in another dtype, and its card must not say so."""
    values = torch.full((9,), 1e-11)
    ran = Spread(mean=1e-11, p99=1e-11, values=values)
    noise = NoiseFloor(attention=ran, dtype=ran if dtype else Spread(mean=0.0, p99=0.0))
    gate = planned_gates("float32", noise, rounded=ran if rounded else None)[0]
    assert f"nats ({changed} changed, nothing else)" in gate.reason


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


FIRING = FiringFloor(tokens=9, floor=1e-4, edit=1e-2)


@pytest.mark.parametrize(
    ("floor_firing", "edit", "limits"),
    [
        (1e-11, 1e-6, (1e-5, 0.01)),  # weaker than the absolute bound: the share alone catches a copy
        (1e-4, 1e-2, (1.5e-4, 0.015)),
        (1e-4, 4e-4, (1.5e-4, 0.375)),
        (1e-4, 2e-4, (1.5e-4, None)),
        (0.0, 0.0, (1e-5, None)),
    ],
)
def test_grafts_are_held_against_the_tokens_on_which_they_act(floor_firing, edit, limits):
    """1.5 floors of those tokens, and 0.01 of the edit or what rounding is of it; else it is inconclusive."""
    firing = FiringFloor(tokens=9, floor=floor_firing, edit=edit)
    gates = planned_gates("bfloat16", floor(1e-4, 1e-3), grafted=True, firing=firing)
    found = {gate.name: gate.limit for gate in gates}
    assert found["kl_intervened_exported_firing_mean"] == pytest.approx(limits[0])
    assert found.get("unrecovered_firing") == (None if limits[1] is None else pytest.approx(limits[1]))
    assert firing.doubt.startswith("the edit moves less than rounding") == (limits[1] is None)
    copy = {gate.name: 0.0 for gate in gates} | {
        "kl_intervened_exported_firing_mean": edit,
        "unrecovered_firing": 1.0,
    }
    assert firing.doubt or not all(result.passed for result in judge(gates, copy))


def test_where_no_feature_fires_nothing_is_planned_for_firing_tokens_and_that_is_said():
    """A gate on what is not measured would refuse every such export; the plan says what is not known."""
    firing = FiringFloor(tokens=0, floor=0.0, edit=0.0)
    gates = planned_gates("float32", floor(0, 0), grafted=True, firing=firing)
    assert not any("firing" in gate.name for gate in gates)
    assert firing.doubt.startswith("no edited feature fires")


@pytest.mark.parametrize(
    ("tokens", "limits"), [(8, {"": 6e-3, "_firing": 3e-3}), (7, {"": 6e-3}), (0, {"": 6e-3})]
)
def test_grafts_are_held_against_the_type_of_their_files_too(tokens, limits):
    """1.5 of that type's floors where they act, if enough tokens have a mean; 3 over all; else it is said."""
    stored = replace(floor(1e-11, 1e-10), stored=Spread(mean=2e-3, p99=1e-2))
    firing = FiringFloor(tokens=tokens, floor=1e-11, edit=1e-2, stored=2e-3)
    name = "kl_intervened_exported_in_stored_dtype{}_mean".format
    gates = planned_gates("float32", stored, grafted=True, firing=firing)
    found = {gate.name: gate.limit for gate in gates if "stored" in gate.name}
    assert found == {name(place): pytest.approx(limit) for place, limit in limits.items()}
    assert [f"fire on {tokens} of" in one for one in firing.unjudged] == [True] * (tokens < 8)
    for kind in ({}, {"fitted": True}):
        assert not any("stored" in gate.name for gate in planned_gates("float32", stored, **kind))
    narrow = planned_gates("float32", floor(1e-11, 1e-10), grafted=True, firing=FIRING)
    assert not any("stored" in gate.name for gate in narrow)
    assert FIRING.unjudged == ()


@pytest.mark.parametrize(("asked", "left"), [(0.9, 0.1), (0.5, 0.5), (0.1, 0.9), (1e-3, 0.9), (1e-300, 0.9)])
def test_a_copy_of_the_parent_is_no_fit_however_little_is_asked_for(asked, left):
    """It leaves the whole edit but for rounding, and misses each bound on what may be left."""
    one = FeatureFloor(name="set:0:3", tokens=40, floor=1e-4, edit=1e-2, alone=1e-2, floor_alone=1e-4)
    firing = replace(FIRING, apart=(one,))
    gates = planned_gates("float32", floor(1e-4, 1e-3), fitted=True, firing=firing, min_recovery=asked)
    shares = [gate for gate in gates if gate.name.startswith("unrecovered")]
    assert [gate.name for gate in shares] == [
        "unrecovered",
        "unrecovered_firing",
        "unrecovered_firing:set:0:3",
    ]
    assert [gate.limit for gate in shares] == [pytest.approx(left)] * 3
    copy = {gate.name: 0.97 for gate in gates if gate.unit == "share"}
    missed = {result.gate.name for result in judge(gates, copy) if not result.passed}
    assert {gate.name for gate in shares} | {"uncarried:set:0:3"} <= missed


STORED = {"grafted": True, "firing": replace(FIRING, stored=1e-3)}


@pytest.mark.parametrize(
    "kind", [{}, {"grafted": True}, {"grafted": True, "firing": FIRING}, {"fitted": True}, STORED]
)
def test_every_gate_says_what_to_do_about_it(kind):
    """For each that can be planned; the same advice is given once."""
    stored = Spread(mean=1e-3, p99=1e-2) if kind is STORED else None
    gates = planned_gates("bfloat16", replace(floor(0, 0), stored=stored), **kind)
    assert {gate.name for gate in gates} <= set(REMEDIES)
    for gate in gates:
        (result,) = judge((gate,), {})
        assert remedies((result,)) == (REMEDIES[gate.name],)
        assert len(REMEDIES[gate.name]) > 40
    missed = judge(gates, {})
    assert len(remedies(missed)) == len({REMEDIES[gate.name] for gate in gates}) < len(gates)
    assert remedies(judge(gates, dict.fromkeys(REMEDIES, 0.0))) == ()


@pytest.mark.parametrize(
    ("noise", "edit", "limit"),
    [
        (1e-11, 1e-3, 1e-5),
        (1e-11, 5e-7, 2e-3),
        (1e-11, 5e-8, 0.01),
        (1e-4, 1e-3, 0.15),
        (1e-4, 4e-4, 0.375),
        (1e-4, 2e-4, None),
        (0.0, 0.0, None),
    ],
)
def test_an_exact_edit_is_told_from_a_copy_of_the_parent(noise, edit, limit):
    """By the share that is left, however weak it is; below three floors it is inconclusive."""
    whole = EditFloor(tokens=1024, floor=noise, edit=edit)
    gates = planned_gates("bfloat16", floor(noise, 10 * noise), whole=whole)
    found = {gate.name: gate.limit for gate in gates}
    assert found.get("unrecovered") == (None if limit is None else pytest.approx(limit))
    assert whole.doubt.startswith("the edit moves less than rounding") == (limit is None)
    copy = {gate.name: 0.0 for gate in gates} | {"kl_intervened_exported_mean": edit, "unrecovered": 1.0}
    assert whole.doubt or not all(result.passed for result in judge(gates, copy))


def test_a_narrow_runtime_is_held_to_what_float32_shows_of_it():
    """Exact edits to what rounding costs there, grafts to a hundredth; in its own type noise hides more."""
    whole = EditFloor(tokens=1024, floor=1e-3, edit=5e-3)
    for rounded, limits in (
        (0.0, (1e-6, 1e-5)),
        (1e-6, (1.5e-6, 3e-4)),
        (1e-3, (1.5e-3, 0.3)),
        (2e-3, (3e-3, None)),
    ):
        wide = WideFloor(edit=5e-3, rounded=rounded)
        gates = planned_gates("bfloat16", floor(1e-3, 1e-2), whole=whole, wide=wide)
        found = {gate.name: gate.limit for gate in gates}
        assert found["unrecovered"] == pytest.approx(0.3)
        assert found["kl_intervened_exported_in_float32_mean"] == pytest.approx(limits[0])
        assert found.get("unrecovered_in_float32") == (limits[1] and pytest.approx(limits[1]))
        assert len(remedies(judge(gates, {}), exact=True, files="bfloat16", runtime="bfloat16")) > 0
    wide = WideFloor(edit=5e-3, rounded=0.0)
    for firing, expected in ((FIRING, 0.01), (replace(FIRING, edit=2e-4), None)):
        gates = planned_gates("bfloat16", floor(1e-3, 1e-2), grafted=True, firing=firing, wide=wide)
        assert {g.name: g.limit for g in gates}.get("unrecovered_in_float32_firing") == expected


def test_exact_edits_are_not_told_to_give_text_in_which_features_fire():
    """None of a set is edited; what is missed is rounding of files, or bytes that are not there."""
    whole = EditFloor(tokens=1024, floor=0.0, edit=1e-3)
    gates = planned_gates("float32", floor(0, 0), whole=whole)
    told = remedies(judge(gates, {}), exact=True)
    assert not any("fire" in one or "--text" in one for one in told)
    assert any("parent whose files are float32" in one for one in told)
    (unchanged,) = (gate for gate in gates if gate.name == "planned_tensors_unchanged")
    (lost,) = remedies(judge((unchanged,), {}), exact=True)
    assert lost.startswith("nothing of a planned change is left once it is rounded")
    assert lost != REMEDIES["elements_off_plan"] == EXACT_REMEDIES["elements_off_plan"]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("files", ["float32", "bfloat16"])
@pytest.mark.parametrize("runtime", ["float32", "bfloat16"])
def test_nobody_is_told_to_do_what_is_done_already(exact, files, runtime):
    """Files and runtimes of float32 are not to be made float32; where they are narrower that is said."""
    whole = EditFloor(tokens=1024, floor=0.0, edit=1e-3)
    kind = {"whole": whole} if exact else {"grafted": True, "firing": FIRING}
    missed = judge(planned_gates(runtime, floor(0, 0), **kind), {})
    told = ". ".join(remedies(missed, exact=exact, files=files, runtime=runtime))
    assert ("parent whose files are float32" in told) == (files != "float32")
    assert ("load the model in float32" in told) == (runtime != "float32")
    for one in remedies(missed, exact=exact, files=files, runtime=runtime):
        assert len(one) > 40


@pytest.mark.parametrize("files", ["float32", "bfloat16"])
@pytest.mark.parametrize("runtime", ["float32", "bfloat16"])
def test_a_distance_is_not_mended_by_a_stronger_edit(files, runtime):
    """What is rounded of a change grows with it; the share of the edit that is left is what shrinks."""
    whole = EditFloor(tokens=1024, floor=0.0, edit=1e-3)
    for result in judge(planned_gates(runtime, floor(0, 0), whole=whole), {}):
        (told,) = remedies((result,), exact=True, files=files, runtime=runtime)
        if result.gate.name == "unrecovered":
            assert "make the edit stronger" in told
        elif result.gate.unit == "nats/token":
            assert "stronger" not in told
            assert "lower the edit's strength" in told


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("files", ["float32", "bfloat16"])
@pytest.mark.parametrize("runtime", ["float32", "bfloat16"])
def test_no_two_pieces_of_advice_contradict_each_other(exact, files, runtime):
    """What misses distance and share alike is mended by no strength; what is left is a whole sentence."""
    whole = EditFloor(tokens=1024, floor=0.0, edit=1e-3)
    kind = {"whole": whole} if exact else {"grafted": True, "firing": FIRING}
    gates = planned_gates(runtime, floor(0, 0), **kind)
    results = {result.gate.name: result for result in judge(gates, {})}
    alone = ["unrecovered" if exact else "planned_tensors_unchanged", "retain_excess"]
    wordings = {"exact": exact, "files": files, "runtime": runtime}
    stronger, weaker = (remedies((results[name],), **wordings)[0] for name in alone)
    assert "make the edit stronger" in stronger
    assert "lower the edit's strength" in weaker
    for missed in ([results[name] for name in alone], list(results.values())):
        told = remedies(missed, **wordings)
        assert len(told) == len(set(told))
        for one in told:
            assert "stronger" not in one
            assert "strength" not in one
            assert len(one) > 40 or one == "load the model in float32"
            assert not re.search(r"(, or|:|,)\s*(\.|;|$)|[:,] ?[:,]|: or ", one), one
    assert remedies([results[alone[0]]], **wordings) == (stronger,)


def test_figures_that_differ_do_not_look_equal():
    """Three digits where they tell a measurement from its limit, more where they do not."""
    assert told_apart(0.12345, 0.01) == ("0.123", "0.01")
    assert told_apart(1.0000321e-6, 1e-6) == ("1.00003e-06", "1e-06")
    assert told_apart(1.0, 1.0) == ("1", "1")

"""The gates of an export: bounds planned from the parent's own noise floor, and their judgement.

A gate is a bound from above. Every name here is the name of a measurement of the certificate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, sqrt

from trephine.domain.exports import Gate, GateResult
from trephine.domain.models import DType
from trephine.engine.certificates.edit_floor import EditFloor
from trephine.engine.certificates.exact_gates import FLOOR_FACTOR, UNRECOVERED, exact_gates
from trephine.engine.certificates.firing_floor import FeatureFloor, FiringFloor
from trephine.engine.certificates.noise import NoiseFloor, Spread
from trephine.engine.certificates.rounding_floor import WideFloor

_EXACT_EXCESS = 1e-5
_ROUNDED_EXCESS = 1e-3
_FITTED_EXCESS = 1e-2
_GRAFT_EXCESS = 1e-3
_GRAFT_FACTOR = 3.0
_GRAFT_MEAN = 1e-5
_GRAFT_P99 = 1e-4
_GRAFT_FIRING = 1e-5
_MOST_UNCARRIED = 0.9
"""Of one feature's own effect, and of the whole edit's, whatever share is asked for: what is not carried at
all misses it."""

_COUNTS = (
    ("tensors_changed_outside_plan", "tensors", "every other tensor must have its parent's bytes"),
    (
        "files_changed_outside_plan",
        "files",
        "what lies beside the weights must be the parent's byte for byte, its config but for planned fields",
    ),
    (
        "planned_tensors_unchanged",
        "tensors",
        "a planned change that is missing would be certified for nothing",
    ),
    (
        "elements_off_plan",
        "elements",
        "recomputed from the parent's files and the plan: bit for bit, or, where rounding is stochastic, "
        "one of the two neighbours",
    ),
    ("nonfinite_values", "values", "weights and logits must be finite"),
    ("load_differences", "keys", "stock transformers must find the same keys as in the parent"),
)


def planned_gates(
    dtype: DType,
    floor: NoiseFloor,
    *,
    fitted: bool = False,
    grafted: bool = False,
    firing: FiringFloor | None = None,
    whole: EditFloor | None = None,
    parts: Sequence[FeatureFloor] = (),
    min_recovery: float = 0.9,
    retained: bool = False,
    rounded: Spread | None = None,
    wide: WideFloor | None = None,
) -> tuple[Gate, ...]:
    """Fix the bounds of an export from the parent's noise floor.

    Args:
        dtype: What the intervened runtime computes in.
        floor: Measured on the unedited parent.
        fitted: Whether a part is fitted: then a share of the edit is promised, and not the runtime itself.
        grafted: Whether features became neurons, whose knees are soft.
        firing: Of grafts and fits of features of sets, what was measured where these fire; None: there are
            none.
        whole: Of exact edits, what was measured over all tokens; None: nothing was, for nothing changes.
        parts: Beside grafts and fits, what each neuron, head and direction does alone.
        min_recovery: Of fitted parts, the share of the edit's KL that must be carried.
        retained: Whether the built-in text is measured beside a caller's.
        rounded: Of exact edits of files narrower than the runtime, what rounding the changed tensors costs.
        wide: Of a narrow runtime, what was measured in float32.
    """
    if fitted:
        left = min(_MOST_UNCARRIED, 1.0 - min_recovery)
        shares = (_recovery_gate(min_recovery, left), *_share_gates(firing, left), *_part_gates(parts, left))
        return (*shares, *_excess_gates(_FITTED_EXCESS, floor, retained), *_count_gates())
    if grafted:
        gates = (*_graft_gates(floor), *_firing_gates(firing), *_stored_gates(floor, firing))
        gates = (*gates, *_wide_firing_gates(firing, wide), *_part_gates(parts, UNRECOVERED))
        return (*gates, *_excess_gates(_GRAFT_EXCESS, floor, retained), *_count_gates())
    unrounded = dtype in ("float32", "float64") and floor.stored is None
    excess = _EXACT_EXCESS if unrounded else _ROUNDED_EXCESS
    return (
        *exact_gates(floor, rounded, whole, wide),
        *_excess_gates(excess, floor, retained),
        *_count_gates(),
    )


def _stored_gates(floor: NoiseFloor, firing: FiringFloor | None) -> tuple[Gate, ...]:
    """Bound grafts as they will be served, where the files are narrower than the runtime.

    The target for bfloat16 is of the tokens on which features fire; over all tokens the factor is that of
    grafts. Exact edits are no neurons whose knees could be rounded away, and are not bounded here.
    """
    if floor.stored is None:
        return ()
    places = [("", "all tokens", "", _GRAFT_FACTOR, floor.stored.mean)]
    if firing is not None and firing.stored is not None and firing.judged_as_stored:
        where = f"the {firing.tokens} tokens on which an edited feature fires"
        aside = ", unedited or intervened in, whichever is more"
        places.append(("_firing", where, aside, FLOOR_FACTOR, firing.stored))
    apart = () if firing is None else firing.apart
    return tuple(
        Gate(
            name=f"kl_intervened_exported_in_stored_dtype{place}_mean",
            limit=max(_GRAFT_MEAN, factor * value),
            unit="nats/token",
            reason=f"run in the type of its files, on {tokens}: {factor:g} times what it costs to run the "
            f"parent in that type{aside}, {value:.2e} nats there, and not below {_GRAFT_MEAN:g}",
        )
        for place, tokens, aside, factor, value in places
    ) + tuple(_feature_as_stored(one) for one in apart if one.judged_as_stored)


def _feature_as_stored(one: FeatureFloor) -> Gate:
    """Bound one of several features as served; three floors, for the few tokens of one are a small sample."""
    floor = one.stored or 0.0
    return Gate(
        name=f"kl_intervened_exported_in_stored_dtype_firing_mean:{one.name}",
        limit=max(_GRAFT_MEAN, _GRAFT_FACTOR * floor),
        unit="nats/token",
        reason=f"run in the type of its files, on the {one.tokens} tokens on which this feature fires: "
        f"{_GRAFT_FACTOR:g} times what it costs to run the parent in that type, unedited or intervened in, "
        f"whichever is more, {floor:.2e} nats there, and not below {_GRAFT_MEAN:g}",
    )


def _excess_gates(excess: float, floor: NoiseFloor, retained: bool) -> tuple[Gate, ...]:
    """Bound the damage of the text that is measured, and of the built-in one where that is another."""
    texts = [("retain_excess", "measured" if retained else "retain")]
    texts += [("retain_builtin_excess", "built-in")] if retained else []
    return tuple(
        Gate(
            name=name,
            limit=max(excess, FLOOR_FACTOR * floor.mean),
            unit="nats/token",
            reason=f"the export may damage the {text} text no more than the intervention itself did: "
            "|KL(original || exported) - KL(original || intervened)|",
        )
        for name, text in texts
    )


def _count_gates() -> tuple[Gate, ...]:
    return tuple(Gate(name=name, limit=0.0, unit=unit, reason=reason) for name, unit, reason in _COUNTS)


def _recovery_gate(min_recovery: float, left: float) -> Gate:
    return Gate(
        name="unrecovered",
        limit=left,
        unit="share",
        reason="a part of the edit is fitted, so that the folder is an approximation: "
        f"KL(intervened || exported) over KL(intervened || original) may be at most 1 - {min_recovery:g}, "
        f"and never more than {_MOST_UNCARRIED:g}: a copy of the parent leaves all of it",
    )


def _graft_gates(floor: NoiseFloor) -> tuple[Gate, ...]:
    """Bound grafts: three floors, since runtime and export round independently and knees are soft."""
    bounds = (
        ("kl_intervened_exported_mean", floor.mean, _GRAFT_MEAN),
        ("kl_intervened_exported_p99", floor.p99, _GRAFT_P99),
        ("kl_intervened_exported_after_first_mean", floor.mean, _GRAFT_MEAN),
    )
    return tuple(
        Gate(
            name=name,
            limit=max(smallest, _GRAFT_FACTOR * value),
            unit="nats/token",
            reason="grafted neurons differ from the features by rounding and by their knees' softness: "
            f"{_GRAFT_FACTOR:g} times the parent's own noise floor of {value:.2e} nats, "
            f"and not below {smallest:g}",
        )
        for name, value, smallest in bounds
    )


def _firing_gates(firing: FiringFloor | None) -> tuple[Gate, ...]:
    """Bound grafts where they act; the share alone catches a copy of the parent where an edit is weak."""
    if firing is None or not firing.tokens:
        return ()
    kl = Gate(
        name="kl_intervened_exported_firing_mean",
        limit=max(_GRAFT_FIRING, FLOOR_FACTOR * firing.floor),
        unit="nats/token",
        reason=f"on the {firing.tokens} tokens on which an edited feature fires, lost among all tokens: "
        f"{FLOOR_FACTOR:g} times the parent's own noise floor of {firing.floor:.2e} nats there, "
        f"and not below {_GRAFT_FIRING:g}",
    )
    return (kl, *_share_gates(firing, UNRECOVERED))


def _wide_firing_gates(firing: FiringFloor | None, wide: WideFloor | None) -> tuple[Gate, ...]:
    """Bound grafts of a narrow runtime in float32 as well: in its own type half of a weak one looks whole."""
    if firing is None or wide is None or not firing.clear:
        return ()
    return (
        Gate(
            name="unrecovered_in_float32_firing",
            limit=UNRECOVERED,
            unit="share",
            reason="runtime and folder computing in float32, on the weights that both hold: where features "
            "fire, KL(intervened || exported) over KL(intervened || original) may be at most "
            f"{UNRECOVERED:g}, and no noise of a narrow type hides what is left",
        ),
    )


def _share_gates(firing: FiringFloor | None, share: float) -> tuple[Gate, ...]:
    """Bound what is left of the edit where features fire: of all of them together, and of each of several.

    Args:
        firing: What was measured beforehand.
        share: That may be left; what rounding is of the edit, if that is more.
    """
    if firing is None or not firing.clear:
        return ()
    together = _share_gate("", share, firing.edit, firing.floor, "a copy of the parent leaves the whole edit")
    each = []
    for one in firing.apart:
        why = f"one feature must not hide among others: on the {one.tokens} tokens on which it fires"
        each += [_share_gate(f":{one.name}", share, one.edit, one.floor, why)] if one.clear else []
        each += [_carried_gate(one, share)] if one.told else []
    return (together, *each)


def _share_gate(suffix: str, share: float, edit: float, floor: float, why: str) -> Gate:
    rounding = FLOOR_FACTOR * floor / edit
    return Gate(
        name=f"unrecovered_firing{suffix}",
        limit=max(share, rounding),
        unit="share",
        reason=f"{why}, however weak: KL(intervened || exported) over KL(intervened || original), "
        f"{edit:.2e} nats on firing tokens, may be at most {share:.3g}, or what {FLOOR_FACTOR:g} floors are "
        f"of it ({rounding:.2g})",
    )


def _part_gates(parts: Sequence[FeatureFloor], share: float) -> tuple[Gate, ...]:
    """Bound what is missing of each part, of an edit whose KL allows for what is grafted or fitted."""
    return tuple(_carried_gate(one, share) for one in parts if one.told)


def _carried_gate(one: FeatureFloor, share: float) -> Gate:
    """Bound what is missing of one feature's own effect; in amplitude, whose square is a share of KL."""
    rounding = FLOOR_FACTOR * one.floor_alone / one.alone
    return Gate(
        name=f"uncarried:{one.name}",
        limit=min(_MOST_UNCARRIED, sqrt(max(share, rounding))),
        unit="share",
        reason="a checkpoint that leaves this alone leaves all that it alone does, "
        f"{one.alone:.2e} nats: what is missing of that, or too much, in logits, whose square is a share of "
        f"KL; at most the root of {max(share, rounding):.2g}, and never more than {_MOST_UNCARRIED:g}",
    )


def kind_of(gate: Gate) -> str:
    """Return a gate's name without the feature that it is of."""
    return gate.name.partition(":")[0]


def judge(gates: tuple[Gate, ...], measured: Mapping[str, float]) -> tuple[GateResult, ...]:
    """Hold measurements against gates; what is missing or not a number has not passed.

    A value that is not finite is reported as the largest float, so that certificates stay plain JSON.
    """
    results = []
    for gate in gates:
        value = measured.get(gate.name, float("nan"))
        results.append(
            GateResult(gate=gate, measured=finite(value), passed=isfinite(value) and value <= gate.limit)
        )
    return tuple(results)


def finite(value: float) -> float:
    """Return the value, or the largest float for NaN and infinity."""
    return value if isfinite(value) else 1.7976931348623157e308


def told_apart(measured: float, limit: float) -> tuple[str, str]:
    """Write two figures in three digits, or in as many more as it takes for them not to look equal."""
    pairs = ((f"{measured:.{digits}g}", f"{limit:.{digits}g}") for digits in range(3, 18))
    return next((pair for pair in pairs if pair[0] != pair[1]), (f"{measured:.3g}", f"{limit:.3g}"))

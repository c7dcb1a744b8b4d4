"""The bounds of an exact edit: it may differ from the intervened runtime by rounding, and by nothing else."""

from __future__ import annotations

from trephine.domain.exports import Gate
from trephine.engine.certificates.edit_floor import EditFloor
from trephine.engine.certificates.noise import NoiseFloor, Spread
from trephine.engine.certificates.rounding_floor import WideFloor

FLOOR_FACTOR = 1.5
"""As the target for bfloat16 exports: within 1.5 times the floor of the dtype."""
UNRECOVERED = 0.01
"""As the target for grafts: 0.99 of the edit's KL on the tokens on which it acts; exact edits act on all."""
_SMALLEST_MEAN = 1e-6
_SMALLEST_P99 = 1e-5
_LEAST_SHARE = 1e-5
"""Of an exact edit that may be left where rounding is less: a factor that is off by 0.4 % of what it changes
leaves as much, and so does one of a hundred like parts of which a thirtieth is missing."""
_LEAST_ROUNDING = 1e-9
"""Nats per token that float32 may round away in a deep model whose own floor is smaller by chance."""
_ARITHMETIC = 10.0
"""Floors of its own arithmetic that an intervened model may be off by, for it rounds more."""
_TOLD = 0.5
"""Of an edit: where rounding may leave as much, no share tells it from a copy, which leaves all."""

_FLOOR_REASON = (
    "an exact edit may differ from the intervened runtime by arithmetic only: {factor:g} times the parent's "
    "own noise floor of {floor:.2e} nats ({changed} changed, nothing else), and not below {smallest:g}"
)


def exact_gates(
    floor: NoiseFloor, rounded: Spread | None, whole: EditFloor | None, wide: WideFloor | None
) -> tuple[Gate, ...]:
    """Fix the bounds of distances and shares.

    Args:
        floor: The parent's.
        rounded: What rounding the changed tensors costs; None: the files hold what the runtime computes in.
        whole: What was measured over all tokens; None: nothing was, for nothing changes.
        wide: Of a narrow runtime, what was measured in float32.
    """
    return (*_distances(floor, rounded), *_shares(whole, rounded), *_wide_gates(wide))


def _distances(floor: NoiseFloor, rounded: Spread | None) -> tuple[Gate, ...]:
    """Bound distances from the runtime by its arithmetic, and by the rounding of what is written."""
    mean, p99 = floor.mean, floor.p99
    same = mean
    if rounded is not None:
        same += FLOOR_FACTOR * rounded.mean
        mean, p99 = mean + rounded.mean, p99 + rounded.p99
    changed = _changed(floor, rounded)
    bounds = (
        ("kl_intervened_exported_mean", mean, _SMALLEST_MEAN),
        ("kl_intervened_exported_p99", p99, _SMALLEST_P99),
        ("kl_intervened_exported_after_first_mean", mean, _SMALLEST_MEAN),
    )
    return (
        *(
            Gate(
                name=name,
                limit=max(smallest, FLOOR_FACTOR * value),
                unit="nats/token",
                reason=_FLOOR_REASON.format(
                    factor=FLOOR_FACTOR, floor=value, changed=changed, smallest=smallest
                ),
            )
            for name, value, smallest in bounds
        ),
        Gate(
            name="kl_intervened_exported_same_attention_mean",
            limit=max(_SMALLEST_MEAN, same),
            unit="nats/token",
            reason="under the same attention only the rounding of changed weights may differ: the parent's "
            f"own noise floor and {FLOOR_FACTOR:g} times what that rounding costs, {same:.2e} nats, "
            f"and not below {_SMALLEST_MEAN:g}",
        ),
    )


def _changed(floor: NoiseFloor, rounded: Spread | None) -> str:
    """Name what the floor was measured under: a float32 runtime is not run in another dtype."""
    causes = ["its attention implementation"]
    if floor.dtype.values.numel():
        causes.append("its dtype")
    if rounded is not None:
        causes.append("the rounding of the tensors that are written")
    *others, last = causes
    return f"{', '.join(others)} and {last}" if others else last


def _shares(whole: EditFloor | None, rounded: Spread | None) -> tuple[Gate, ...]:
    """Bound what is left of the edit over all tokens: a weak one lies under every absolute bound.

    So does a part of one that is lost or wrong, of which far less than a hundredth may be the sign.
    """
    if whole is None or not whole.clear:
        return ()
    noise = _ARITHMETIC * whole.floor + FLOOR_FACTOR * (0.0 if rounded is None else rounded.mean)
    rounding = FLOOR_FACTOR * whole.floor / whole.edit
    limit = max(min(UNRECOVERED, _sharp(noise, whole.edit)), rounding)
    return (_share_gate("unrecovered", limit, whole.edit),)


def _wide_gates(wide: WideFloor | None) -> tuple[Gate, ...]:
    """Bound what a narrow runtime and folder differ by in float32, where arithmetic hides nothing."""
    if wide is None or wide.edit <= 0.0:
        return ()
    distance = Gate(
        name="kl_intervened_exported_in_float32_mean",
        limit=max(_SMALLEST_MEAN, FLOOR_FACTOR * wide.rounded),
        unit="nats/token",
        reason="runtime and folder computing in float32, on the weights that both hold: "
        f"{FLOOR_FACTOR:g} times what rounding the tensors that are written costs, {wide.rounded:.2e} nats, "
        f"and not below {_SMALLEST_MEAN:g}",
    )
    limit = _sharp(FLOOR_FACTOR * wide.rounded, wide.edit)
    shares = [_share_gate("unrecovered_in_float32", limit, wide.edit)] if limit < _TOLD else []
    return (distance, *shares)


def _sharp(noise: float, edit: float) -> float:
    """Return the share of an edit that `noise` nats may leave."""
    return max(_LEAST_SHARE, max(_LEAST_ROUNDING, noise) / edit)


def _share_gate(name: str, limit: float, edit: float) -> Gate:
    return Gate(
        name=name,
        limit=limit,
        unit="share",
        reason="a copy of the parent leaves the whole edit, however weak, and a part that is lost or wrong "
        f"its own share: KL(intervened || exported) over KL(intervened || original), {edit:.2e} nats, may be "
        "no more than rounding may be of it",
    )

"""The figures of a certificate: names, values, units."""

from __future__ import annotations

from collections.abc import Mapping

from trephine.domain.exports import Measurement
from trephine.engine.certificates.gates import finite

_SHARES = (
    *("top1_agreement", "greedy_match", "recovery", "unrecovered", "firing_share"),
    *("carried", "uncarried", "graft_misfires"),
)
_DISTANCES = ("kl_", "retain_", "noise_", "edit_")


def measurements_of(measured: Mapping[str, float]) -> tuple[Measurement, ...]:
    """Return figures with their units, by name; those of one feature have its name behind a colon."""
    return tuple(
        Measurement(name=name, value=finite(value), unit=unit_of(name))
        for name, value in sorted(measured.items())
    )


def unit_of(name: str) -> str:
    """Return the unit of a figure."""
    what = name.removeprefix("noise_")
    if what.startswith(_SHARES):
        return "share"
    if what.startswith("perplexity_ratio"):
        return "ratio"
    if what.startswith("near_constant_residue"):
        return "square"
    return "nats/token" if name.startswith(_DISTANCES) else "count"

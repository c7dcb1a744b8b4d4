from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.client.decoding import WireValue
from trephine.client.types.common import Figure, Version


class Substitute(StrEnum):
    """What an ablated feature's activation becomes."""

    UNSPECIFIED = "unspecified"
    ZERO = "zero"
    MEAN = "mean"
    RESAMPLE = "resample"


class Standing(StrEnum):
    """How a predictor does against a baseline. Doubt is never a pass."""

    UNSPECIFIED = "unspecified"
    BEATS = "beats"
    DOES_NOT_BEAT = "does_not_beat"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationAgreement(WireValue):
    """How a predictor agrees with real ablations of one sort."""

    ablations: str
    predictor: str
    count: int
    spearman: Figure
    slope: Figure
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationComparison(WireValue):
    """A predictor against a baseline on the same single-node ablations."""

    predictor: str
    baseline: str
    difference: Figure
    standing: Standing
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationDepth(WireValue):
    """Predicted against real change of the graph's own features some layers above an ablated one."""

    nearest: int
    farthest: int
    cosine: Figure
    nmse: Figure
    ablations: int
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitFaithfulness(WireValue):
    """Necessity and sufficiency of the circuit's features under one ablation; quantities in logits."""

    substitute: Substitute
    baseline: float
    empty: float
    kept: float
    removed: float
    faithfulness: float | None
    necessity: float | None
    """Counted from `unablated`."""
    random_circuits: int
    random_kept: float
    random_removed: float
    p_sufficient: float
    p_necessary: float
    unablated: float | None
    """No feature ablated, errors as in all runs but the baseline's; None in older verifications."""
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCase(WireValue):
    """The mask outside the circuit that does the most damage, as far as a short search found; in logits."""

    substitute: Substitute
    baseline: float
    kept: float
    relaxed: float
    rounded: float
    random: float
    steps: int
    random_masks: int
    ablated: int
    outside: int
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationMeasurement(WireValue):
    """One ablation: what was predicted and what was measured, in logits."""

    ablations: str
    stratum: str
    nodes: int
    shown: float
    paths: float
    measured: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitExamination(WireValue):
    """Everything that was measured on one circuit."""

    title: str
    replacement: str
    graph_features: int
    circuit_features: int
    first_position: int
    baseline: float
    agreements: tuple[VerificationAgreement, ...]
    comparisons: tuple[VerificationComparison, ...]
    depths: tuple[VerificationDepth, ...]
    faithfulness: tuple[CircuitFaithfulness, ...]
    worst_case: WorstCase | None
    measurements: tuple[VerificationMeasurement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitVerification(WireValue):
    """What real ablations say about a circuit."""

    name: str
    """Resource name, `circuitVerifications/...`."""
    circuit: str
    prompt: str
    target: str
    version: Version
    given: CircuitExamination
    control: CircuitExamination | None
    """The same circuit with a random dictionary, where there is one."""
    control_note: str
    caveats: tuple[str, ...]
    seed: int
    seconds: float
    peak_extra_bytes: int
    create_time: str
    units: str
    """Of the target and of every change: `logits`; empty for values of features, directions and scores."""

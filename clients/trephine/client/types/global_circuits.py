"""Circuits that no single prompt decides."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.client.decoding import WireValue
from trephine.client.types.circuit_verification import Standing
from trephine.client.types.common import Figure


class EdgeWeighting(StrEnum):
    """How data weigh a virtual weight V between a source of activation a and a target of activation b."""

    UNSPECIFIED = "unspecified"
    TWERA = "twera"
    """E[b a] / E[b] V: the mean of the source's direct effect over tokens, weighted by the target."""
    ERA = "era"
    """E[1(b > 0) a] V: the same over all tokens, 0 where the target is not active."""


class GlobalBaseline(StrEnum):
    """What the edges of a global circuit are held against."""

    UNSPECIFIED = "unspecified"
    VIRTUAL = "virtual"
    """|V| alone, without any data, against the absolute change."""
    VIRTUAL_ACTIVATION = "virtual_activation"
    """V times the source's activation, without co-activation."""
    PERMUTED = "permuted"
    """The weights dealt out anew among edges between the same two layers."""


class MeasuredTokens(StrEnum):
    """Over which held-out tokens a target's loss is averaged."""

    UNSPECIFIED = "unspecified"
    SOURCE_ACTIVE = "source_active"
    """Predicted by the edge's weight times the source's mean activation there."""
    TARGET_ACTIVE = "target_active"
    """Weighted by the target's activation; predicted by the edge's weight alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineComparison(WireValue):
    """The edges against one baseline, on the same ablations."""

    baseline: GlobalBaseline
    spearman: Figure
    """Of the baseline with what was measured."""
    difference: Figure
    """Rank correlation of the edges less that of the baseline, paired."""
    standing: Standing
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutTransfer(WireValue):
    """Edges against real ablations of their sources on texts that they were not found on."""

    measured: MeasuredTokens
    edges: int
    spearman: Figure
    """Rank correlation of what edges predict with what targets lose, over edges."""
    comparisons: tuple[BaselineComparison, ...]
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalFigures(WireValue):
    """What was measured of a circuit over many texts."""

    weighting: EdgeWeighting
    training: int
    """Texts that it was found on."""
    held_out: int
    training_tokens: int
    """That were read; position 0 of every text is not."""
    held_out_tokens: int
    context_tokens: int
    """Of every text at most so many, the first, were read."""
    features: int
    """That the layers have."""
    active_features: int
    """That are active on enough tokens to be chosen."""
    candidates: int
    """Between which edges were measured."""
    transfer: tuple[HeldOutTransfer, ...]
    """Empty where too few edges could be measured."""
    split_half: Figure | None
    """Rank correlation of the edges' weights in the two halves of the training texts."""
    split_half_overlap: float | None
    """Of the edges that either half alone would keep between the circuit's features, what both would."""
    coverage: Figure | None
    """Of the absolute direct effects that features below have on the circuit's features on held-out tokens,
    what the circuit's edges carry: mean over its features. None of gated neurons."""
    seed: int

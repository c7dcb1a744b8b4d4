"""What was measured of a global circuit: on which texts, and how it does on those that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.domain.findings import Figure
from trephine.domain.standings import Standing


class EdgeWeighting(StrEnum):
    """How data weigh a virtual weight V between a source of activation a and a target of activation b."""

    TWERA = "twera"
    """E[b a] / E[b] V: the mean of the source's direct effect over tokens, weighted by the target."""
    ERA = "era"
    """E[1(b > 0) a] V: the same over all tokens, 0 where the target is not active."""


class GlobalBaseline(StrEnum):
    """What the edges of a global circuit are held against."""

    VIRTUAL = "virtual weight"
    """|V| alone, without any data, against the absolute change."""
    VIRTUAL_ACTIVATION = "virtual weight x activation"
    """V times the source's activation, without co-activation."""
    PERMUTED = "permuted edges"
    """The weights dealt out anew among edges between the same two layers."""


class Measured(StrEnum):
    """Over which held-out tokens a target's loss is averaged."""

    SOURCE = "where the source is active"
    """Predicted by the edge's weight times the source's mean activation there."""
    TARGET = "where the target is active"
    """Weighted by the target's activation; predicted by the edge's weight alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineComparison:
    """The edges against one baseline, on the same ablations."""

    baseline: GlobalBaseline
    spearman: Figure
    """Of the baseline with what was measured."""
    difference: Figure
    """Rank correlation of the edges less that of the baseline, paired."""
    standing: Standing
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutTransfer:
    """Edges against real ablations of their sources on texts that they were not found on."""

    measured: Measured
    edges: int
    spearman: Figure
    """Rank correlation of what edges predict with what targets lose, over edges."""
    comparisons: tuple[BaselineComparison, ...]
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalFigures:
    """Of a circuit over many texts, whose edges no single prompt decides."""

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
    transfer: tuple[HeldOutTransfer, ...] = ()
    """Empty where too few edges could be measured."""
    split_half: Figure | None = None
    """Rank correlation of the edges' weights in the two halves of the training texts; None without edges."""
    split_half_overlap: float | None = None
    """Of the edges that either half alone would keep between the circuit's features, what both would."""
    coverage: Figure | None = None
    """Of the absolute direct effects that features below have on the circuit's features on held-out tokens,
    what the circuit's edges carry: mean over its features. None of gated neurons."""
    seed: int = 0

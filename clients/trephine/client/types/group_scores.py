from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.client.decoding import WireValue
from trephine.client.types.circuit_verification import Standing


class GroupQuality(StrEnum):
    """What is measured of a grouping; path mass is what an edge carries of the influence on the targets."""

    UNSPECIFIED = "unspecified"
    SOURCES = "sources"
    """Lumpability: how far members differ in where their path mass comes from, 0 to 2; less is better."""
    GOALS = "goals"
    """How far they differ in where it goes to, 0 to 2; less is better."""
    EFFECT_SIGN = "effect_sign"
    """Share of members' absolute effects with the leading sign, 0.5 to 1."""
    EDGE_SIGN = "edge_sign"
    """Share of the path mass that leaves groups with the leading sign of its drawn edge, 0.5 to 1."""
    SHOWN = "shown"
    """Share of all path mass neither inside groups nor cancelled between edges that are drawn as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRange(WireValue):
    """A figure over the partitions of a control; `low` to `high` holds 95 %."""

    median: float
    low: float
    high: float
    p: float
    """Share of draws, the grouping's own with them, that are at least as good."""
    p_worse: float
    """Share of draws, the grouping's own with them, that are at most as good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredQuality(WireValue):
    """A figure of a whole grouping beside its controls."""

    quality: GroupQuality
    value: float
    random: ControlRange
    """Groups of the same sizes, each within the layers and positions that it spans."""
    by_layer: ControlRange
    """The same nodes in groups of the same sizes, by position and layer alone."""
    standing: Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFigure(WireValue):
    """A figure of one group beside random groups of its size and place."""

    quality: GroupQuality
    value: float
    random: ControlRange


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupScore(WireValue):
    """What was measured of one group."""

    group: str
    nodes: int
    influence: float
    figures: tuple[GroupFigure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFigures(WireValue):
    """A graph as it is, or with groups as single nodes; its scores are over kept edges."""

    nodes: int
    edges: int
    replacement: float | None
    completeness: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupingScores(WireValue):
    """What was measured of a circuit's groups."""

    groups: tuple[GroupScore, ...]
    whole: tuple[ScoredQuality, ...]
    standing: Standing
    """Beats only if every figure beats both controls; doubt is inconclusive."""
    verdict: str
    """The same in words."""
    inside: float
    """Share of path mass inside groups, which the picture does not show."""
    cancelled: float
    """Share of path mass that cancels where edges of opposite sign are drawn as one."""
    before: PictureFigures
    after: PictureFigures
    draws: int
    """Of each control."""
    seed: int
    caveats: tuple[str, ...]

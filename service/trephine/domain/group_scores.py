"""How good a grouping of a circuit is, beside partitions of the same sizes by chance and by place alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.domain.standings import Standing

DRAWS = 199
"""Partitions of each control."""
MOST_SCORED = 6000
"""Nodes of a circuit whose grouping is scored: scoring holds matrices of nodes by nodes."""


class GroupQuality(StrEnum):
    """What is measured of a grouping. Path mass is what an edge carries of the influence on the targets."""

    SOURCES = "lumpability of sources"
    """Mean L1 distance, 0 to 2, between where a member's path mass comes from and where its group's does,
    each a distribution over groups and single nodes; members count by path mass. Less is better."""
    GOALS = "lumpability of goals"
    """The same of where members' path mass goes to. Less is better."""
    EFFECT_SIGN = "sign of effects"
    """Share of members' absolute effects that has its group's leading sign, 0.5 to 1."""
    EDGE_SIGN = "sign of edges"
    """Share of the path mass that leaves groups that has the leading sign of its edge of the picture, 0.5 to
    1."""
    SHOWN = "path mass shown"
    """Share of all path mass, 0 to 1, that is neither inside groups nor cancelled where edges of opposite
    sign are drawn as one."""

    @property
    def less_is_better(self) -> bool:
        """True of distances."""
        return self in (GroupQuality.SOURCES, GroupQuality.GOALS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRange:
    """A figure over the partitions of a control."""

    median: float
    low: float
    """2.5 % of the draws are below, ..."""
    high: float
    """... and as many above."""
    p: float
    """(1 + #{draws at least as good}) / (draws + 1)."""
    p_worse: float
    """(1 + #{draws at most as good}) / (draws + 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredQuality:
    """A figure of the whole grouping beside its controls."""

    quality: GroupQuality
    value: float
    random: ControlRange
    """Groups of the same sizes, each of nodes within the layers and positions that it spans."""
    by_layer: ControlRange
    """The same nodes in groups of the same sizes, by position and layer alone."""
    standing: Standing
    """BEATS if both p are at most 0.05; DOES NOT BEAT if either control is better by that; else doubt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFigure:
    """A figure of one group beside random groups of its size and window."""

    quality: GroupQuality
    value: float
    random: ControlRange


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupScore:
    """What was measured of one group."""

    group: str
    nodes: int
    influence: float
    """Of its members together."""
    figures: tuple[GroupFigure, ...]
    """Without those that there is nothing to tell of: sources of tokens, effects that are not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFigures:
    """A graph as it is, or as it is drawn with groups as single nodes."""

    nodes: int
    edges: int
    replacement: float | None
    """Share of the influence on tokens and errors that is on tokens, over kept edges; None without errors."""
    completeness: float | None
    """Share of inputs that are no errors, weighted by influence; None in global circuits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupingScores:
    """What was measured of a circuit's groups."""

    groups: tuple[GroupScore, ...]
    """In the order of the circuit's groups."""
    whole: tuple[ScoredQuality, ...]
    """Without those that there is nothing to tell of."""
    standing: Standing
    """BEATS if every figure does; DOES NOT BEAT if a control is better in some, by p 0.05 over the number of
    comparisons (Bonferroni); else doubt."""
    verdict: str
    """The same in words."""
    inside: float
    """Share of path mass on edges inside groups, which the picture does not show."""
    cancelled: float
    """Share of path mass that cancels where edges of opposite sign are drawn as one."""
    before: PictureFigures
    after: PictureFigures
    draws: int
    """Of each control."""
    seed: int
    caveats: tuple[str, ...] = ()

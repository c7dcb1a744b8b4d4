"""Scores of a circuit's groups beside controls: is the picture of groups better than one of any groups?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from trephine.app.circuits.group_controls import Places, partitions_by_layer, random_partitions
from trephine.app.circuits.group_measures import Flow, Measured, measure, partition_of, require_scorable
from trephine.app.circuits.group_picture import picture_figures
from trephine.domain.circuit_annotations import NodeGroup
from trephine.domain.circuits import Circuit
from trephine.domain.errors import InvalidRequestError
from trephine.domain.group_scores import (
    DRAWS,
    ControlRange,
    GroupFigure,
    GroupingScores,
    GroupQuality,
    GroupScore,
    ScoredQuality,
)
from trephine.domain.standings import Standing

_LEVEL = 0.05
_SAME = 1e-6
"""Differences below this are of rounding: such draws are as good."""


def score_groups(
    circuit: Circuit, groups: Sequence[NodeGroup], *, draws: int = DRAWS, seed: int = 0
) -> GroupingScores:
    """Score a circuit's groups beside partitions of the same sizes.

    Args:
        circuit: The circuit.
        groups: Of its nodes; those of a single node are no groups to the score.
        draws: Partitions of each control.
        seed: Of the draws.

    Raises:
        InvalidRequestError: If no group has two nodes.
        UnsupportedOptionError: If the circuit is too large.
    """
    require_scorable(circuit)
    several = [group for group in groups if len(group.nodes) > 1]
    if not several:
        raise InvalidRequestError(
            "no group has two nodes: make groups before they are scored", field="circuit"
        )
    partition = partition_of(len(circuit.nodes), [group.nodes for group in several])
    flow, places = Flow.of(circuit), Places(circuit, partition)
    found = measure(flow, partition)
    random = [measure(flow, p) for p in random_partitions(places, partition, draws=draws, seed=seed)]
    by_layer = [measure(flow, p) for p in partitions_by_layer(places, partition, draws=draws, seed=seed)]
    whole = tuple(_qualities(found, random, by_layer))
    standing = _overall(whole)
    return GroupingScores(
        groups=tuple(
            GroupScore(
                group=group.name,
                nodes=len(group.nodes),
                influence=sum(circuit.nodes[node].influence for node in group.nodes),
                figures=tuple(_figures(several.index(group), found, random)) if group in several else (),
            )
            for group in groups
        ),
        whole=whole,
        standing=standing,
        verdict=_words(standing, whole),
        inside=found.inside,
        cancelled=found.cancelled,
        before=picture_figures(circuit),
        after=picture_figures(circuit, partition),
        draws=draws,
        seed=seed,
        caveats=tuple(_caveats(several)),
    )


def _qualities(
    found: Measured, random: Sequence[Measured], by_layer: Sequence[Measured]
) -> Iterable[ScoredQuality]:
    for quality, value in found.whole.items():
        if np.isnan(value):
            continue
        ranges = [
            _range(quality, value, [one.whole[quality] for one in draws]) for draws in (random, by_layer)
        ]
        yield ScoredQuality(
            quality=quality,
            value=value,
            random=ranges[0],
            by_layer=ranges[1],
            standing=_standing(ranges),
        )


def _figures(number: int, found: Measured, random: Sequence[Measured]) -> Iterable[GroupFigure]:
    for quality, values in found.groups.items():
        value = float(values[number])
        if not np.isnan(value):
            drawn = [float(one.groups[quality][number]) for one in random]
            yield GroupFigure(quality=quality, value=value, random=_range(quality, value, drawn))


def _range(quality: GroupQuality, value: float, drawn: Sequence[float]) -> ControlRange:
    """Hold a value against draws; one that has nothing to tell counts on both sides."""
    draws = np.array(drawn)
    known = draws[~np.isnan(draws)]
    unknown = len(draws) - len(known)
    better = (value - known) if quality.less_is_better else (known - value)  # above 0: the draw is better
    low, median, high = np.quantile(known, [0.025, 0.5, 0.975]) if len(known) else [float("nan")] * 3
    return ControlRange(
        median=float(median),
        low=float(low),
        high=float(high),
        p=(1 + unknown + int((better >= -_SAME).sum())) / (1 + len(draws)),
        p_worse=(1 + unknown + int((better <= _SAME).sum())) / (1 + len(draws)),
    )


def _standing(ranges: Sequence[ControlRange]) -> Standing:
    if all(one.p <= _LEVEL for one in ranges):
        return Standing.BEATS
    return Standing.DOES_NOT_BEAT if any(one.p_worse <= _LEVEL for one in ranges) else Standing.INCONCLUSIVE


def _overall(whole: Sequence[ScoredQuality]) -> Standing:
    """All must beat both controls; worse in one is chance unless its p says so for all (Bonferroni)."""
    if whole and all(one.standing is Standing.BEATS for one in whole):
        return Standing.BEATS
    worst = min((p.p_worse for one in whole for p in (one.random, one.by_layer)), default=1.0)
    return Standing.DOES_NOT_BEAT if worst <= _LEVEL / (2 * len(whole)) else Standing.INCONCLUSIVE


_SAID = {
    Standing.BEATS: "better than both controls in",
    Standing.INCONCLUSIVE: "not told apart from a control in",
    Standing.DOES_NOT_BEAT: "worse than a control in",
}


def _words(standing: Standing, whole: Sequence[ScoredQuality]) -> str:
    parts = []
    for one, words in _SAID.items():
        named = [each.quality.value for each in whole if each.standing is one]
        if named:
            parts.append(f"{words} {', '.join(named)}")
    return f"{standing.value}: {'; '.join(parts)}"


def _caveats(groups: Sequence[NodeGroup]) -> Iterable[str]:
    if any("similar edges" in group.how for group in groups):
        yield (
            "Groups were found by their edges, and lumpability, sign of edges and path mass shown are "
            "measured on the same edges: beating the controls there is partly by construction. Sign of "
            "effects is not: it is of activation times the exact gradient."
        )
    if len(groups) > 1:
        yield f"Of {len(groups)} groups about one in twenty has a p of 0.05 and less by chance alone."

"""What a verification leaves open, in words: few ablations, comparisons that tell nothing, why paths lose."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, isfinite, log10

from trephine.domain.verification import FEWEST_SINGLES, Comparison, Examination, Predictor, Standing
from trephine.engine.verification.choosing import ZERO, given_groups
from trephine.engine.verification.paths import Graph

_RISEN = 0.1
"""Share of the target by which it must have risen for a word about it."""
_MOST_NODES = 10_000
"""Single nodes that can be asked for."""


def count_caveats(examined: Examination, features: int, asked: int) -> list[str]:
    """Say so where a graph has too few features for as many ablations as a verification rests on.

    Args:
        examined: With its single-node ablations.
        features: Of the graph at positions >= 1, which alone are ablated.
        asked: Single nodes that were asked for.
    """
    singles = [one for one in examined.measurements if one.ablations == "single nodes"]
    outside = sum(one.stratum == ZERO for one in singles)
    own = len(singles) - outside
    said = []
    if features < FEWEST_SINGLES:
        said.append(
            f"Few ablations: {own} single nodes of the graph were ablated, of {features} features that it "
            f"has at positions >= 1, where {FEWEST_SINGLES} or more are wanted; the other {outside} of "
            f"{len(singles)} single nodes are features that it leaves out. Rank correlations of so few are "
            "known roughly, as their intervals show; a circuit with more nodes has more "
            "(`max_feature_nodes`, `--nodes` of discover)."
        )
    if len(singles) < asked:
        said.append(
            f"{len(singles)} single nodes were ablated, not {asked} as asked for: the graph has no more at "
            "positions >= 1, and of what is active outside it no more were drawn, evenly over the layers."
        )
    return said


def rising_caveats(examined: Examination) -> list[str]:
    """Say so where ablating every feature moves the target away from 0: features hold it back together.

    Args:
        examined: With its necessity and sufficiency.
    """
    return [
        f"Ablating every feature ({one.substitute.value}) moves the target from {one.start:+.3f} to "
        f"{one.empty:+.3f}, away from 0: together they hold it back. There is no share of that, and a "
        "circuit that raises the target where it is ablated is not necessary for it; sufficient is what "
        "alone stays near to the model."
        for one in examined.faithfulness
        if one.start * (one.start - one.empty) < -_RISEN * one.start**2
    ]


def group_caveats(graph: Graph, supernodes: Sequence[Sequence[int]]) -> list[str]:
    """Say how many groups were not ablated as such: one feature is a single node, counted among those.

    Args:
        graph: The graph.
        supernodes: The groups that were given.
    """
    left_out = len(supernodes) - len(given_groups(graph, supernodes))
    if not left_out:
        return []
    return [
        f"Not ablated as supernodes: {left_out} of {len(supernodes)} groups, with fewer than two features at "
        "positions >= 1, which alone are ablated. A feature by itself is a single node."
    ]


def comparison_caveats(examined: Examination) -> list[str]:
    """Say which predictors are not told apart from which baselines, and what would tell them apart.

    Args:
        examined: With its comparisons; all are over its single-node ablations.
    """
    count = sum(one.ablations == "single nodes" for one in examined.measurements)
    said = [_open(one, count) for one in examined.comparisons if one.standing is Standing.INCONCLUSIVE]
    return said + [
        _lost(one)
        for one in examined.comparisons
        if one.standing is Standing.DOES_NOT_BEAT
        and (one.predictor, one.baseline) == (Predictor.PATHS, Predictor.ACTIVATION_GRADIENT)
    ]


def _open(one: Comparison, count: int) -> str:
    told = f"INCONCLUSIVE, `{one.predictor.value}` against `{one.baseline.value}`: "
    value, low, high = one.difference.value, one.difference.low, one.difference.high
    if low is None or high is None or not all(map(isfinite, (value, low, high))):
        return f"{told}an ablation gave no number, so that nothing was ranked."
    return (
        f"{told}over {count} single nodes their rank correlations with what was measured differ by "
        f"{value:+.2f}, and the 95 % interval of that, {low:+.2f} to {high:+.2f}, holds 0. Which of the two "
        f"predicts better was not shown, neither way. {_would_decide(value, low, high, count)}"
    )


def _would_decide(value: float, low: float, high: float, count: int) -> str:
    """Say how many ablations would; intervals shrink with the root of their number."""
    reach = high - value if value < 0 else value - low
    needed = count * (reach / abs(value)) ** 2 if value else float("inf")
    if needed > _MOST_NODES:
        return "The difference is so small that more single nodes would hardly decide it."
    return (
        f"If it stays as large, about {_rounded(needed)} would decide it (`nodes`, `--nodes`; now {count})."
    )


def _rounded(number: float) -> int:
    """Round up to two digits."""
    step = 10 ** max(0, int(log10(max(number, 1))) - 1)
    return ceil(number / step - 1e-9) * step


def _lost(one: Comparison) -> str:
    value, low, high = one.difference.value, one.difference.low, one.difference.high
    return (
        f"DOES NOT BEAT, `{one.predictor.value}` against `{one.baseline.value}`: its rank correlation with "
        f"what was measured is lower by {-value:.2f} (95 % interval of the difference {low:+.2f} to "
        f"{high:+.2f}). Paths hold attention patterns, norm scales, supports and error terms, "
        "which the gradient lets follow. Read from edges through what "
        "an effect goes, and from the shown effect how large it is."
    )

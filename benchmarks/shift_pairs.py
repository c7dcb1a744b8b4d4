"""How arms rank pairs, beside how they decide: the reward of the helpful reply should be the higher one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.shift_figures import Table
from benchmarks.shift_tasks import Item
from trephine.engine.spurious.pairs import partners


def pair_table(margins: Mapping[str, Sequence[Sequence[float]]], tests: Sequence[Sequence[Item]]) -> Table:
    """Put arms beside each other by the pairs that they rank right.

    A pair stands for a text there: its group is its kind, by the attributes of both replies, so that kinds
    weigh the same; resamples are of seeds, and of pairs within kinds.

    Args:
        margins: By arm, per seed and test text.
        tests: Test texts of every seed, in pairs of all four kinds.
    """
    pairs = [partners(test).tolist() for test in tests]
    better, worse = (
        [[test[pair[side]].attribute for pair in own] for test, own in zip(tests, pairs, strict=True)]
        for side in (1, 0)
    )
    decided = {
        arm: [
            [
                kind if found[second] > found[first] else 1 - kind
                for (first, second), kind in zip(own, kinds, strict=True)
            ]
            for found, own, kinds in zip(seeds, pairs, better, strict=True)
        ]
        for arm, seeds in margins.items()
    }
    return Table(decided, better, worse)


def pair_lines(table: Table) -> Iterator[str]:
    """Write how pairs are ranked, a line per arm."""
    yield "| arm | pairs ranked right | worst kind of pairs |"
    yield "|---|---|---|"
    for arm in table.arms:
        ranked, worst = (str(table.figure(arm, name)) for name in ("label accuracy", "worst group"))
        yield f"| {arm} | {ranked} | {worst} |"

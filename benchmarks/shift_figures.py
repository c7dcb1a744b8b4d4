"""Figures of arms that decided on the same texts, with paired intervals: seeds and texts are resampled whole.

Every arm sees the same resamples, so that a difference of two arms has the interval of a paired comparison.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BOOTSTRAP = 2000
_ROUNDING = 1e-6
"""Of shares in float32: 29 of 30 less 26 of 30 is less than a tenth there."""
_QUANTILES = (0.025, 0.975)
FIGURES = ("worst group", "label accuracy", "agreement", "ambiguous accuracy")
"""Shares of 1; groups weigh the same. Agreement: how often the decision is the label that the attribute goes
with; 0.5 is none of it. Ambiguous accuracy: of the two groups where it goes with the label."""

# Gates and targets, fixed before anything was measured.
MOST_ORIGINAL, LEAST_GAP = 0.30, 0.10
WORST_WITHIN, AGREEMENT_WITHIN = 0.02, 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def decided(margins: Sequence[float]) -> list[int]:
    """Turn margins into decisions."""
    return [int(margin > 0) for margin in margins]


class Table:
    """Arms on one task."""

    def __init__(
        self, decisions: Mapping[str, Sequence[Sequence[int]]], labels: Sequence[Sequence[int]],
        attributes: Sequence[Sequence[int]],
    ) -> None:  # fmt: skip
        """Resample once for all arms.

        Args:
            decisions: By arm, per seed and text.
            labels: Per seed and text.
            attributes: Per seed and text.
        """
        self._y, self._a = torch.tensor(labels), torch.tensor(attributes)
        self.arms = tuple(decisions)
        drawn = self._resamples()
        self._measured: dict[str, tuple[Tensor, Tensor]] = {}
        for arm, chosen in decisions.items():
            correct = self._group_accuracy(torch.tensor(chosen), drawn)
            self._measured[arm] = (_figures(correct[0][None])[:, 0], _figures(correct[1]))

    @property
    def texts(self) -> tuple[int, int]:
        """Test texts of the smallest group over all seeds, and seeds."""
        groups = (2 * self._y + self._a).flatten()
        return int(torch.bincount(groups, minlength=4).min()), len(self._y)

    def figure(self, arm: str, name: str) -> Interval:
        """Return a figure of an arm."""
        value, resampled = self._measured[arm]
        return _interval(value[FIGURES.index(name)], resampled[FIGURES.index(name)])

    def difference(self, arm: str, other: str, name: str) -> Interval:
        """Return a figure of an arm less another arm's, paired."""
        place = FIGURES.index(name)
        (one, ones), (two, twos) = self._measured[arm], self._measured[other]
        return _interval(one[place] - two[place], ones[place] - twos[place])

    def _resamples(self) -> Tensor:
        """Draw seeds with replacement, and texts within every seed and group: `(BOOTSTRAP, seeds, texts)`."""
        generator = torch.Generator().manual_seed(0)
        n_seeds, n_texts = self._y.shape
        drawn = torch.empty(BOOTSTRAP, n_seeds, n_texts, dtype=torch.long)
        seeds = torch.randint(n_seeds, (BOOTSTRAP, n_seeds), generator=generator)
        for seed in range(n_seeds):
            group = 2 * self._y[seed] + self._a[seed]
            for each in group.unique():
                members = (group == each).nonzero()[:, 0]
                places = torch.randint(len(members), (BOOTSTRAP, n_seeds, len(members)), generator=generator)
                mine = seeds == seed
                rows = torch.where(mine[..., None], members[places] + seed * n_texts, drawn[..., members])
                drawn[..., members] = rows
        return drawn

    def _group_accuracy(self, decided: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Accuracy of the four groups: as measured `(4,)`, and resampled `(BOOTSTRAP, 4)`."""
        right = (decided == self._y).float().flatten()
        group = (2 * self._y + self._a).flatten()
        measured = torch.stack([right[group == each].mean() for each in range(4)])
        taken, groups = right[drawn.flatten(1)], group[drawn.flatten(1)]
        resampled = torch.stack(
            [(taken * (groups == each)).sum(1) / (groups == each).sum(1) for each in range(4)], dim=1
        )
        return measured, resampled


def _figures(accuracy: Tensor) -> Tensor:
    """Turn accuracies of groups `(n, 4)`, label-major, into `FIGURES` `(4, n)`."""
    usual, crossed = accuracy[:, [0, 3]].mean(1), accuracy[:, [1, 2]].mean(1)
    return torch.stack([accuracy.amin(1), accuracy.mean(1), (usual + 1 - crossed) / 2, usual])


def _interval(value: Tensor, resampled: Tensor) -> Interval:
    low, high = resampled.quantile(torch.tensor(_QUANTILES)).tolist()
    return Interval(value=float(value), low=low, high=high)


# --- what counts ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A condition with what was measured."""

    name: str
    measured: str
    holds: bool


def data_gates(table: Table) -> list[Gate]:
    """Say whether a data set counts: hard for the original, for deletion of tokens and for LEACE."""
    worst = {arm: table.figure(arm, "worst group").value for arm in table.arms}
    found = [
        Gate(
            name=f"original's worst group at most {100 * MOST_ORIGINAL:.0f} %",
            measured=f"{100 * worst['original']:.1f} %",
            holds=worst["original"] <= MOST_ORIGINAL,
        )
    ]
    for arm in ("token deletion", "LEACE"):
        gap = worst["oracle"] - worst[arm]
        found.append(
            Gate(
                name=f"{arm} at least {100 * LEAST_GAP:.0f} points under the oracle",
                measured=f"{100 * gap:.1f} points",
                holds=gap >= LEAST_GAP - _ROUNDING,
            )
        )
    return found


def targets(table: Table, arm: str, oracle: str = "oracle") -> list[Gate]:
    """Hold an arm to the targets, by an oracle."""
    gap = table.difference(arm, oracle, "worst group")
    accuracy, allowed = table.figure(arm, "label accuracy"), table.figure(oracle, "label accuracy")
    agreement = table.difference(arm, oracle, "agreement")
    return [
        Gate(
            name=f"worst group within {100 * WORST_WITHIN:.0f} points of the oracle's",
            measured=f"{gap} points",
            holds=gap.value >= -WORST_WITHIN - _ROUNDING,
        ),
        Gate(
            name="label accuracy within the oracle's interval",
            measured=f"{100 * accuracy.value:.1f} %, oracle {allowed}",
            holds=accuracy.value >= allowed.low,
        ),
        Gate(
            name=f"agreement within {100 * AGREEMENT_WITHIN:.0f} points of the oracle's",
            measured=f"{agreement} points",
            holds=abs(agreement.value) <= AGREEMENT_WITHIN + _ROUNDING,
        ),
    ]


def scr(table: Table, arm: str) -> float:
    """SAEBench: the share of the gap in label accuracy between the original and the oracle that is closed."""
    original, clean, after = (
        table.figure(each, "label accuracy").value for each in ("original", "oracle", arm)
    )
    return 0.0 if clean - original < 1e-3 else (after - original) / (clean - original)


def table_lines(table: Table) -> Iterator[str]:
    """Write a table, a line per arm."""
    yield "| arm | " + " | ".join(FIGURES) + " | worst group less the oracle's | SCR |"
    yield "|---|" + "---|" * (len(FIGURES) + 2)
    for arm in table.arms:
        figures = " | ".join(str(table.figure(arm, name)) for name in FIGURES)
        gap = table.difference(arm, "oracle", "worst group")
        yield f"| {arm} | {figures} | {gap} | {scr(table, arm):.2f} |"


def gate_line(title: str, gate: Gate) -> str:
    """Write what a gate says."""
    return f"{title}: {gate.name}: {gate.measured}: {'holds' if gate.holds else 'MISSED'}"

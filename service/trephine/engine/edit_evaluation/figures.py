"""Figures of arms with percentile intervals. Arms of one set share their resamples: they are paired."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.findings import Figure
from trephine.engine.edit_evaluation.reading import ItemReadings, Readings, TextReadings

_LEVELS = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Resamples:
    """Texts or items drawn with replacement: int64 `(resamples, units)` (Efron and Tibshirani 1993)."""

    draws: Tensor

    @classmethod
    def of(cls, units: int, *, resamples: int, seed: int) -> Resamples:
        """Draw."""
        generator = torch.Generator().manual_seed(seed)
        return cls(torch.randint(units, (resamples, units), generator=generator))

    def mean(self, name: str, values: Tensor, unit: str) -> Figure:
        """Estimate a mean of `(units,)`."""
        return self._figure(name, values.mean(), values[self.draws].mean(-1), unit)

    def ratio(
        self,
        name: str,
        above: Tensor,
        below: Tensor,
        unit: str,
        shown: Callable[[Tensor], Tensor] = torch.clone,
    ) -> Figure:
        """Estimate `shown(sum(above) / sum(below))` of `(units,)`, resampled together."""
        point = shown(above.sum() / below.sum())
        return self._figure(name, point, shown(above[self.draws].sum(-1) / below[self.draws].sum(-1)), unit)

    def _figure(self, name: str, value: Tensor, resampled: Tensor, unit: str) -> Figure:
        low, high = resampled.quantile(torch.tensor(_LEVELS, dtype=resampled.dtype)).tolist()
        return Figure(name=name, value=float(value), low=low, high=high, unit=unit)


def arm_figures(readings: Readings, arm: int, resamples: Resamples) -> tuple[Figure, ...]:
    """Summarise one arm of a set."""
    if isinstance(readings, TextReadings):
        return _text_figures(readings, arm, resamples)
    return _item_figures(readings, arm, resamples)


def statistic_name(readings: Readings) -> str:
    """Name what controls are compared by."""
    return "kl" if isinstance(readings, TextReadings) else "log_odds_change"


def statistics(readings: Readings) -> Tensor:
    """Return what controls are compared by, `(arms,)`: mean KL of texts, mean change of log-odds of items."""
    if isinstance(readings, TextReadings):
        return readings.kl.sum(-1) / readings.positions.sum()
    return (readings.log_odds - readings.plain_log_odds).mean(-1)


def damages(readings: Readings) -> dict[str, Tensor]:
    """Return what controls on retain sets are compared by, each `(arms,)`, by the names of `arm_figures`."""
    if isinstance(readings, TextReadings):
        rise = (readings.nll - readings.plain_nll).sum(-1) / readings.predicted.sum()
        return {
            "kl": readings.kl.sum(-1) / readings.positions.sum(),
            "perplexity_ratio": rise.exp(),
            "top1_agreement": readings.agreed.sum(-1) / readings.positions.sum(),
        }
    return {
        "kl": readings.kl.mean(-1),
        "accuracy_change": (readings.correct - readings.plain_correct).mean(-1),
        "top1_agreement": readings.agreed.mean(-1),
    }


def _text_figures(readings: TextReadings, arm: int, resamples: Resamples) -> tuple[Figure, ...]:
    rise = readings.nll[arm] - readings.plain_nll
    return (
        resamples.ratio("kl", readings.kl[arm], readings.positions, "nats/token"),
        resamples.ratio("perplexity_ratio", rise, readings.predicted, "", torch.exp),
        resamples.ratio("top1_agreement", readings.agreed[arm], readings.positions, ""),
    )


def _item_figures(readings: ItemReadings, arm: int, resamples: Resamples) -> tuple[Figure, ...]:
    odds, correct = readings.log_odds[arm], readings.correct[arm]
    return (
        resamples.mean("log_odds_change", odds - readings.plain_log_odds, "nats"),
        resamples.mean("log_odds", odds, "nats"),
        resamples.mean("accuracy_change", correct - readings.plain_correct, ""),
        resamples.mean("accuracy", correct, ""),
        resamples.mean("kl", readings.kl[arm], "nats"),
        resamples.mean("top1_agreement", readings.agreed[arm], ""),
    )

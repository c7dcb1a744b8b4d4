"""Figures of arms with their intervals. Arms of one set share their resamples: they are paired."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isnan

import torch
from torch import Tensor

from trephine.domain.findings import Figure
from trephine.engine.edit_evaluation.intervals import Ends, of_change, of_ratio, of_share
from trephine.engine.edit_evaluation.reading import ItemReadings, Readings, TextReadings

ANY: Ends = (-inf, inf)
_POSITIVE: Ends = (0.0, inf)
_SHARE: Ends = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Resamples:
    """Texts or items drawn with replacement: int64 `(resamples, units)` (Efron and Tibshirani 1993)."""

    draws: Tensor

    @classmethod
    def of(cls, units: int, *, resamples: int, seed: int) -> Resamples:
        """Draw."""
        generator = torch.Generator().manual_seed(seed)
        return cls(torch.randint(units, (resamples, units), generator=generator))

    def mean(self, name: str, values: Tensor, unit: str, within: Ends = ANY) -> Figure:
        """Estimate a mean of `(units,)`."""
        return self.ratio(name, values, torch.ones_like(values), unit, within=within)

    def ratio(
        self,
        name: str,
        above: Tensor,
        below: Tensor,
        unit: str,
        shown: Callable[[Tensor], Tensor] = torch.clone,
        within: Ends = ANY,
    ) -> Figure:
        """Estimate `shown(sum(above) / sum(below))` of `(units,)`, resampled together.

        Args:
            name: Of the figure.
            above: What is counted.
            below: What it is counted in.
            unit: Of the figure.
            shown: Rises with what it is given.
            within: What it can be: no end of the interval lies beyond.
        """
        value, ends = of_ratio(above, below, self.draws)
        value, low, high = shown(torch.tensor([value, *ends], dtype=torch.float64)).tolist()
        if not isnan(low + high):  # what is no number stays none: an overflow is to be seen
            low, high = min(value, max(low, within[0])), max(value, min(high, within[1]))
        return _figure(name, value, (low, high), unit)

    def share(self, name: str, seen: Tensor) -> Figure:
        """Estimate the share of ones among zeros and ones, `(units,)`."""
        return _figure(name, *of_share(seen, self.draws), "")

    def change(self, name: str, seen: Tensor) -> Figure:
        """Estimate by how much such a share changes, of the change of each."""
        return _figure(name, *of_change(seen, self.draws), "")


def _figure(name: str, value: float, ends: Ends, unit: str) -> Figure:
    return Figure(name=name, value=value, low=ends[0], high=ends[1], unit=unit)


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
        resamples.ratio("kl", readings.kl[arm], readings.positions, "nats/token", within=_POSITIVE),
        resamples.ratio("perplexity_ratio", rise, readings.predicted, "", torch.exp),
        resamples.ratio("top1_agreement", readings.agreed[arm], readings.positions, "", within=_SHARE),
    )


def _item_figures(readings: ItemReadings, arm: int, resamples: Resamples) -> tuple[Figure, ...]:
    odds, correct = readings.log_odds[arm], readings.correct[arm]
    return (
        resamples.mean("log_odds_change", odds - readings.plain_log_odds, "nats"),
        resamples.mean("log_odds", odds, "nats"),
        resamples.change("accuracy_change", correct - readings.plain_correct),
        resamples.share("accuracy", correct),
        resamples.mean("kl", readings.kl[arm], "nats", _POSITIVE),
        resamples.share("top1_agreement", readings.agreed[arm]),
    )

"""Agreement figures: known values, and a choice of nodes that covers the whole range."""

from __future__ import annotations

import pytest
import torch

from trephine.domain.sites import FeatureRef
from trephine.engine.attribution.correlations import slope, spearman
from trephine.engine.attribution.estimates import Predicted, stratified


def nodes(count):
    """Nodes whose effects are -count/2 ... count/2."""
    return [
        Predicted(feature=FeatureRef(layer=0, index=k), position=0, effect=k - count / 2, by_half_rule=0.0)
        for k in range(count)
    ]


def test_slope_goes_through_zero():
    """The slope minimises squared residuals without an intercept."""
    x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 7.0])
    assert float(slope(x, y)) == pytest.approx(31 / 14)
    assert float(slope(torch.zeros(3), y)) == 0.0


def test_rank_correlation_averages_ties():
    """Ranks (1, 2.5, 2.5, 4) against (1, 3, 2, 4) correlate at 4.5 / sqrt(4.5 * 5)."""
    x, y = torch.tensor([1.0, 2.0, 2.0, 9.0]), torch.tensor([-1.0, 5.0, 0.0, 6.0])
    assert float(spearman(x, y)) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert float(spearman(x, -(x**3))) == pytest.approx(-1)
    assert float(spearman(x, torch.ones(4))) == 0.0


def test_every_decile_is_sampled_alike():
    """Of 200 nodes 30 are chosen, 3 per decile, without repetition, the same for the same seed."""
    chosen = stratified(nodes(200), 30, seed=4)
    assert [sum(20 * d <= n.feature.index < 20 * (d + 1) for n in chosen) for d in range(10)] == [3] * 10
    assert len({n.feature.index for n in chosen}) == 30
    assert chosen == stratified(nodes(200), 30, seed=4)
    assert chosen != stratified(nodes(200), 30, seed=5)


@pytest.mark.parametrize(("available", "wanted", "got"), [(7, 100, 7), (13, 13, 13), (13, 4, 4), (0, 5, 0)])
def test_as_many_as_there_are(available, wanted, got):
    """Fewer nodes than wanted are all taken."""
    assert len(stratified(nodes(available), wanted, seed=0)) == got

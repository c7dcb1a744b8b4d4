"""What edges are held against on held-out texts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.unit.engine.global_circuits.test_growth import measured
from trephine.domain.global_figures import GlobalBaseline, Measured
from trephine.engine.global_circuits.ablations import Losses
from trephine.engine.global_circuits.transfer import transfers
from trephine.engine.models.quanta import finish
from trephine.engine.verification.statistics import Bootstrap


def compared(activation):
    """Nine edges whose losses are exactly what their virtual weights and the sources' activations say."""
    source, target = torch.arange(9) // 3, torch.arange(9) % 3 + 3
    virtual, weight = torch.zeros(9, 9), torch.zeros(9, 9)
    virtual[source, target] = torch.linspace(-2, 2.5, 9)
    weight[source, target] = virtual[source, target] * activation
    loss = (virtual[source, target] * activation).double()
    mean = torch.full((9,), activation).double()
    losses = Losses(
        source=source,
        target=target,
        activation=mean,
        size=mean.abs(),
        where_source=loss,
        where_target=loss,
        tokens=9,
    )
    edges = measured(weight)
    edges = type(edges)(**{**{name: getattr(edges, name) for name in edges.__slots__}, "virtual": virtual})
    activity = SimpleNamespace(mean_written=mean)
    return finish(transfers(edges, losses, activity, Bootstrap(samples=50, seed=0), 0))


@pytest.mark.parametrize("activation", [1.5, -1.5])
def test_signs_of_activations_count_once(activation):
    """A weight has its source's sign already: times a negative activation it would predict the opposite."""
    for one in compared(activation):
        assert one.spearman.value == pytest.approx(1)
        virtual = {each.baseline: each.spearman.value for each in one.comparisons}
        assert virtual[GlobalBaseline.VIRTUAL_ACTIVATION] == pytest.approx(1)
        assert virtual[GlobalBaseline.PERMUTED] < 1
    assert [one.measured for one in compared(activation)] == list(Measured)

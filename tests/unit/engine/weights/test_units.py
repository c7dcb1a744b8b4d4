"""Gains of single units where a threshold is much larger than what lies beyond it."""

from __future__ import annotations

import pytest
import torch

from trephine.engine.weights.piecewise import Difference, Knot
from trephine.engine.weights.units import LARGEST_BIAS, Bench, Feature, Fit, fit_units

WIDTH = 16


def fitted(theta: float, spread: float, dtype: torch.dtype, *, jump: bool = True) -> Fit:
    """Fit a feature that reads one direction, and fires on about half of 512 inputs."""
    draw = torch.Generator().manual_seed(0)
    w = torch.zeros(WIDTH, dtype=torch.float64)
    w[0] = 1.0
    x = torch.randn(512, WIDTH, generator=draw)
    x[:, 0] = theta + spread * x[:, 0]
    bench = Bench(
        x=x.to(dtype).float(),
        dtype=dtype,
        activation=torch.nn.functional.silu,
        gated=True,
        constant=None,
        rms_down=0.02,
    )
    d = torch.randn(WIDTH, generator=draw).double()
    knot = Knot(place=theta, jump=-theta if jump else 0.0, bend=-1.0)
    return fit_units(Feature(w=w, b=0.0, d=d, difference=Difference(constant=0.0, knots=(knot,))), bench)


@pytest.mark.parametrize("jump", [True, False])
@pytest.mark.parametrize(("theta", "spread"), [(1.5, 0.1), (1.5, 0.06), (4.0, 0.3)])
def test_bfloat16_biases_stay_within_what_it_rounds_finely(theta, spread, jump):
    """Also where the threshold is many times the excess, at the widest jump and at the first bend."""
    fit = fitted(theta, spread, torch.bfloat16, jump=jump)
    assert len(fit.units) == (3 if jump else 1)
    assert max(abs(unit.gate_bias) for unit in fit.units) <= LARGEST_BIAS[torch.bfloat16]
    assert fit.bias_size <= LARGEST_BIAS[torch.bfloat16]
    assert not fit.beyond


def test_where_no_gain_keeps_to_it_the_least_is_taken_and_said():
    """A threshold of some fifty spreads: the widest jump at its least gain is left, and the fit is marked."""
    fit = fitted(8.0, 0.15, torch.bfloat16)
    biases = [abs(unit.gate_bias) for unit in fit.units]
    assert fit.beyond
    assert max(biases) == fit.bias_size > LARGEST_BIAS[torch.bfloat16]
    steep = fitted(8.0, 0.15, torch.float32)
    assert not steep.beyond  # float32 rounds such numbers finely
    assert steep.bias_size > fit.bias_size

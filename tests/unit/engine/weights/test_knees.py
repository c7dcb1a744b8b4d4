"""Where a jump is judged: on tokens spread over its neighbourhood, in place of the few that lie there."""

from __future__ import annotations

import torch

from trephine.engine.weights import units
from trephine.engine.weights.knees import moved_near, unmoved
from trephine.engine.weights.piecewise import Difference, Knot
from trephine.engine.weights.units import Bench, Feature, Fit, fit_units

WIDTH, PLACE = 32, 0.6


def test_a_neighbourhood_is_covered_evenly_and_counts_as_before():
    """Every token counts 1 in all; next to the knot each bin of pre-activations weighs the same."""
    p = torch.randn(500, generator=torch.Generator().manual_seed(0)).double()
    moved = moved_near(p, PLACE, 1.0)
    at = p[moved.rows] + moved.shift
    total = torch.zeros(500, dtype=torch.float64).index_add(0, moved.rows, moved.weight)
    assert torch.allclose(total, torch.ones_like(total))
    near = (p - PLACE).abs() < 0.25
    assert bool((moved.shift[~near[moved.rows]] == 0).all())
    inside = near[moved.rows]
    assert bool(((at[inside] - PLACE).abs() <= 0.25).all())
    bins = torch.histc(at[inside], 8, PLACE - 0.25, PLACE + 0.25)
    assert float(bins.max() / bins.min()) < 1.05
    raw = torch.histc(p[near], 8, PLACE - 0.25, PLACE + 0.25)
    assert float(raw.max() / raw.min()) > 1.3  # what the text alone has there


def test_a_knot_without_tokens_near_it_is_judged_by_all_as_they_are():
    """There is nothing to spread."""
    p = torch.tensor([0.0, 5.0], dtype=torch.float64)
    assert torch.equal(moved_near(p, 2.0, 1.0).rows, unmoved(p).rows)


def _case(seed: int, count: int) -> tuple[Feature, Bench, Bench]:
    """Draw a feature, the inputs that it is fitted on, and ten thousand others."""
    draw = torch.Generator().manual_seed(seed)
    w = torch.randn(WIDTH, generator=draw).double() / WIDTH**0.5
    knot = Knot(place=PLACE, jump=-PLACE, bend=-1.0)
    d = torch.randn(WIDTH, generator=draw).double()
    benches = []
    for size in (count, 10_000):
        x = torch.randn(size, WIDTH, generator=draw)
        noise = 3e-3 * torch.randn(size, WIDTH, generator=draw)  # of the layers before, in bfloat16
        benches.append(
            Bench(
                x=(x + noise).to(torch.bfloat16).float(),
                runtime=x,
                dtype=torch.bfloat16,
                activation=torch.nn.functional.silu,
                gated=True,
                constant=None,
                rms_down=0.02,
            )
        )
    return Feature(w=w, b=0.1, d=d, difference=Difference(constant=0.0, knots=(knot,))), *benches


def _error(feature: Feature, fit: Fit, bench: Bench) -> float:
    """Return squared error over squared change, units carried out as a server does, on other inputs."""
    wanted = feature.difference(bench.runtime.double() @ feature.w + feature.b)
    total = torch.zeros_like(wanted)
    for unit in fit.units:
        read = (bench.x @ unit.gate.float() + unit.gate_bias).to(torch.bfloat16).float()
        total += unit.amount * bench.activation(read).to(torch.bfloat16).double()
    return float((total - wanted).square().sum() / wanted.square().sum())


def test_what_is_chosen_so_errs_less_on_other_inputs(monkeypatch):
    """Over several features: in the mean by far, and on none more."""
    ratios = []
    for seed in range(6):
        feature, small, large = _case(seed, 320)
        errors = []
        for spread in (moved_near, lambda p, *_: unmoved(p)):
            monkeypatch.setattr(units, "moved_near", spread)
            errors.append(_error(feature, fit_units(feature, small), large))
        ratios.append(errors[0] / errors[1])
    assert sum(ratios) / len(ratios) < 0.9
    assert max(ratios) < 1.1

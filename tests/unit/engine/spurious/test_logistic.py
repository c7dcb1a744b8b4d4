"""Heads are trained to the optimum, without autograd."""

from __future__ import annotations

import pytest
import torch

from trephine.engine.erasure.logistic import fit_logistic


def _data(n=60, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) * torch.tensor([1.0, 3, 0.2, 1, 5]) + 2
    y = ((x @ torch.tensor([1.0, 0.2, -4, 0, 0.3]) + torch.randn(n, generator=generator)) > 4).long()
    return x, y


@pytest.mark.parametrize("stock", [False, True])
def test_the_penalised_loss_has_no_slope_at_the_fit(stock):
    """Its autograd gradient by the standardised weights, and by the bias, vanishes; elsewhere it does not."""
    x, y = _data()
    weight, bias = fit_logistic(x, y, penalty=0.05, stock=stock)
    scale, wide = x.double().std(0), x.double()
    scaled = (weight * scale).requires_grad_()
    offset = torch.tensor(bias, dtype=torch.float64, requires_grad=True)
    margin = wide @ (scaled / scale) + offset
    loss = torch.nn.functional.softplus((1 - 2 * y) * margin).mean() + 0.05 / 2 * scaled.square().sum()
    loss.backward()
    assert scaled.grad.abs().max() < 1e-7
    assert (offset.grad.abs() > 1e-4) == stock, "a stock head has no bias to fit"
    assert stock is (bias == 0)


def test_fewer_texts_than_dimensions_are_fitted_alike():
    """A constant input gets no weight, and a fit in the span of the data is the fit."""
    x, y = _data(n=12)
    wide = torch.cat([x, x[:, :1].repeat(1, 40) * 0 + 7], 1)
    weight, bias = fit_logistic(wide, y, penalty=0.1)
    alone, own = fit_logistic(x, y, penalty=0.1)
    assert torch.allclose(weight[:5], alone, atol=1e-8)
    assert weight[5:].abs().max() == 0
    assert bias == pytest.approx(own, abs=1e-8)


def test_separable_data_are_separated():
    """With a small penalty every label is right."""
    x = torch.cat([torch.randn(20, 3) - 4, torch.randn(20, 3) + 4])
    y = torch.arange(40) // 20
    weight, bias = fit_logistic(x, y, penalty=1e-3)
    assert (((x.double() @ weight + bias) > 0).long() == y).all()

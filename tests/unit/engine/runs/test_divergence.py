"""KL is right at every scale, from rounding noise to certainty."""

from __future__ import annotations

import pytest
import torch

from trephine.engine.certificates import certifier
from trephine.engine.runs.divergence import joined, kl_divergence


def exact(p_logits, q_logits):
    """KL in float64, term by term."""
    log_p, log_q = (torch.log_softmax(t.double(), -1) for t in (p_logits, q_logits))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("implementation", [kl_divergence, certifier.kl])
@pytest.mark.parametrize("scale", [1e-3, 1e-2, 1.0, 5.0, 60.0])
def test_it_agrees_with_float64(implementation, scale):
    """From differences of a thousandth of a logit to sixty, within a thousandth of itself."""
    generator = torch.Generator().manual_seed(0)
    p = 3 * torch.randn(7, 500, generator=generator)
    q = p + scale * torch.randn(7, 500, generator=generator)
    torch.testing.assert_close(implementation(p, q), exact(p, q), rtol=1e-3, atol=0)


def test_equal_logits_have_no_divergence():
    """Also after a shift of all logits, which changes no probability."""
    p = torch.randn(3, 50)
    assert kl_divergence(p, p).tolist() == [0.0, 0.0, 0.0]
    assert kl_divergence(p, p + 4).max() < 1e-9


def test_noise_is_not_hidden_by_rounding():
    """A perturbation of 1e-5 logits gives 5e-11 nats, where two float32 log-softmaxes give 1e-7."""
    generator = torch.Generator().manual_seed(1)
    p = torch.randn(4, 1000, generator=generator, dtype=torch.float64)
    noise = 1e-5 * torch.randn(4, 1000, generator=generator, dtype=torch.float64)
    p32, q32 = p.float(), (p + noise).float()
    assert (kl_divergence(p32, q32) / exact(p32, q32)).sub(1).abs().max() < 0.01
    assert (kl_divergence(p32, q32) < 1e-9).all()


def test_nan_stays_nan():
    """A broken model never looks close."""
    p = torch.zeros(2, 5)
    q = torch.tensor([[float("nan")] * 5, [0.0] * 5])
    assert bool(kl_divergence(p, q)[0].isnan())


def test_joining_can_leave_out_first_positions():
    """Position 0 of every window is dropped, not only of the first."""
    parts = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0])]
    assert joined(parts).tolist() == [1, 2, 3, 4, 5]
    assert joined(parts, after_first=True).tolist() == [2, 4, 5]

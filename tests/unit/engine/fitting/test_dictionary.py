import pytest
import torch

from tests.unit.engine.fitting.fits import random_dictionary
from trephine.engine.fitting.calibration import threshold_for
from trephine.engine.fitting.dictionary import batch_topk, jump_relu


def test_folding_changes_nothing():
    """Plain folded weights with strict thresholds give what the dictionary gives in its own units."""
    dictionary = random_dictionary(0, outputs=2)
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(1))
    dictionary.threshold = threshold_for(dictionary.pre(x).detach(), 5)
    active = jump_relu(dictionary.pre(x), dictionary.threshold)
    folded = dictionary.fold()
    pre = x @ folded.W_enc + folded.b_enc
    plain = torch.where((pre > folded.threshold) & (pre > 0), pre, 0.0)
    assert torch.allclose(plain, active, atol=1e-5)
    own = plain @ folded.W_dec[0] + folded.b_dec + x @ folded.W_skip.T
    assert torch.allclose(own, dictionary.write(active, 0) + dictionary.base(x), atol=1e-5)
    assert torch.allclose(plain @ folded.W_dec[1], dictionary.write(active, 1), atol=1e-5)


def test_units_are_folded_exactly():
    """Units are powers of two, so scaling the input scales nothing else by so much as a bit."""
    dictionary = random_dictionary(0)
    folded = dictionary.fold()
    assert torch.equal(
        folded.W_enc * dictionary.place.scale_in, (dictionary.W_enc * dictionary.norms()).detach()
    )


def test_a_decoder_of_zeros_has_a_gradient():
    """Its norm is bounded below before the root is taken, whose own gradient at 0 is infinite."""
    dictionary = random_dictionary(0)
    with torch.no_grad():
        dictionary.W_dec[:, 3] = 0.0
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    dictionary.write(dictionary.pre(x).relu(), 0).square().sum().backward()
    assert float(dictionary.norms()[3].detach()) == pytest.approx(1e-8)
    assert all(bool(torch.isfinite(p.grad).all()) for p in dictionary.parameters() if p.grad is not None)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_batch_topk_keeps_k_per_row_on_average(k: int):
    """The k times rows largest entries stay, wherever they are."""
    pre = torch.randn(40, 24, generator=torch.Generator().manual_seed(k))
    kept = batch_topk(pre, k)
    assert int((kept > 0).sum()) == 40 * k
    assert float(kept[kept > 0].min()) > float(pre[kept == 0].max())


def test_batch_topk_never_keeps_what_is_not_positive():
    """Where fewer are positive, fewer are kept."""
    pre = -torch.ones(4, 6)
    pre[0, 0] = 2.0
    assert batch_topk(pre, 3).nonzero().tolist() == [[0, 0]]


@pytest.mark.parametrize("k", [1, 4, 9])
def test_a_threshold_leaves_k_per_row(k: int):
    """Calibration is the quantile, strict, with room on both sides for rounding."""
    pre = torch.randn(300, 30, generator=torch.Generator().manual_seed(k)) + 0.5
    threshold = threshold_for(pre, k)
    assert int((jump_relu(pre, threshold) > 0).sum()) == 300 * k


def test_a_threshold_is_never_negative():
    """If less is positive than k, everything positive stays."""
    pre = torch.randn(300, 30, generator=torch.Generator().manual_seed(0)) - 3
    assert threshold_for(pre, 20) == 0.0
    assert threshold_for(pre, 30) == 0.0

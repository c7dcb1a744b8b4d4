"""Controls: of the same size and L0, as good as least squares makes them, the same for the same seed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.unit.engine.replacements.fakes import layer_info
from trephine.domain.replacements import Dictionary, LayerKind
from trephine.engine.admission.fidelity import unexplained
from trephine.engine.replacements.random_dictionaries import LayerControls, pursue

KINDS = (Dictionary.RANDOM, Dictionary.FROZEN_DECODER, Dictionary.FROZEN_ENCODER)
L0 = 6.0


def planted(n=1500, seed=0):
    """Inputs, and targets that depend on them through a sparse layer."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 32, generator=generator) * torch.linspace(0.2, 3, 32) + 0.5
    hidden = torch.relu(x @ torch.randn(32, 20, generator=generator) / 8 - 0.5)
    return x, hidden @ torch.randn(20, 32, generator=generator) + 1.0


def fitted(kind, seed=0):
    x, y = planted()
    return LayerControls(layer_info(1), x, y, l0=L0, seed=seed).fit(kind), x, y


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_has_the_size_and_the_l0_that_it_is_given(kind):
    """64 features, of which about 6 are active per position of a text that it was not fitted on."""
    x, y = planted(n=6000)
    layer = LayerControls(layer_info(1), x[:1500], y[:1500], l0=L0, seed=0).fit(kind)
    assert layer.W_dec.shape == (64, 32)
    assert float(layer.encode(x[1500:]).active.sum(-1).float().mean()) == pytest.approx(L0, rel=0.05)


@pytest.mark.parametrize("n", [150, 800])
def test_an_encoder_that_was_fitted_fires_as_often_on_other_text(n):
    """It knows the text that it was fitted on too well: thresholds from there are off by 18 % and 45 %."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n + 3000, 160, generator=generator)
    y = torch.relu(x @ torch.randn(160, 160, generator=generator) / 160**0.5)
    info = layer_info(1, d_in=160, d_out=160, d_sae=256)
    layer = LayerControls(info, x[:n], y[:n], l0=12.0, seed=0).fit(Dictionary.FROZEN_DECODER)
    assert float(layer.encode(x[n:]).active.sum(-1).float().mean()) == pytest.approx(12.0, rel=0.15)


def test_the_decoder_of_a_frozen_encoder_is_the_best_one():
    """It explains more than the random one, and no small change of its decoder explains more still."""
    layer, x, y = fitted(Dictionary.FROZEN_ENCODER)
    site = layer.info.sites_out[0]
    best = unexplained(layer.reconstruct(x)[site], y)
    random, _, _ = fitted(Dictionary.RANDOM)
    assert best < unexplained(random.reconstruct(x)[site], y)
    assert best < 1.0
    noise = 0.3 * torch.randn(layer.W_dec.shape, generator=torch.Generator().manual_seed(1))
    moved = replace(layer, W_dec=layer.W_dec.float() + noise * layer.W_dec.float().std())
    assert unexplained(moved.reconstruct(x)[site], y) > best


def test_halves_stay_frozen():
    """Random and frozen encoder share their encoder; the frozen decoder's rows are those that were drawn."""
    random, _, _ = fitted(Dictionary.RANDOM)
    encoder, _, _ = fitted(Dictionary.FROZEN_ENCODER)
    decoder, _, _ = fitted(Dictionary.FROZEN_DECODER)
    assert torch.equal(random.encoder.W_enc, encoder.encoder.W_enc)
    cosine = torch.cosine_similarity(random.W_dec.float(), decoder.W_dec.float(), dim=1).abs()
    used = (random.W_dec.float().norm(dim=1) > 1e-2) & (decoder.W_dec.float().norm(dim=1) > 1e-2)
    assert used.sum() > 30
    assert cosine[used].min() > 0.999
    assert not torch.equal(random.encoder.W_enc, decoder.encoder.W_enc)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_control(kind):
    """Another seed draws another one."""
    first, second, other = (fitted(kind, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first.W_dec, second.W_dec)
    assert torch.equal(first.encoder.W_enc, second.encoder.W_enc)
    assert not torch.equal(first.W_dec, other.W_dec)


def test_pursuit_writes_vectors_of_few_rows():
    """What is made of two rows is found again, with factors >= 0 and no more rows than asked for."""
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(40, 64, generator=generator), dim=1)
    y = 2.0 * decoder[3] + 0.7 * decoder[11]
    codes = pursue(y[None], decoder, 12)[0]
    assert codes.min() >= 0
    assert set(codes.topk(2).indices.tolist()) == {3, 11}
    assert (codes @ decoder - y).norm() < 0.05 * y.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_with_a_skip_path_has_controls_with_one(kind):
    """What is linear in the input is explained by the skip path alone."""
    x, _ = planted()
    y = x @ torch.randn(32, 32, generator=torch.Generator().manual_seed(2)) + 1.0
    info = layer_info(0, kind=LayerKind.SKIP_TRANSCODER, has_skip=True)
    layer = LayerControls(info, x, y, l0=L0, seed=0).fit(kind)
    assert unexplained(layer.reconstruct(x)[info.sites_out[0]], y) < 0.02


def test_few_tokens_are_fitted_by_the_small_form():
    """With fewer tokens than features the n x n system is solved, and the result is finite and useful."""
    x, y = planted(n=300)
    info = layer_info(0, d_sae=512)
    layer = LayerControls(info, x, y, l0=L0, seed=0).fit(Dictionary.FROZEN_ENCODER)
    assert unexplained(layer.reconstruct(x)[info.sites_out[0]], y) < 1.0

"""Encoder directions are what pre-activations move along where scales are held and means follow."""

from __future__ import annotations

import pytest
import torch

from trephine.engine.replacements.encoder import Encoder, InputGain
from trephine.engine.replacements.normalisation import Normalisation, NormalisationRule
from trephine.engine.replacements.support import Threshold

WIDTH, FEATURES, ROWS = 12, 7, 5


def draws(*shape: int, seed: int) -> torch.Tensor:
    """Random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("gained", [False, True])
@pytest.mark.parametrize("rule", list(NormalisationRule))
def test_directions_are_the_derivative_with_the_scale_held(rule, gained, centred):
    """What is added to an input moves the encoder as the directions say, its mean taken out or not."""
    encoder = Encoder(
        W_enc=draws(WIDTH, FEATURES, seed=1),
        support=Threshold(),
        b_enc=draws(FEATURES, seed=2),
        row_gain=draws(FEATURES, seed=3),
        shift=draws(WIDTH, seed=4),
        normalisation=Normalisation(rule=rule, factor=2.0, without_mean=centred),
        input_gain=InputGain(gain=1 + draws(WIDTH, seed=5) / 4, bias=draws(WIDTH, seed=6))
        if gained
        else None,
    )
    x, moved = 3 + draws(ROWS, WIDTH, seed=7), 1 + draws(ROWS, WIDTH, seed=8)
    scale = encoder.encode(x).scale

    def read(inputs: torch.Tensor) -> torch.Tensor:
        if encoder.input_gain is not None:
            inputs = (inputs - encoder.input_gain.bias) / encoder.input_gain.gain
        if rule is NormalisationRule.LAYER_NORM or centred:
            inputs = inputs - inputs.mean(-1, keepdim=True)
        return ((inputs / scale - encoder.shift) @ encoder.W_enc) * encoder.row_gain + encoder.b_enc

    torch.testing.assert_close(read(x), encoder.encode(x).pre, rtol=1e-4, atol=1e-4)
    change = moved @ encoder.directions(range(FEATURES)).T / scale
    torch.testing.assert_close(read(x + moved) - read(x), change, rtol=1e-4, atol=1e-4)
    # Only where a mean is taken out is one that is added to what the dictionary was trained on not read.
    constant = encoder.directions(range(FEATURES)) @ (
        encoder.input_gain.gain if gained else torch.ones(WIDTH)
    )
    assert bool((constant.abs() < 1e-4).all()) is (centred or rule is NormalisationRule.LAYER_NORM)

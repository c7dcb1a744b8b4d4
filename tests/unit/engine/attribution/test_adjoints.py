"""Adjoints through attention: key positions are taken in blocks, and no block may miss a query."""

from __future__ import annotations

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from trephine.engine.attribution import adjoints
from trephine.engine.attribution.operators import capture

IDS = [5, 17, 44, 9, 9, 301, 23, 120, 77]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("keys", [1, 4, 9])
def test_blocks_of_keys_change_nothing(family, keys, monkeypatch):
    """Blocks of any size give what one product with the whole pattern gives."""
    hosted = tiny_hosted(family, dtype=torch.float64)
    operators = capture(hosted.model, hosted.architecture, IDS)
    adjoint = torch.randn(
        4, len(IDS), hosted.architecture.d_model, generator=torch.Generator().manual_seed(1)
    )
    layer = operators.layers[1]

    def carried(size):
        monkeypatch.setattr(adjoints, "_KEYS", size)
        bias = torch.zeros(4, dtype=torch.float64)
        return adjoints.attention_adjoint(layer, adjoint.double(), bias), bias

    whole, blocks = carried(len(IDS)), carried(keys)
    assert whole[0].abs().max() > 0
    for expected, found in zip(whole, blocks, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

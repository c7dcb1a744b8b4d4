"""Adjoints through attention: key positions are taken in blocks, and no block may miss a query."""

from __future__ import annotations

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from trephine.engine.attribution import adjoints
from trephine.engine.attribution.operators import capture
from trephine.engine.models import products

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


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("keys", [1, 4, 9])
def test_one_product_for_all_targets_is_what_each_target_has(family, keys, monkeypatch):
    """With 512-bit units the values of long prompts are summed for all targets at once, in float32."""
    hosted = tiny_hosted(family)
    operators = capture(hosted.model, hosted.architecture, IDS)
    adjoint = torch.randn(
        4, len(IDS), hosted.architecture.d_model, generator=torch.Generator().manual_seed(1)
    )
    monkeypatch.setattr(adjoints, "_KEYS", keys)
    monkeypatch.setattr(adjoints, "_LONG", 1)

    def carried(wide):
        monkeypatch.setattr(products, "has_wide_units", lambda: wide)
        bias = torch.zeros(4)
        return adjoints.attention_adjoint(operators.layers[1], adjoint, bias), bias

    for expected, found in zip(carried(False), carried(True), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

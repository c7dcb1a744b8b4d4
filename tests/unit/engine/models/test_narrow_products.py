"""Wide products of bfloat16 matrices are float32 products, rounded once; all else is left alone."""

from __future__ import annotations

import pytest
import torch

from tests.builders import tiny_hosted
from trephine.engine.models import narrow_products
from trephine.engine.models.narrow_products import WideProducts, widen_products


def narrow(*shape: int, seed=0):
    """A random bfloat16 matrix."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_products_are_rounded_once():
    """Linear maps with and without bias, matrix and batched products."""
    x, weight, bias = narrow(16, 32), narrow(8, 32, seed=1), narrow(8, seed=2)
    wide = [each.float() for each in (x, weight, bias)]
    with WideProducts():
        found = [
            torch.nn.functional.linear(x, weight),
            torch.nn.functional.linear(x, weight, bias=bias),
            x @ weight.T,
            torch.matmul(x[None], weight.T),
            torch.bmm(x[None], weight.T[None]),
        ]
    plain = wide[0] @ wide[1].T
    expected = [plain, plain + wide[2], plain, plain[None], plain[None]]
    for ours, exact in zip(found, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, exact.bfloat16())


def test_other_dtypes_and_few_rows_are_left_alone():
    """What is wide already is not rounded, and one row is not worth a widened matrix."""
    x, weight = torch.randn(16, 32), torch.randn(8, 32)
    with WideProducts():
        assert torch.equal(torch.nn.functional.linear(x, weight), x @ weight.T)
        row = torch.nn.functional.linear(narrow(1, 32), narrow(8, 32, seed=1))
    assert torch.equal(row, torch.nn.functional.linear(narrow(1, 32), narrow(8, 32, seed=1)))


@pytest.mark.parametrize("lacks", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_narrow_models_without_units_are_widened(dtype, lacks, monkeypatch):
    """A model is wrapped where both hold; what it answers is the same but for rounding."""
    monkeypatch.setattr(narrow_products, "lacks_units", lambda: False)
    model = tiny_hosted("llama", dtype=dtype).model
    model.__dict__.pop("forward", None)  # hosted on a processor without units
    ids = torch.arange(12)[None]
    monkeypatch.setattr(narrow_products, "lacks_units", lambda: lacks)
    with torch.inference_mode():
        before = model(ids).logits.float()
        assert widen_products(model) is model
        assert ("forward" in model.__dict__) == (lacks and dtype == torch.bfloat16)
        after = model(ids).logits.float()
    torch.testing.assert_close(after, before, rtol=0.05, atol=0.05)

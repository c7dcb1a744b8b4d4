"""The parent's noise floor is measured without leaving a trace on it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.builders import FAMILIES, tiny_folder, tiny_hosted
from tests.unit.engine.exporting import hosted_in
from trephine.engine.certificates.gates import planned_gates
from trephine.engine.certificates.noise import _as_stored, _under_float32, noise_floor, stock_attention
from trephine.engine.models.attention import IMPLEMENTATION
from trephine.engine.models.fingerprint import hash_now
from trephine.engine.models.narrow_products import widen_products
from trephine.engine.models.quanta import finish
from trephine.engine.runs.retain import retain_text

TEXT = "The capital of France is Paris. When John went to the store, the dog gave a drink to the cat. " * 2


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_measuring_leaves_the_model_as_it_was(family):
    """The same parameter objects, bits, attention and hooks."""
    hosted = tiny_hosted(family, dtype=torch.bfloat16)
    before, parameters = hash_now(hosted.model), [id(p) for p in hosted.model.parameters()]
    floor = finish(noise_floor(hosted, retain_text(hosted, TEXT)))
    assert floor.dtype.mean > 0
    assert "its attention implementation and its dtype changed" in planned_gates("bfloat16", floor)[0].reason
    assert floor.p99 >= floor.dtype.p99 > floor.dtype.mean
    assert hash_now(hosted.model) == before
    assert [id(p) for p in hosted.model.parameters()] == parameters
    assert hosted.model.config._attn_implementation == IMPLEMENTATION
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hosted.model.modules())


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_float32_arithmetic_is_that_of_a_widened_copy(family):
    """Module by module, on the same weights, as if the whole model had been converted."""
    hosted = tiny_hosted(family, dtype=torch.bfloat16)
    ids = torch.tensor([hosted.encode(TEXT)[:60]])
    found = _under_float32(hosted, ids)
    expected = hosted.model.float()(ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_running_as_stored_is_what_stock_transformers_does_with_the_files(family, tmp_path):
    """A float32 model of bfloat16 files, narrowed module by module: the very logits of a bfloat16 load."""
    folder = tiny_folder(family, tmp_path / "parent", dtype=torch.bfloat16)
    hosted = hosted_in(folder)
    assert hosted.model.dtype == torch.float32
    before, ids = hash_now(hosted.model), torch.tensor([hosted.encode(TEXT)[:60]])
    found = _as_stored(hosted, ids, dtype=torch.bfloat16)
    # Where a processor has no bfloat16 units, products run in float32, as in the certifier.
    stock = widen_products(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, stock(ids, use_cache=False).logits)
    floor = finish(noise_floor(hosted, retain_text(hosted, TEXT), torch.bfloat16))
    assert floor.stored.mean > 100 * floor.mean
    assert finish(noise_floor(hosted, retain_text(hosted, TEXT), torch.float32)).stored is None
    assert hash_now(hosted.model) == before
    assert hosted.model.config._attn_implementation == IMPLEMENTATION


@torch.inference_mode()
def test_float32_models_have_no_dtype_floor():
    """Only attention can differ."""
    floor = finish(noise_floor(tiny_hosted("llama"), retain_text(tiny_hosted("llama"), TEXT)))
    assert floor.dtype.mean == floor.dtype.p99 == 0.0
    assert "(its attention implementation changed, nothing else)" in planned_gates("float32", floor)[0].reason
    assert 0 <= floor.attention.mean < 1e-9


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_stock_attention_is_what_transformers_chooses(family, tmp_path):
    """Soft-capped attention exists as eager only."""
    model = AutoModelForCausalLM.from_pretrained(tiny_folder(family, tmp_path / family))
    assert model.config._attn_implementation == stock_attention(model)

"""Law 1: without interventions the hosted model is the Hugging Face model, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from tests.builders import FAMILIES, tiny_hosted, tiny_model
from trephine.engine.interventions.selection import Span
from trephine.engine.runs.forward import Batch, Pass, forward, left_padded
from trephine.engine.runs.rows import RowInput, run_rows

PROMPTS = ("When Mary and John went to the store, John gave", " the cat", "A dog🙂 drinks")
SAME_KERNEL_TOLERANCE = 3e-4
"""The law's bound on another attention kernel, whose sums run in another order."""


def left(rows: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad on the left as anybody would; ids, mask, positions."""
    width = max(map(len, rows))
    ids = torch.tensor([[1] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask, (mask.cumsum(-1) - 1).clamp_min(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padded_batch_is_bit_identical_to_eager(family):
    """A ragged batch gives exactly the logits of the same batch under eager attention."""
    hosted, eager = tiny_hosted(family), tiny_model(family)
    rows = [hosted.encode(prompt) for prompt in PROMPTS]
    ids, mask, positions = left(rows)
    with torch.inference_mode():
        expected = eager(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    for row, logits, reference in zip(
        rows, run_rows(hosted, [RowInput(row) for row in rows]).logits, expected, strict=True
    ):
        assert torch.equal(logits, reference[-len(row) :])


@pytest.mark.parametrize("family", FAMILIES)
def test_right_padded_batch_is_bit_identical_to_eager(family):
    """Our attention and mask agree with eager exactly where padding follows the text."""
    hosted, eager = tiny_hosted(family), tiny_model(family)
    rows = [hosted.encode(prompt) for prompt in PROMPTS]
    width = max(map(len, rows))
    ids = torch.tensor([row + [1] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.inference_mode():
        ours = hosted.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        expected = eager(input_ids=ids, attention_mask=mask, use_cache=False).logits
    for i, row in enumerate(rows):
        assert torch.equal(ours[i, : len(row)], expected[i, : len(row)])


@pytest.mark.parametrize("family", FAMILIES)
def test_default_attention_agrees(family):
    """The kernel that transformers chooses by default is within the law's bound of ours."""
    hosted = tiny_hosted(family)
    default = tiny_model(family, attention=None)
    ids = hosted.encode(PROMPTS[0])
    with torch.inference_mode():
        expected = default(input_ids=torch.tensor([ids])).logits[0]
    ours = run_rows(hosted, [RowInput(ids)]).logits[0]
    assert (ours - expected).abs().max() <= SAME_KERNEL_TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decoding_is_bit_identical_to_eager(family):
    """32 decode steps of a ragged batch over a cache give exactly eager's logits at every step."""
    hosted, eager = tiny_hosted(family), tiny_model(family)
    rows = [hosted.encode(prompt) for prompt in PROMPTS]
    ids, mask, positions = left(rows)
    ours, theirs = DynamicCache(config=hosted.model.config), DynamicCache(config=eager.config)
    batch = left_padded(hosted, [(row, len(row)) for row in rows])
    for step in range(33):
        got = forward(hosted, batch, Pass(cache=ours))[:, -1]
        with torch.inference_mode():
            expected = eager(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=theirs,
                use_cache=True,
            ).logits[:, -1]
        assert torch.equal(got, expected), step
        ids = expected.argmax(-1, keepdim=True)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        positions = positions[:, -1:] + 1
        batch = Batch(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            spans=tuple(
                Span(row=i, ids=ids[i].tolist(), first=int(positions[i]), offset=0, n_prompt=len(row))
                for i, row in enumerate(rows)
            ),
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_last_logits_only(family):
    """`keep_last` returns the same last logits, row by row, and never a padded place."""
    hosted = tiny_hosted(family)
    rows = [RowInput(hosted.encode(prompt)) for prompt in PROMPTS]
    whole, last = run_rows(hosted, rows).logits, run_rows(hosted, rows, keep_last=4).logits
    for row, full, kept in zip(rows, whole, last, strict=True):
        assert kept.shape[0] == min(4, len(row.ids))
        torch.testing.assert_close(kept, full[-4:], atol=1e-5, rtol=0)  # another shape, another sum order

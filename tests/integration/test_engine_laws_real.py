"""Laws 1, 6 and 7, and the engine's main work, on the real model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from tests.unit.engine.interventions import direction, neuron, whole
from tests.unit.engine.test_law6_reverting import hooks
from trephine.domain.activations import RankActivity
from trephine.domain.generation import Generate, Row, Score, ScoredRow
from trephine.domain.interventions import (
    Ablate,
    AddNormScaled,
    MeanAblate,
    Mode,
    PatternMode,
    Scale,
    Selector,
    SetTo,
)
from trephine.domain.models import ModelSource
from trephine.domain.sites import SiteKind
from trephine.engine.interventions.selection import Span
from trephine.engine.models.fingerprint import hash_now
from trephine.engine.models.loading import load_hosted
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.runs.activations import rank_activity
from trephine.engine.runs.forward import Batch, Pass, forward, left_padded
from trephine.engine.runs.generation import generate
from trephine.engine.runs.rows import RowInput, run_rows
from trephine.engine.runs.scoring import score

pytestmark = [pytest.mark.real, pytest.mark.integration]

PROMPTS = (
    "When Mary and John went to the store, John gave a drink to",
    "The capital of France is",
    "def fibonacci(n):",
)
DEFAULT_KERNEL_TOLERANCE = 3e-4
"""Law 1's bound on transformers' default attention kernel."""


@pytest.fixture(scope="module")
def hosted(smollm2):
    """The real model, loaded as the service loads it."""
    return finish(load_hosted(ModelSource(name="smollm2", folder=str(smollm2))))


@pytest.fixture(scope="module")
def eager(smollm2):
    """The same folder in plain transformers under eager attention."""
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, attn_implementation="eager")
    return model.eval().requires_grad_(False)


def padded(rows: list[list[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad ids and mask on either side."""
    width = max(map(len, rows))
    gaps = [width - len(row) for row in rows]
    ids = [[2] * gap + row if left else row + [2] * gap for row, gap in zip(rows, gaps, strict=True)]
    ones = [[1] * len(row) for row in rows]
    mask = [[0] * gap + one if left else one + [0] * gap for one, gap in zip(ones, gaps, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


def test_law_1_padded_batches(hosted, eager):
    """Left- and right-padded batches are bit-identical to eager attention on the same input."""
    rows = [hosted.encode(prompt) for prompt in PROMPTS]
    ids, mask = padded(rows, left=True)
    with torch.inference_mode():
        expected = eager(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
            use_cache=False,
        ).logits
    ours = run_rows(hosted, [RowInput(row) for row in rows]).logits
    assert all(torch.equal(o, e[-len(o) :]) for o, e in zip(ours, expected, strict=True))
    ids, mask = padded(rows, left=False)
    with torch.inference_mode():
        right, theirs = (m(input_ids=ids, attention_mask=mask).logits for m in (hosted.model, eager))
    assert all(torch.equal(right[i, : len(row)], theirs[i, : len(row)]) for i, row in enumerate(rows))


def test_law_1_default_attention(hosted, smollm2):
    """The default kernel's logits are within 3e-4."""
    default = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    assert default.config._attn_implementation != "eager"
    for prompt in PROMPTS:
        ids = hosted.encode(prompt)
        with torch.inference_mode():
            expected = default(torch.tensor([ids])).logits[0]
        difference = (run_rows(hosted, [RowInput(ids)]).logits[0] - expected).abs().max()
        assert difference <= DEFAULT_KERNEL_TOLERANCE


def test_law_1_cached_decoding(hosted, eager):
    """32 decode steps of a ragged batch are bit-identical to eager at every step."""
    rows = [hosted.encode(prompt) for prompt in PROMPTS]
    ids, mask = padded(rows, left=True)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
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
        ids, positions = expected.argmax(-1, keepdim=True), positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        spans = tuple(
            Span(row=i, ids=ids[i].tolist(), first=int(positions[i]), offset=0, n_prompt=len(row))
            for i, row in enumerate(rows)
        )
        batch = Batch(input_ids=ids, attention_mask=mask, position_ids=positions, spans=spans)


def steering(hosted: Any, fraction: float) -> Any:
    """Push the stream of layer 20 towards ` Mary` and away from ` John`, position 0 apart."""
    unembed = hosted.architecture.W_U
    vector = unembed[hosted.resolve_target(" Mary")] - unembed[hosted.resolve_target(" John")]
    return direction(
        SiteKind.RESID_POST,
        20,
        vector.tolist(),
        AddNormScaled(fraction=fraction),
        selector=Selector(exclude_positions=(0,)),
    )


def plans(hosted: Any) -> list[tuple]:
    """One plan per prompt, each of another kind."""
    return [
        (steering(hosted, -0.2), neuron(5, 100, Ablate())),
        (
            neuron(10, 7, SetTo(value=3.0), mode=Mode(patterns=PatternMode.FROZEN)),
            whole(SiteKind.ATTN_OUT, 12, Scale(factor=0.5), mode=Mode(patterns=PatternMode.FROZEN)),
        ),
        (whole(SiteKind.MLP_OUT, 15, MeanAblate(text=PROMPTS[0])),),
    ]


def test_law_6_reverting(hosted):
    """After interventions, plain logits are bit-identical, no hook stays, and no weight has moved."""
    rows = [RowInput(hosted.encode(prompt)) for prompt in PROMPTS]
    before, plain = hooks(hosted.model), run_rows(hosted, rows).logits
    changed = run_rows(hosted, [RowInput(r.ids, p) for r, p in zip(rows, plans(hosted), strict=True)]).logits
    assert all((c - p).abs().max() > 0.1 for c, p in zip(changed, plain, strict=True))
    again = run_rows(hosted, rows).logits
    assert all(torch.equal(a, p) for a, p in zip(again, plain, strict=True))
    assert hooks(hosted.model) == before
    assert hash_now(hosted.model) == hosted.info.weight_hash


def test_law_7_rows(hosted):
    """Rows with different interventions in one ragged batch are what they are alone."""
    rows = [RowInput(hosted.encode(p), plan) for p, plan in zip(PROMPTS, plans(hosted), strict=True)]
    together = run_rows(hosted, rows).logits
    plain_together = run_rows(hosted, [RowInput(row.ids) for row in rows]).logits
    for i, row in enumerate(rows):
        noise = (run_rows(hosted, [RowInput(row.ids)]).logits[0] - plain_together[i]).abs().max().item()
        difference = (run_rows(hosted, [row]).logits[0] - together[i]).abs().max().item()
        assert difference <= max(3e-4, 4 * noise)


def test_it_knows_the_capital(hosted):
    """The conversion is right: ` Paris` at about 0.77, and the end of turn is id 2."""
    logits = run_rows(hosted, [RowInput(hosted.encode(PROMPTS[1]))], keep_last=1).logits[0][-1]
    assert float(logits.softmax(-1)[hosted.resolve_target(" Paris")]) == pytest.approx(0.77, abs=0.01)
    assert hosted.info.eos_token_ids == (2,)


def test_steering_moves_the_answer(hosted):
    """The logit difference grows with the dose, from the wrong name to far beyond the plain answer."""
    ids = hosted.encode(PROMPTS[0])
    mary, john = hosted.resolve_target(" Mary"), hosted.resolve_target(" John")
    doses = (-0.6, -0.2, 0.2, 0.6)
    rows = [RowInput(ids), *(RowInput(ids, (steering(hosted, dose),)) for dose in doses)]
    plain, *steered = (float(x[-1, mary] - x[-1, john]) for x in run_rows(hosted, rows, keep_last=1).logits)
    assert steered == sorted(steered)
    assert steered[1] < plain < steered[2]
    assert steered[0] < 0
    assert steered[3] > plain + 2


def test_generation_streams_beside_its_steered_twin(hosted):
    """A plain and a steered row of one batch: the plain one is transformers' own, the other differs."""
    rows = (Row(prompt=PROMPTS[1]), Row(prompt=PROMPTS[1], interventions=(steering(hosted, 0.4),)))
    result = finish(generate(Session(hosted=hosted), Generate(rows=rows, max_new_tokens=12)))
    plain, steered = result.completions
    ids = torch.tensor([hosted.encode(PROMPTS[1])])
    expected = hosted.model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=2)[
        0, ids.shape[1] :
    ]
    assert plain.token_ids == tuple(expected.tolist())
    assert plain.text.startswith(" Paris")
    assert steered.text != plain.text
    assert steered.applied[0].positions == ids.shape[1] - 1 + 11


def test_scores_and_rankings(hosted):
    """The right answer scores above the wrong one, and ablating a busy neuron changes the score."""
    ranked = finish(rank_activity(Session(hosted=hosted), RankActivity(text=PROMPTS[1], count=5))).features
    busiest = ranked[0].feature
    assert ranked[0].position > 0
    ablation = (neuron(busiest.layer, busiest.index, Ablate()),)
    rows = (
        ScoredRow(prompt=PROMPTS[1], continuation=" Paris"),
        ScoredRow(prompt=PROMPTS[1], continuation=" London"),
        ScoredRow(prompt=PROMPTS[1], continuation=" Paris", interventions=ablation),
    )
    right, wrong, ablated = finish(score(Session(hosted=hosted), Score(rows=rows))).rows
    assert right.log_probabilities[0] > wrong.log_probabilities[0] + 2
    assert ablated.kl[0] > 1e-4

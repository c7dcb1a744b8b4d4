"""Scores are teacher-forced log-probabilities, and their KL says what interventions do."""

from __future__ import annotations

from dataclasses import replace
from math import isnan
from typing import Any

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from tests.unit.engine.interventions import neuron
from trephine.domain.errors import (
    EmptyPromptError,
    NonFiniteValueError,
    NothingMatchedError,
    OverBudgetError,
    PromptTooLongError,
)
from trephine.domain.generation import Score, ScoredRow
from trephine.domain.interventions import Ablate, Phase, Selector, SetTo
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.runs.rows import RowInput, run_rows
from trephine.engine.runs.scoring import score

ROWS = (
    ScoredRow(prompt="When Mary and John went to", continuation=" the store"),
    ScoredRow(prompt=" the", continuation=" cat is of France"),
    ScoredRow(prompt="a🙂", continuation="b"),
)


def run(hosted, rows: Any) -> Any:
    """Score rows."""
    return finish(score(Session(hosted=hosted), Score(rows=tuple(rows))))


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_teacher_forced(family):
    """Each entry is the log-softmax at the place before its token, of the row alone."""
    hosted = tiny_hosted(family, dtype=torch.float64)
    result = run(hosted, ROWS)
    for row, scored in zip(ROWS, result.rows, strict=True):
        prompt, continuation = hosted.encode(row.prompt), hosted.encode(row.continuation)
        logits = run_rows(hosted, [RowInput([*prompt, *continuation])]).logits[0]
        log_p = logits.log_softmax(-1)
        expected = [float(log_p[len(prompt) - 1 + i, token]) for i, token in enumerate(continuation)]
        assert scored.token_ids == tuple(continuation)
        assert scored.log_probabilities == pytest.approx(expected, abs=1e-5)  # eager softmax is float32
        assert scored.top_token_ids == tuple(logits[len(prompt) - 1 : -1].argmax(-1).tolist())
        assert scored.kl == (0.0,) * len(continuation)
    assert (result.model, result.weight_hash) == (hosted.info.name, hosted.info.weight_hash)


def test_kl_is_from_plain_to_intervened():
    """KL(plain || intervened) per place; the scores are those of the intervened run."""
    hosted = tiny_hosted("llama")
    change = neuron(0, 3, SetTo(value=5.0))
    rows = [ScoredRow(prompt=r.prompt, continuation=r.continuation, interventions=(change,)) for r in ROWS]
    result = run(hosted, [rows[0], ROWS[1], rows[2]])
    for row, scored in zip((rows[0], rows[2]), (result.rows[0], result.rows[2]), strict=True):
        prompt, ids = hosted.encode(row.prompt), hosted.encode(row.prompt) + hosted.encode(row.continuation)
        plain, changed = (
            run_rows(hosted, [RowInput(ids, plan)]).logits[0][len(prompt) - 1 : -1].double().log_softmax(-1)
            for plan in ((), (change,))
        )
        assert scored.kl == pytest.approx((plain.exp() * (plain - changed)).sum(-1).tolist(), abs=1e-6)
        assert min(scored.kl) > 1e-4
        chosen = changed[torch.arange(len(scored.token_ids)), list(scored.token_ids)]
        assert scored.log_probabilities == pytest.approx(chosen.tolist(), abs=1e-5)
        assert scored.applied[0].positions == len(ids)
    assert result.rows[1].applied == ()


def test_continuations_are_the_generation_phase():
    """A change of generated tokens leaves the first place of a continuation as it was."""
    hosted = tiny_hosted("llama")
    change = neuron(0, 3, SetTo(value=5.0), selector=Selector(phases=(Phase.GENERATION,)))
    row = ScoredRow(prompt=ROWS[1].prompt, continuation=ROWS[1].continuation, interventions=(change,))
    kl = run(hosted, [row]).rows[0].kl
    assert kl[0] < 1e-9
    assert min(kl[1:]) > 1e-5


def test_many_rows_take_many_bounded_quanta():
    """Rows are scored in batches, in order, and no quantum holds them all."""
    hosted = tiny_hosted("llama")
    rows = [ScoredRow(prompt=" the" * (1 + i % 5), continuation=" cat") for i in range(100)]
    work, quanta = score(Session(hosted=hosted), Score(rows=tuple(rows))), 0
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result = stop.value
            break
        quanta += 1
    assert quanta >= 4
    alone = [run(hosted, [row]).rows[0].log_probabilities for row in rows[:5]]
    for i, scored in enumerate(result.rows):
        assert scored.log_probabilities == pytest.approx(alone[i % 5], abs=3e-4)


def test_bad_rows_are_refused_and_named():
    """Empty texts, texts beyond the context, unmatched interventions and too many rows are typed errors."""
    hosted = tiny_hosted("llama")
    with pytest.raises(EmptyPromptError) as caught:
        run(hosted, [ROWS[0], ScoredRow(prompt=" a", continuation="")])
    assert caught.value.context["field"] == "rows[1].continuation"
    with pytest.raises(PromptTooLongError):
        run(hosted, [ScoredRow(prompt="x" * 200, continuation="y" * 57)])
    absent = neuron(0, 1, Ablate(), selector=Selector(tokens=(5,)))
    bad = ScoredRow(prompt=" Mary", continuation=" and", interventions=(absent,))
    with pytest.raises(NothingMatchedError) as unmatched:
        run(hosted, [ROWS[0], ROWS[1], bad])
    assert unmatched.value.context["row"] == 2
    with pytest.raises(OverBudgetError, match="several calls"):
        run(hosted, ROWS[:1] * 4097)


@pytest.mark.parametrize("size", [1e20, 3e38], ids=["a norm", "float32"])
def test_a_row_that_overflows_says_so_and_its_neighbours_are_scored(size):
    """Its figures are no numbers, from the first position on that overflows; alone it is an error."""
    hosted = tiny_hosted("llama")
    change = neuron(0, 3, SetTo(value=size))
    row = ScoredRow(prompt=ROWS[0].prompt, continuation=ROWS[0].continuation, interventions=(change,))
    result = run(hosted, [ROWS[1], row, ROWS[2]])
    for found, alone in zip((result.rows[0], result.rows[2]), run(hosted, ROWS[1:]).rows, strict=True):
        assert found.log_probabilities == pytest.approx(alone.log_probabilities, abs=3e-4)  # law 7
        assert (found.top_token_ids, found.caveats) == (alone.top_token_ids, ())
    broken = result.rows[1]
    assert all(map(isnan, (*broken.log_probabilities, *broken.kl)))
    assert set(broken.top_token_ids) == {-1}
    assert "rows[1]: under its interventions" in broken.caveats[0]
    with pytest.raises(NonFiniteValueError, match="lower the strength"):
        run(hosted, [row])
    late = Selector(phases=(Phase.GENERATION,))
    n_prompt = len(hosted.encode(ROWS[1].prompt))
    row = ScoredRow(
        prompt=ROWS[1].prompt,
        continuation=ROWS[1].continuation,
        interventions=(replace(change, selector=replace(late, positions=(n_prompt + 1,))),),
    )
    found = run(hosted, [ROWS[0], row]).rows[1]
    assert [isnan(one) for one in found.log_probabilities] == [False, False, *[True] * (len(found.kl) - 2)]
    assert "at its continuation's token 2" in found.caveats[0]

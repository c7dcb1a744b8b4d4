"""A shared beginning that is computed once changes no row's answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from tests.unit.engine.interventions import neuron
from trephine.domain.generation import Generate, Row, Score, ScoredRow
from trephine.domain.interventions import Ablate
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.runs.generation import generate
from trephine.engine.runs.prefixes import FEWEST_TOKENS, continue_prefix, read_prefix, shared_tokens
from trephine.engine.runs.rows import RowInput, run_rows
from trephine.engine.runs.scoring import score

PREFACE = "When Mary and John went to the store in Paris, a dog gave John a drink."
ENDS = (" Mary", " and the cat went to Paris and back to the capital of France", " a🙂", "", " Mary is")


def rows_of(hosted, ends: Any = ENDS) -> list[RowInput]:
    """Rows with one beginning and ends of many lengths; one of them is the beginning itself."""
    return [RowInput(hosted.encode(PREFACE + end)) for end in ends]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_after_a_prefix_are_the_rows_run_alone(family, dtype):
    """Padding within and beyond the prefix, sliding windows, absolute and rotary positions included."""
    hosted = tiny_hosted(family, dtype=dtype)
    rows = rows_of(hosted)
    shared = shared_tokens(rows)
    assert shared == len(hosted.encode(PREFACE)) - 1
    prefix = read_prefix(hosted, rows[0].ids[:shared])
    continued = continue_prefix(hosted, prefix, rows)
    longest = max(len(row.ids) for row in rows)
    assert continued.logits.shape[1] == longest - shared
    for row, logits in zip(rows, continued.logits, strict=True):
        alone = run_rows(hosted, [row]).logits[0]
        count = len(row.ids) - shared
        # Eager attention's softmax is float32 whatever the model is.
        torch.testing.assert_close(logits[-count:], alone[-count:], rtol=1e-4, atol=3e-5)


def test_the_last_column_alone_can_be_kept():
    """The others are not computed."""
    hosted = tiny_hosted("llama")
    rows = rows_of(hosted)
    shared = shared_tokens(rows)
    continued = continue_prefix(hosted, read_prefix(hosted, rows[0].ids[:shared]), rows, keep_last=1)
    assert continued.logits.shape[:2] == (len(rows), 1)


def test_what_is_shared():
    """Not the last token of a prompt, nothing short, nothing with interventions, nothing of one row."""
    ids = list(range(3, 3 + FEWEST_TOKENS + 4))
    whole = [RowInput(ids), RowInput(ids)]
    assert shared_tokens(whole) == len(ids) - 1
    assert shared_tokens([RowInput(ids), RowInput([*ids[:-3], 9, 9, 9])]) == len(ids) - 3
    assert shared_tokens([RowInput(ids), RowInput(ids, n_prompt=FEWEST_TOKENS + 1)]) == FEWEST_TOKENS
    assert shared_tokens([RowInput(ids), RowInput(ids[:FEWEST_TOKENS])]) == 0
    assert shared_tokens([RowInput(ids), RowInput(ids, (neuron(0, 1, Ablate()),))]) == 0
    assert shared_tokens(whole[:1]) == shared_tokens([]) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_do_not_depend_on_what_is_shared(family, computed):
    """Each row has the score that it has alone, and the beginning is computed once."""
    hosted = tiny_hosted(family)
    rows = [ScoredRow(prompt=PREFACE + end, continuation=" a dog is") for end in ENDS * 8]
    lengths = computed(hosted)
    together = finish(score(Session(hosted=hosted), Score(rows=tuple(rows)))).rows
    shared = len(hosted.encode(PREFACE)) - 1
    longest = len(hosted.encode(PREFACE + ENDS[1] + " a dog is"))
    assert sum(lengths) <= shared + len(rows) * (longest - shared)
    for row, found in zip(rows[: len(ENDS)], together, strict=False):
        (alone,) = finish(score(Session(hosted=hosted), Score(rows=(row,)))).rows
        assert found.log_probabilities == pytest.approx(alone.log_probabilities, abs=3e-4)
        assert found.token_ids == alone.token_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_continuations_do_not_depend_on_what_is_shared(family, computed):
    """A batch with a shared beginning writes what each prompt writes alone, longer than the window."""
    hosted = tiny_hosted(family)
    rows = tuple(Row(prompt=PREFACE + end) for end in ENDS)
    lengths = computed(hosted)
    together = finish(generate(Session(hosted=hosted), Generate(rows=rows, max_new_tokens=12))).completions
    assert lengths[0] == len(hosted.encode(PREFACE)) - 1
    for row, found in zip(rows, together, strict=True):
        (alone,) = finish(
            generate(Session(hosted=hosted), Generate(rows=(row,), max_new_tokens=12))
        ).completions
        assert found.token_ids == alone.token_ids


@pytest.fixture
def computed():
    """Return a function that lists how many tokens every forward pass of a model computes."""
    hooks: list[Any] = []

    def listed(hosted: Any) -> list[int]:
        lengths: list[int] = []
        hook = hosted.model.register_forward_pre_hook(
            lambda _, __, options: lengths.append(options["input_ids"].numel()), with_kwargs=True
        )
        hooks.append(hook)
        return lengths

    yield listed
    for hook in hooks:
        hook.remove()

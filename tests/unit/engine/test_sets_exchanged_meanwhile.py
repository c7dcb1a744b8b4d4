"""Work that takes several quanta goes on with the sets that it began with, whatever is loaded meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import NAME, resident_set
from tests.unit.engine.edit_evaluation.test_edit_evaluation import FEW, RETAIN, TARGET, TEXTS, edit_of
from trephine.domain.ablation import LogitTarget, MatchedControls, MeasureAblation
from trephine.domain.edit_evaluation import EvaluateEdit
from trephine.domain.edits import EditSet
from trephine.domain.features import ContrastFeatures
from trephine.domain.generation import Generate, Row, Score, ScoredRow
from trephine.domain.interventions import Add, FeatureTarget, Intervention
from trephine.domain.sites import FeatureRef
from trephine.engine.edit_evaluation.evaluate import evaluate_edit
from trephine.engine.edits.effects import measure_ablation
from trephine.engine.features.contrast import contrast_features
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session
from trephine.engine.runs.generation import generate
from trephine.engine.runs.scoring import score

PROMPT = "When Mary and John went to the store"
RAISED = Intervention(
    target=FeatureTarget(feature=FeatureRef(replacement=NAME, layer=1, index=3)), operation=Add(amount=4.0)
)


def ablation(_: HostedModel) -> tuple[Handler, Any]:
    """An effect beside controls and damage."""
    controls = MatchedControls(sets=99)
    return measure_ablation, MeasureAblation(
        prompt=PROMPT, target=LogitTarget(token=" Mary"), interventions=(RAISED,), controls=controls
    )


def contrast(_: HostedModel) -> tuple[Handler, Any]:
    """Every feature on two sets of texts."""
    return contrast_features, ContrastFeatures(
        first=TEXTS[:4], second=TEXTS[4:8], replacement=NAME, permutations=99
    )


def generation(_: HostedModel) -> tuple[Handler, Any]:
    """A steered text, a token a quantum."""
    return generate, Generate(rows=(Row(prompt=PROMPT, interventions=(RAISED,)),), max_new_tokens=12)


def scoring(_: HostedModel) -> tuple[Handler, Any]:
    """Many rows, some batches."""
    row = ScoredRow(prompt=PROMPT, continuation=" a drink", interventions=(RAISED,))
    return score, Score(rows=(row,) * 40)


def evaluation(hosted: HostedModel) -> tuple[Handler, Any]:
    """An edit on two sets, beside its controls."""
    edit = edit_of(hosted, RAISED, sets=(EditSet(name=NAME, content_hash=NAME),))
    return evaluate_edit, EvaluateEdit(
        edit=edit, sets=(TARGET, RETAIN), controls=FEW, prompting=None, resamples=100
    )


def answer(work: Callable[[HostedModel], tuple[Handler, Any]], after: int | None) -> tuple[str, int]:
    """Carry a command out; after so many quanta another set is there under the name."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "relu")
    handler, command = work(hosted)
    steps = handler(Session(hosted=hosted), command)
    with torch.inference_mode():
        for number in count():
            if number == after:
                resident_set(hosted, "topk")
            try:
                next(steps)
            except StopIteration as stop:
                found = stop.value
                return repr(replace(found, seconds=0.0) if hasattr(found, "seconds") else found), number
    raise AssertionError("count() has no end")


@pytest.mark.parametrize("work", [ablation, contrast, generation, scoring, evaluation])
def test_an_answer_is_of_the_set_that_was_there(work):
    """Half of it would be of the one, half of the other."""
    undisturbed, quanta = answer(work, None)
    assert quanta >= 2
    for after in sorted({1, quanta // 3, 2 * quanta // 3} - {0}):
        assert answer(work, after)[0] == undisturbed

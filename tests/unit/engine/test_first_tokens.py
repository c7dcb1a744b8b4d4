"""Whatever reads a set says where a text lacks the first token that the set was trained with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import tiny_hosted
from tests.resident_sets import NAME, resident_set
from trephine.domain.features import ContrastFeatures
from trephine.domain.generation import Generate, Row, Score, ScoredRow
from trephine.domain.interventions import FeatureTarget, Intervention, Scale
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.process.handlers import HANDLERS

BEGINS = "<|end|>"
PLAIN = " Mary and John went to the store"
SAID = f"The set {NAME} was trained on texts that begin with {BEGINS}; this text does not."


@pytest.fixture(scope="module")
def hosted() -> HostedModel:
    """A tiny model with a set that wants a first token."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "relu")
    known = hosted.replacements[NAME]
    admission = replace(known.admitted.admission, begins_with=BEGINS)
    hosted.replacements[NAME] = replace(known, admitted=replace(known.admitted, admission=admission))
    return hosted


def run(hosted: HostedModel, command: Any) -> Any:
    return finish(HANDLERS[type(command)](Session(hosted=hosted), command))


def changes(replacement: str) -> tuple[Intervention, ...]:
    feature = FeatureRef(replacement=replacement, layer=1, index=3)
    return (Intervention(target=FeatureTarget(feature=feature), operation=Scale(factor=2.0)),)


def test_generations_and_scores_say_it_per_row(hosted: HostedModel):
    """Rows that touch the set say it unless they begin as they should; neurons and plain rows do not."""
    told = ((PLAIN, changes(NAME)), (BEGINS + PLAIN, changes(NAME)), (PLAIN, changes(NEURONS)), (PLAIN, ()))
    rows = tuple(Row(prompt=prompt, interventions=change) for prompt, change in told)
    generated = run(hosted, Generate(rows=rows, max_new_tokens=2)).completions
    assert [row.caveats for row in generated] == [(SAID,), (), (), ()]
    scored = tuple(
        ScoredRow(prompt=prompt, continuation=" Paris", interventions=change) for prompt, change in told
    )
    assert [row.caveats for row in run(hosted, Score(rows=scored)).rows] == [(SAID,), (), (), ()]


def test_contrasts_count_the_texts_that_lack_it(hosted: HostedModel):
    """How many of all texts; none where they all begin as they should, or neurons answer."""
    lacking = (PLAIN, " a drink to the cat"), (BEGINS + PLAIN, BEGINS + " of Paris")
    (said,) = run(hosted, ContrastFeatures(first=lacking[0], second=lacking[1], replacement=NAME)).caveats
    assert said == f"2 of 4 texts: {SAID}"
    fine = ContrastFeatures(first=lacking[1], second=lacking[1], replacement=NAME)
    assert run(hosted, fine).caveats == ()
    assert run(hosted, ContrastFeatures(first=lacking[0], second=lacking[1])).caveats == ()

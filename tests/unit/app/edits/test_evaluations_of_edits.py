"""Evaluations belong to what was measured, and not to whatever has the name today."""

from __future__ import annotations

from pathlib import Path

from tests.unit.app.exports.test_edits_and_exports import ablate, create, ignore, ready
from trephine.app.jobs.requests import EvaluateEditRequest
from trephine.domain.edit_evaluation import (
    ControlMatching,
    EditEvaluation,
    EditVerdict,
    EvaluateEdit,
    EvaluationSet,
    SetRole,
)

TARGET = EvaluationSet(name="target", role=SetRole.TARGET, texts=tuple(f"text {n}" for n in range(8)))


def measured(command: EvaluateEdit) -> EditEvaluation:
    """What an engine finds, without its figures."""
    return EditEvaluation(
        edit=command.edit.name,
        version=command.edit.version,
        content_hash=command.edit.content_hash,
        verdict=EditVerdict.SELECTIVE,
        why="",
        would_decide="",
        sets=(),
        matching=ControlMatching(
            matched=1, unmatched=(), factor=2.0, wrong_layer_factor=2.0, wrong_layers=(), notes=()
        ),
        prompting=None,
        applied=(),
        bounds=command.bounds,
        caveats=(),
        resamples=command.resamples,
        seed=command.seed,
        seconds=1.0,
        model=command.edit.model,
        weight_hash=command.edit.weight_hash,
    )


async def test_an_evaluation_that_ended_after_its_edit_was_deleted_is_not_the_next_ones(tmp_path: Path):
    """The name and the version are the same again; what is measured is not."""
    here = await ready(tmp_path)
    here.launcher.latest.scripts[EvaluateEdit] = measured
    request = EvaluateEditRequest(edit="no-mary", sets=(TARGET,))
    first = await here.edit_evaluations.run(request, ignore, evaluation_id="a" * 32)
    assert [one.name for one in await here.edit_evaluations.list("no-mary")] == [first.name]
    await here.edits.delete("no-mary")  # while another evaluation of it runs, which ends below
    await create(here, interventions=[ablate(index=4)])
    assert await here.edit_evaluations.list("no-mary") == ()
    assert await here.edit_evaluations.list("no-mary@1") == ()
    assert await here.edit_evaluations.get(first.name) == first
    second = await here.edit_evaluations.run(request, ignore, evaluation_id="b" * 32)
    assert [one.name for one in await here.edit_evaluations.list("no-mary@1")] == [second.name]

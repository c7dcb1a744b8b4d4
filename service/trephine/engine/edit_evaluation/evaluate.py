"""EvaluateEdit: every set under the edit and under no-op, a part of it under controls, a prompt beside."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from time import monotonic

from trephine.domain.commands import Progress
from trephine.domain.edit_evaluation import (
    ArmResult,
    EditEvaluation,
    EvaluateEdit,
    EvaluationArm,
    PromptingResult,
    SetResult,
    SetRole,
)
from trephine.domain.edit_kinds import is_steering
from trephine.domain.edit_weights import require_weights
from trephine.domain.edits import Edit
from trephine.domain.errors import NothingMatchedError
from trephine.domain.interventions import Applied
from trephine.engine.edit_evaluation.controls import Controls, adjusted_for_sets, compare, draw_controls
from trephine.engine.edit_evaluation.figures import Resamples, arm_figures
from trephine.engine.edit_evaluation.prompting import Damage, baseline
from trephine.engine.edit_evaluation.reading import Arm, Echo, read_units
from trephine.engine.edit_evaluation.standins import no_op
from trephine.engine.edit_evaluation.telling import told
from trephine.engine.edit_evaluation.units import ItemUnit, UnitSet, encode_set, retain_set
from trephine.engine.edit_evaluation.verdict import judge
from trephine.engine.edits.edit_sets import require_same_sets
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session
from trephine.engine.replacements.contexts import beginning_caveats, degraded_caveats, sets_of
from trephine.engine.runs.refusals import check_intervention
from trephine.engine.runs.retain import retain_text


def evaluate_edit(session: Session, command: EvaluateEdit) -> Generator[Progress, None, EditEvaluation]:
    """Measure an edit.

    Raises:
        ParentChangedError: If it was made for other weights, or for another set of that name.
        ReplacementNotFoundError: If a set is not loaded.
        EmptyPromptError: If a text has no token.
        PromptTooLongError: If a text does not fit into the context.
        NothingMatchedError: If an intervention of the edit matches no position of any text.
    """
    started, hosted = monotonic(), session.require_model().pinned()
    require_made_for(hosted, command.edit)
    for intervention in command.edit.interventions:
        check_intervention(hosted, intervention)
    retain = retain_text(hosted)
    sets = [encode_set(hosted, one, field=f"sets[{place}]") for place, one in enumerate(command.sets)]
    if all(one.role is SetRole.TARGET for one in sets):
        sets.append(retain_set(retain))
    echo = Echo()
    results = []
    for units in sets:
        results.append((yield from _measured(hosted, units, command, echo)))
    _require_matches(echo.applied)
    controls = yield from draw_controls(hosted, retain, command)
    results = yield from _controlled(hosted, sets, results, controls, command)
    prompting, damage = yield from _prompted(hosted, sets, command)
    results = [replace(one, arms=(*one.arms, *damage.get(one.name, ()))) for one in results]
    judgement = judge(results, controls.matching, command.bounds)
    return EditEvaluation(
        edit=command.edit.name,
        version=command.edit.version,
        content_hash=command.edit.content_hash,
        verdict=judgement.verdict,
        why=judgement.why,
        would_decide=judgement.would_decide,
        sets=tuple(results),
        matching=controls.matching,
        prompting=prompting,
        applied=tuple(echo.applied),
        bounds=command.bounds,
        caveats=(*_caveats(hosted, sets, command.edit), *judgement.caveats),
        resamples=command.resamples,
        seed=command.seed,
        seconds=monotonic() - started,
        model=hosted.info.name,
        weight_hash=hosted.info.weight_hash,
    )


def require_made_for(hosted: HostedModel, edit: Edit) -> None:
    """Refuse an edit that was made for other weights, or for other content of its sets.

    Raises:
        ParentChangedError: Saying which.
        ReplacementNotFoundError: If a set is not loaded.
    """
    require_weights(edit, hosted.info.name, hosted.info.weight_hash)
    require_same_sets(hosted, edit)


def _measured(
    hosted: HostedModel, units: UnitSet, command: EvaluateEdit, echo: Echo
) -> Generator[Progress, None, SetResult]:
    """Run the edit and its no-op on all of a set."""
    given = command.edit.interventions
    arms = [Arm(interventions=given), Arm(interventions=no_op(given))]
    reading = read_units(hosted, units.units, arms, echo)
    readings = yield from told(reading, f"effect on {units.name}", len(units.units))
    resamples = Resamples.of(len(units.units), resamples=command.resamples, seed=command.seed)
    kinds = (EvaluationArm.EDIT, EvaluationArm.NO_OP)
    return SetResult(
        name=units.name,
        role=units.role,
        units=len(units.units),
        tokens=units.tokens,
        sha256=units.sha256,
        arms=tuple(
            ArmResult(arm=kind, figures=arm_figures(readings, place, resamples))
            for place, kind in enumerate(kinds)
        ),
    )


def _controlled(
    hosted: HostedModel,
    sets: Sequence[UnitSet],
    results: Sequence[SetResult],
    controls: Controls,
    command: EvaluateEdit,
) -> Generator[Progress, None, list[SetResult]]:
    """Add controls; p-values of several sets of a role are adjusted for their number."""
    found: list[SetResult] = []
    for units, result in zip(sets, results, strict=True):
        compared = yield from compare(hosted, units, controls, command)
        found.append(replace(result, controls=compared))
    return adjusted_for_sets(found)


def _prompted(
    hosted: HostedModel, sets: Sequence[UnitSet], command: EvaluateEdit
) -> Generator[Progress, None, tuple[PromptingResult | None, Damage]]:
    options = command.prompting
    if options is None:
        return None, {}
    steering = is_steering(command.edit.interventions)
    if not (steering or options.always or options.prompts):
        return None, {}
    return (yield from baseline(hosted, command, options, sets).run())


def _require_matches(applied: Sequence[Applied]) -> None:
    for one in applied:
        if one.positions == 0:
            raise NothingMatchedError(
                f"intervention {one.index} of the edit matched no position of any text or item; check its "
                "selector and condition, or choose texts in which it acts",
                field=f"edit.interventions[{one.index}].selector",
                intervention=one.index,
            )


def _caveats(hosted: HostedModel, sets: Sequence[UnitSet], edit: Edit) -> tuple[str, ...]:
    names = sets_of(edit.interventions)
    said: dict[str, None] = dict.fromkeys(degraded_caveats(hosted, names))
    for units in sets:
        if units.repeated:
            said[_repeats(units)] = None
        for unit in units.units:
            ids = unit.prompt if isinstance(unit, ItemUnit) else unit.ids
            said |= dict.fromkeys(beginning_caveats(hosted, names, ids))
    return tuple(said)


def _repeats(units: UnitSet) -> str:
    return (
        f"{units.repeated} of {units.repeated + len(units.units)} texts or items of {units.name} are the "
        "same tokens as others: each counts once, for a repeat says nothing new"
    )


HANDLERS: dict[type, Handler] = {EvaluateEdit: evaluate_edit}

"""PlanExport: what an export will write, and the bounds that it must meet, fixed beforehand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import TypeAdapter

from trephine.domain.commands import Progress
from trephine.domain.edits import Edit
from trephine.domain.errors import ParentChangedError, UnsupportedOptionError
from trephine.domain.exports import ExportOptions, ExportPlan, PlanExport, PlanStep
from trephine.engine.certificates.doubts import calibration_caveats, doubt_of, stored_caveats
from trephine.engine.certificates.export_texts import ExportTexts, export_texts
from trephine.engine.certificates.firing_floor import firing_floor
from trephine.engine.certificates.gates import planned_gates
from trephine.engine.certificates.noise import noise_floor
from trephine.engine.certificates.part_floors import part_floors
from trephine.engine.certificates.rounding_floor import WideFloor, exact_floors, is_compared_wide
from trephine.engine.edits.edit_sets import require_same_sets
from trephine.engine.exports.adapter import adapter_bytes
from trephine.engine.exports.parents import require_as_loaded
from trephine.engine.exports.reshaping import grown_bytes
from trephine.engine.exports.servers import supporting_servers
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session
from trephine.engine.models.shards import DTYPES, TensorEntry, read_entries, stored_dtype
from trephine.engine.quantised.conversion import gguf_bytes, require_convertible
from trephine.engine.replacements.contexts import degraded_caveats, sets_of
from trephine.engine.weights.compiling import WeightProgram, compile_weights
from trephine.engine.weights.replicas import coarsest
from trephine.engine.weights.widening import widened_layers

_PLAN = TypeAdapter(ExportPlan)


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A program, what it was made of, and the last plan that was made with it, by what was asked."""

    key: Any
    program: WeightProgram
    plans: dict[Any, ExportPlan] = field(default_factory=dict)


_KEPT: WeakKeyDictionary[Any, _Compiled] = WeakKeyDictionary()
"""Per loaded model what was compiled last. Ends with the model."""


def plan_export(session: Session, command: PlanExport) -> Generator[Progress | None, None, ExportPlan]:
    """Plan the export of an edit of the loaded model.

    An export is planned when it is asked for, again when it is checked, and when it is carried out: what was
    measured for the first plan, passes over a whole text, is not measured anew for the same edit and options.

    Raises:
        ParentChangedError: If the edit was made for other weights, or for another set of that name, or a
            file beside the weights is not what was loaded.
        ReplacementNotFoundError: If a set is not loaded.
        EditNotExpressibleError: If an intervention cannot be written into weights; the field is named.
        UnsupportedOptionError: If the model carries an adapter, so that its files are not its weights, or
            cannot be converted to the GGUF that is asked for.
        BrokenCheckpointError: If the parent's files do not hold what was loaded.
        InvalidRequestError: If the text is too short.
    """
    hosted = session.require_model().pinned()
    require_parent(hosted, command.edit)
    entries = read_entries(hosted.folder)
    yield None
    yield from require_as_loaded(hosted, entries)
    if command.options.gguf:
        require_convertible(hosted)
    texts = export_texts(hosted, command.options.text)
    program = yield from program_of(hosted, entries, command.edit, texts, command.options)
    caveats = degraded_caveats(hosted, sets_of(command.edit.interventions))
    plans, key = _KEPT[hosted.model].plans, (command, texts.measured.sha256, stored_dtype(entries), caveats)
    if key not in plans:
        plan = yield from _measured(hosted, entries, command, texts, program)
        plans.clear()
        plans[key] = plan
    return plans[key]


def _measured(
    hosted: HostedModel,
    entries: dict[str, TensorEntry],
    command: PlanExport,
    texts: ExportTexts,
    program: WeightProgram,
) -> Generator[Progress | None, None, ExportPlan]:
    """Measure the floors that a program's bounds come from, and plan."""
    stored = DTYPES.get(stored_dtype(entries))
    floor = yield from noise_floor(hosted, texts.measured, stored)
    firing = None
    as_runtime = program.grafted and not program.fitted
    if program.features:
        narrow = stored if as_runtime else None
        firing = yield from firing_floor(
            hosted, texts.measured, program.features, command.edit.interventions, floor, narrow
        )
    parts = yield from part_floors(hosted, texts.measured, program.parts, command.edit.interventions, floor)
    whole = rounded = None
    is_wide = is_compared_wide(hosted, program)
    wide = WideFloor(edit=firing.edit, rounded=0.0) if is_wide and firing is not None else None
    if program.exact and program.changes:
        found = yield from exact_floors(
            *(hosted, texts.measured, program.changes, command.edit.interventions, floor), wide=is_wide
        )
        whole, rounded, wide = found.whole, found.rounded, found.wide
    changed = tuple(sorted(change.name for change in program.changes))
    plan = ExportPlan(
        edit=command.edit.name,
        edit_hash=command.edit.content_hash,
        parent_hash=hosted.info.weight_hash,
        steps=_steps(command.edit, program),
        changed_tensors=changed,
        untouched_tensors=len(entries) - len(set(changed) & set(entries)),
        config_changes=_config_changes(hosted, program),
        size_growth_bytes=growth_bytes(hosted, entries, program, command.options),
        widened=widened_layers(program.changes),
        servers=supporting_servers(
            *(hosted.info.architecture, hosted.model.config, program), tied=hosted.info.tied_embeddings
        ),
        gates=planned_gates(
            hosted.info.dtype,
            floor,
            fitted=program.fitted,
            grafted=program.grafted,
            firing=firing,
            whole=whole,
            parts=parts,
            min_recovery=command.options.min_recovery,
            retained=texts.retained is not None,
            rounded=rounded,
            wide=wide,
        ),
        plan_hash="",
        fitted=program.fitted,
        text=texts.calibration.label if program.calibrated else "",
        caveats=(
            *degraded_caveats(hosted, sets_of(command.edit.interventions)),
            *(firing.unjudged if firing is not None and as_runtime else ()),
            *calibration_caveats(program, texts),
            *stored_caveats(program, floor),
        ),
        doubt=doubt_of(program, texts, firing, whole, parts),
    )
    return replace(plan, plan_hash=plan_hash(plan))


def program_of(
    hosted: HostedModel,
    entries: dict[str, TensorEntry],
    edit: Edit,
    texts: ExportTexts,
    options: ExportOptions,
) -> Generator[None, None, WeightProgram]:
    """Compile an edit; the last program of a loaded model is kept, since a plan is followed by its export.

    Sets are named by their content, so that one loaded anew under the same name is compiled anew.
    """
    sets = ",".join(sorted(s.admitted.content_hash for s in hosted.replacements.values()))
    key = (
        *(hosted.info.weight_hash, edit.content_hash, edit.interventions, options.keep_shapes),
        coarsest(options.gguf),
        *(texts.calibration.sha256, sets),
    )
    kept = _KEPT.get(hosted.model)
    if kept is None or kept.key != key:
        program = yield from compile_weights(
            hosted,
            entries,
            edit,
            texts.calibration.windows,
            keep_shapes=options.keep_shapes,
            kind=coarsest(options.gguf),
        )
        kept = _Compiled(key, program)
        _KEPT[hosted.model] = kept
    return kept.program


def growth_bytes(
    hosted: HostedModel, entries: dict[str, TensorEntry], program: WeightProgram, options: ExportOptions
) -> int:
    """Bound what an export takes beyond its parent: of tensors and adapter exact, of GGUF files at most."""
    tensors = grown_bytes(program.changes)
    stored = DTYPES.get(stored_dtype(entries))
    files = gguf_bytes(hosted, options.gguf, tensors // (stored.itemsize if stored else 1))
    return tensors + adapter_bytes(program) + files


def plan_hash(plan: ExportPlan) -> str:
    """Hash a plan: sha256 of its canonical JSON (sorted keys, no spaces, ASCII) without `plan_hash`."""
    fields: dict[str, Any] = _PLAN.dump_python(plan, mode="json")
    del fields["plan_hash"]
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def require_parent(hosted: HostedModel, edit: Edit) -> None:
    """Refuse an edit of other weights or other sets, and a model whose files are not its weights.

    Raises:
        ParentChangedError: If the hashes differ.
        ReplacementNotFoundError: If a set is not loaded.
        UnsupportedOptionError: If an adapter was merged in memory.
    """
    info = hosted.info
    if edit.weight_hash != info.weight_hash:
        raise ParentChangedError(
            f"the edit {edit.name} was made for weights {edit.weight_hash[:12]}, the loaded model has "
            f"{info.weight_hash[:12]}; load the parent that it was made for, or make the edit again",
            expected=edit.weight_hash,
            found=info.weight_hash,
        )
    require_same_sets(hosted, edit)
    if info.parent_hash != info.weight_hash:
        raise UnsupportedOptionError(
            "the model carries an adapter that was merged in memory; merge it into a folder and load that",
            field="adapter",
        )


def _steps(edit: Edit, program: WeightProgram) -> tuple[PlanStep, ...]:
    return tuple(
        PlanStep(
            intervention=number,
            tier=note.tier,
            tensor=", ".join(note.tensors),
            description=note.description,
            predicted_error=note.predicted_error,
            held_out=note.held_out,
        )
        for number in range(len(edit.interventions))
        for note in (program.notes[number],)
    )


def _config_changes(hosted: HostedModel, program: WeightProgram) -> tuple[str, ...]:
    config: Any = hosted.model.config
    return tuple(
        f"{name}: {getattr(config, name, None)} -> {value}" for name, value in sorted(program.config.items())
    )


HANDLERS: dict[type, Handler] = {PlanExport: plan_export}

"""PlanExport: what an export will write, and the bounds that it must meet, fixed beforehand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter
from torch import nn

from trephine.domain.commands import Progress
from trephine.domain.edits import Edit
from trephine.domain.errors import BrokenCheckpointError, ParentChangedError, UnsupportedOptionError
from trephine.domain.exports import ExportPlan, PlanExport, PlanStep, ServerSupport, Tier
from trephine.engine.expressible import NeuronScaling, neuron_scalings
from trephine.engine.gates import planned_gates
from trephine.engine.hosted import HostedModel
from trephine.engine.noise import noise_floor
from trephine.engine.retain import retain_text
from trephine.engine.session import Handler, Session
from trephine.engine.shards import TensorEntry, read_entries, read_tensor

_PLAN = TypeAdapter(ExportPlan)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorChange:
    """One tensor of the parent and the slices of it that are scaled."""

    entry: TensorEntry
    layer: int
    axis: int
    """1: columns; 0: rows, where the projection is stored transposed (GPT-2)."""
    factors: dict[int, float]
    """Index -> factor; none of them leaves its slice as it is."""


def plan_export(session: Session, command: PlanExport) -> Generator[Progress | None, None, ExportPlan]:
    """Plan the export of an edit of the loaded model.

    Raises:
        ParentChangedError: If the edit was made for other weights.
        EditNotExpressibleError: If an intervention cannot be written into weights; the field is named.
        UnsupportedOptionError: If the model carries an adapter, so that its files are not its weights.
        BrokenCheckpointError: If the parent's files do not hold what was loaded.
    """
    hosted = session.require_model()
    require_parent(hosted, command.edit)
    entries = read_entries(hosted.folder)
    changes = tensor_changes(hosted, entries, command.edit)
    yield None
    floor = yield from noise_floor(hosted, retain_text(hosted))
    plan = ExportPlan(
        edit=command.edit.name,
        edit_hash=command.edit.content_hash,
        parent_hash=hosted.info.weight_hash,
        steps=_steps(hosted, entries, command.edit, changes),
        changed_tensors=tuple(sorted(change.entry.name for change in changes)),
        untouched_tensors=len(entries) - len(changes),
        config_changes=(),
        size_growth_bytes=0,
        servers=_servers(hosted),
        gates=planned_gates(hosted.info.dtype, floor),
        plan_hash="",
    )
    return replace(plan, plan_hash=plan_hash(plan))


def plan_hash(plan: ExportPlan) -> str:
    """Hash a plan: sha256 of its canonical JSON (sorted keys, no spaces, ASCII) without `plan_hash`."""
    fields: dict[str, Any] = _PLAN.dump_python(plan, mode="json")
    del fields["plan_hash"]
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def require_parent(hosted: HostedModel, edit: Edit) -> None:
    """Refuse an edit of other weights, and a model whose files are not its weights.

    Raises:
        ParentChangedError: If the hashes differ.
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
    if info.parent_hash != info.weight_hash:
        raise UnsupportedOptionError(
            "the model carries an adapter that was merged in memory; merge it into a folder and load that",
            field="adapter",
        )


def tensor_changes(
    hosted: HostedModel, entries: dict[str, TensorEntry], edit: Edit
) -> tuple[TensorChange, ...]:
    """Say which slices of which tensors an edit scales; what would change nothing is left out.

    Raises:
        EditNotExpressibleError: If an intervention cannot be written into weights.
        BrokenCheckpointError: If a projection is not in the files in the expected shape.
    """
    changes: list[TensorChange] = []
    for scaling in neuron_scalings(hosted.architecture, edit.interventions):
        entry, axis = down_projection(hosted, entries, scaling.layer)
        factors = _effective(hosted, entry, axis, scaling)
        if factors:
            changes.append(TensorChange(entry=entry, layer=scaling.layer, axis=axis, factors=factors))
    return tuple(changes)


def down_projection(
    hosted: HostedModel, entries: dict[str, TensorEntry], layer: int
) -> tuple[TensorEntry, int]:
    """Find a layer's down projection in the files; return it and the axis along which neurons lie.

    Raises:
        BrokenCheckpointError: If it is not there in the shape that was loaded.
    """
    down: Any = hosted.architecture.blocks[layer].mlp.down
    name = _stored_name(hosted.model, entries, down)
    entry = entries.get(name)
    if entry is None or entry.shape != tuple(down.weight.shape):
        raise BrokenCheckpointError(
            f"the parent's files do not hold {name} in shape {tuple(down.weight.shape)}", tensor=name
        )
    return entry, 0 if type(down).__name__ == "Conv1D" else 1


def _stored_name(model: Any, entries: dict[str, TensorEntry], module: nn.Module) -> str:
    """Return the name of a module's weight in the files; base models are stored without their prefix."""
    name = next(n for n, m in model.named_modules() if m is module) + ".weight"
    short = name.removeprefix(f"{model.base_model_prefix}.")
    return short if short in entries else name


def _effective(
    hosted: HostedModel, entry: TensorEntry, axis: int, scaling: NeuronScaling
) -> dict[int, float]:
    """Leave out factors of 1 and slices that are zero already: they would be written for nothing."""
    weight = read_tensor(hosted.folder, entry)
    return {
        index: factor
        for index, factor in sorted(scaling.factors.items())
        if factor != 1.0 and bool(weight.select(axis, index).any())
    }


def _steps(
    hosted: HostedModel,
    entries: dict[str, TensorEntry],
    edit: Edit,
    changes: Sequence[TensorChange],
) -> tuple[PlanStep, ...]:
    written = {(c.layer, index): factor for c in changes for index, factor in c.factors.items()}
    steps: list[PlanStep] = []
    for number, intervention in enumerate(edit.interventions):
        target: Any = intervention.target
        layer, index = target.feature.layer, target.feature.index
        entry, axis = down_projection(hosted, entries, layer)
        factor = written.get((layer, index))
        tier: Tier = "noop" if factor is None else "exact"
        what = f"{'column' if axis else 'row'} {index} of the down projection of layer {layer}"
        steps.append(
            PlanStep(
                intervention=number,
                tier=tier,
                tensor=entry.name,
                description=f"{what} stays as it is: nothing to change"
                if factor is None
                else f"{what} times {factor:g}, computed in float32, rounded once to {entry.dtype}",
            )
        )
    return tuple(steps)


def _servers(hosted: HostedModel) -> tuple[ServerSupport, ...]:
    same = "same architecture, tensor names, shapes and config as the parent"
    return (
        ServerSupport(
            server="transformers", loads=True, note="reloaded in a clean process before publishing"
        ),
        ServerSupport(server="vllm", loads=True, note=f"wherever the parent loads: {same}; not run here"),
        ServerSupport(
            server="llama.cpp", loads=True, note=f"wherever the parent converts: {same}; not run here"
        ),
    )


HANDLERS: dict[type, Handler] = {PlanExport: plan_export}

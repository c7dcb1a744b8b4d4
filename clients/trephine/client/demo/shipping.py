"""Chapter 6: store the edit, plan, export, certify, bring home, verify; fp32 and bf16 side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trephine.client.cli.certificate_text import gate_rows, verdict_word
from trephine.client.demo.narration import Narrator
from trephine.client.errors import CheckpointUnverifiedError
from trephine.client.export_names import export_id_for
from trephine.client.model import Model
from trephine.client.operations import Operation
from trephine.client.selection import Selection
from trephine.client.trephine import Trephine
from trephine.client.types import Edit, Export, ExportPlan
from trephine.client.verification import verify_folder


@dataclass(frozen=True, slots=True)
class Draft:
    """What an edit will be called, and where the edited copy goes."""

    edit: str
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """An export on its way."""

    model: Model
    edit: Edit
    plan: ExportPlan
    started: Operation[Export]
    folder: Path


def ship(trephine: Trephine, model: Model, selection: Selection, folder: Path, narrator: Narrator) -> None:
    """Export the edit from the fp32 model and from a bf16 copy of it, each in its own engine."""
    title = "6. Store the edit, compile it into the weights, certify, publish"
    with narrator.chapter("export", title) as figures:
        source = model.name.removeprefix("models/")
        loading = trephine.start_load(source, dtype="bfloat16", name=f"{source}-bf16")
        full = _send(trephine, model, Draft("no-mary", folder / "edited"), selection)
        with narrator.working(f"load {source}-bf16") as view:
            half = loading.result(on_progress=view.show)
        rounded = _send(trephine, half, Draft("no-mary-bf16", folder / "edited-bf16"), selection)
        figures["float32"] = _receive(trephine, full, narrator)
        figures["bfloat16"] = _receive(trephine, rounded, narrator)
        half.unload()


def _send(trephine: Trephine, model: Model, draft: Draft, selection: Selection) -> Shipment:
    """Store and plan the edit, and start its export."""
    chosen = selection.ablate()
    edit = trephine.edits.create(
        draft.edit, chosen, model=model.name, evidence=chosen.evidence, author="trephine demo"
    )
    plan = trephine.edits.plan(edit, model=model.name)
    started = trephine.exports.start(edit, export_id_for(draft.folder, edit), model=model.name)
    return Shipment(model=model, edit=edit, plan=plan, started=started, folder=draft.folder)


def _receive(trephine: Trephine, shipment: Shipment, narrator: Narrator) -> dict[str, Any]:
    """Tell the plan, wait for the export, bring it home and verify it there."""
    _tell_plan(shipment, narrator)
    with narrator.working(f"export {shipment.edit.name}") as view:
        export = shipment.started.result(on_progress=view.show)
        trephine.exports.download(export, shipment.folder, on_bytes=view.bytes)
    return _tell_export(export, shipment.folder, narrator)


def _tell_plan(shipment: Shipment, narrator: Narrator) -> None:
    plan = shipment.plan
    narrator.say(f"  {shipment.edit.name} from {shipment.model.name} ({shipment.model.info.dtype}):")
    narrator.facts(
        [
            (
                "plan",
                f"{len(plan.steps)} steps change {len(plan.changed_tensors)} tensors, "
                f"{plan.untouched_tensors} stay as they are",
            ),
            ("loads in", ", ".join(one.server for one in plan.servers if one.loads)),
        ]
    )


def _tell_export(export: Export, folder: Path, narrator: Narrator) -> dict[str, Any]:
    certificate = export.certificate
    narrator.table(("GATE", "MEASURED", "LIMIT", "UNIT", "HOLDS"), gate_rows(certificate))
    outcome = verify_folder(folder)
    if not outcome.passed:
        raise CheckpointUnverifiedError(f"{folder} does not verify: {'; '.join(outcome.problems)}")
    narrator.facts(
        [
            ("verdict", verdict_word(certificate.verdict, certificate.doubt)),
            ("untouched", f"{certificate.untouched_tensors_verified} tensors have their parent's hash"),
            (
                "published",
                f"{folder.name}, {len(export.files)} files"
                f"{', signed' if export.signed else ''}; verified again here without the server",
            ),
        ]
    )
    return {
        "export": export.name,
        "gates": {result.gate.name: result.measured for result in certificate.gates},
        "limits": {result.gate.name: result.gate.limit for result in certificate.gates},
        "measurements": {one.name: one.value for one in certificate.measurements},
        "untouched_tensors_verified": certificate.untouched_tensors_verified,
        "changed_tensors": len(certificate.changed_tensors),
        "tokens": certificate.n_tokens,
        "verified": outcome.passed,
    }

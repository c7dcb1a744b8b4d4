"""Chapter 6: store the edit, plan, export, certify, bring home, verify; fp32 and bf16."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trephine.client.cli.export import gate_rows
from trephine.client.demo.narration import Narrator
from trephine.client.errors import CheckpointUnverifiedError
from trephine.client.model import Model
from trephine.client.selection import Selection
from trephine.client.trephine import Trephine
from trephine.client.types import Edit, Export
from trephine.client.verification import verify_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """One parent and where its edited copy goes."""

    model: Model
    edit: str
    folder: Path


def ship(trephine: Trephine, model: Model, selection: Selection, folder: Path, narrator: Narrator) -> None:
    """Export the edit from the fp32 model and from a bf16 copy of it."""
    title = "6. Store the edit, compile it into the weights, certify, publish"
    with narrator.chapter("export", title) as figures:
        source = model.name.removeprefix("models/")
        loading = trephine.start_load(source, dtype="bfloat16", name=f"{source}-bf16")
        full = Shipment(model=model, edit="no-mary", folder=folder / "edited")
        figures["float32"] = _ship(trephine, full, selection, narrator)
        with narrator.working(f"load {source}-bf16") as view:
            half = loading.result(on_progress=view.show)
        rounded = Shipment(model=half, edit="no-mary-bf16", folder=folder / "edited-bf16")
        figures["bfloat16"] = _ship(trephine, rounded, selection, narrator)
        half.unload()


def _ship(trephine: Trephine, shipment: Shipment, selection: Selection, narrator: Narrator) -> dict[str, Any]:
    draft = selection.ablate()
    edit = trephine.edits.create(
        shipment.edit, draft, model=shipment.model.name, evidence=draft.evidence, author="trephine demo"
    )
    _tell_plan(trephine, edit, shipment, narrator)
    with narrator.working(f"export {edit.name}") as view:
        export = trephine.export(
            edit, shipment.folder, model=shipment.model.name, on_progress=view.show, on_bytes=view.bytes
        )
    return _tell_export(export, shipment.folder, narrator)


def _tell_plan(trephine: Trephine, edit: Edit, shipment: Shipment, narrator: Narrator) -> None:
    plan = trephine.edits.plan(edit, model=shipment.model.name)
    narrator.say(f"  {edit.name} from {shipment.model.name} ({shipment.model.info.dtype}):")
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

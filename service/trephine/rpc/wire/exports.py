"""Export plans, certificates, published folders. A server path never crosses the wire."""

from __future__ import annotations

from trephine.domain import exports as domain
from trephine.domain.errors import InvalidRequestError
from trephine.domain.removal import Fate
from trephine.rpc.wire.edits import edit_set_to_wire
from trephine.rpc.wire.export_signing import signed_by_to_wire
from trephine.rpc.wire.export_verdict import verdict_to_wire
from trephine.rpc.wire.fields import clean, qualified
from trephine.rpc.wire.gguf import gguf_from_wire, quantised_to_wire
from trephine.rpc.wire.removal import fate_to_wire, removal_to_wire
from trephine.v1 import edit_service_pb2 as pb
from trephine.v1 import removal_pb2 as pb_removal


def plan_to_wire(plan: domain.ExportPlan) -> pb.ExportPlan:
    """Write what an export will write and must measure."""
    return pb.ExportPlan(
        edit=qualified("edits", plan.edit),
        edit_hash=clean(plan.edit_hash),
        parent_hash=clean(plan.parent_hash),
        steps=[_step_to_wire(step) for step in plan.steps],
        changed_tensors=[clean(name) for name in plan.changed_tensors],
        untouched_tensors=plan.untouched_tensors,
        config_changes=[clean(name) for name in plan.config_changes],
        size_growth_bytes=plan.size_growth_bytes,
        servers=[
            pb.ServerSupport(server=clean(one.server), loads=one.loads, note=clean(one.note))
            for one in plan.servers
        ],
        gates=[_gate_to_wire(gate) for gate in plan.gates],
        plan_hash=clean(plan.plan_hash),
        fitted=plan.fitted,
        text=clean(plan.text),
        caveats=[clean(one) for one in plan.caveats],
        doubt=clean(plan.doubt),
        widened=[
            pb.WidenedLayer(layer=one.layer, neurons=one.neurons, zeros=one.zeros) for one in plan.widened
        ],
    )


def export_options_from_wire(
    request: pb.PlanExportRequest | pb.ExportCheckpointRequest,
) -> domain.ExportOptions:
    """Read how an edit is to be compiled and judged."""
    plain = domain.ExportOptions()
    return domain.ExportOptions(
        text=request.text if request.HasField("text") else None,
        min_recovery=request.min_recovery if request.HasField("min_recovery") else plain.min_recovery,
        keep_shapes=request.keep_shapes,
        attack=isinstance(request, pb.ExportCheckpointRequest) and request.attack,
        attack_steps=_attack_steps(request, plain.attack_steps),
        gguf=gguf_from_wire(request.gguf),
    )


def _attack_steps(request: pb.PlanExportRequest | pb.ExportCheckpointRequest, unset: int) -> int:
    """Read how long an attack trains; a plan has none, and steps without an attack are a mistake."""
    if not isinstance(request, pb.ExportCheckpointRequest) or not request.HasField("attack_steps"):
        return unset
    if not request.attack:
        raise InvalidRequestError("attack_steps goes with attack; ask for both", field="attack_steps")
    return request.attack_steps


def export_to_wire(export: domain.Export, *, whole: bool = True) -> pb.Export:
    """Write a published folder, without its place on the server; for lists without files and figures."""
    message = pb.Export(
        name=qualified("exports", export.name),
        certificate=certificate_to_wire(export.certificate),
        signed=export.signed,
        signed_by=signed_by_to_wire(export.signed_by),
        create_time=clean(export.create_time),
    )
    if not whole:
        for field in ("measurements", "changed_tensors"):
            message.certificate.ClearField(field)
        return message
    message.files.extend(
        pb.ExportedFile(path=clean(file.path), size=file.size, sha256=clean(file.sha256))
        for file in export.files
    )
    return message


def certificate_to_wire(certificate: domain.Certificate) -> pb.Certificate:
    """Write what was measured on the reloaded folder."""
    return pb.Certificate(
        edit=qualified("edits", certificate.edit),
        edit_hash=clean(certificate.edit_hash),
        plan_hash=clean(certificate.plan_hash),
        parent_hash=clean(certificate.parent_hash),
        dtype=clean(certificate.dtype),
        measurements=[
            pb.Measurement(name=clean(one.name), value=one.value, unit=clean(one.unit))
            for one in certificate.measurements
        ],
        gates=[_gate_result_to_wire(result) for result in certificate.gates],
        passed=certificate.passed,
        changed_tensors=[clean(name) for name in certificate.changed_tensors],
        untouched_tensors_verified=certificate.untouched_tensors_verified,
        environment={clean(key): clean(value) for key, value in certificate.environment.items()},
        text=clean(certificate.text),
        n_tokens=certificate.n_tokens,
        removal=removal_to_wire(certificate.removal),
        fate=fate_to_wire(certificate.fate),
        quantised=[quantised_to_wire(copy) for copy in certificate.quantised],
        caveats=[clean(one) for one in certificate.caveats],
        sets=[edit_set_to_wire(one) for one in certificate.sets],
        verdict=verdict_to_wire(certificate.verdict),
        doubt=clean(certificate.doubt),
    )


def verified_to_wire(verified: domain.VerifiedExport) -> pb.VerifyExportResponse:
    """Write the outcome of checking a folder; one whose certificate cannot be read has no word."""
    word = verified.removal
    fate = None if word is None else fate_to_wire(Fate(verdict=word, reason=verified.reason))
    return pb.VerifyExportResponse(
        passed=verified.passed,
        problems=[clean(problem) for problem in verified.problems],
        files=verified.files,
        removal=pb_removal.REMOVAL_VERDICT_UNSPECIFIED if fate is None else fate.verdict,
        fate=fate,
        verdict=verdict_to_wire(verified.verdict),
        doubt=clean(verified.doubt),
        notes=[clean(note) for note in verified.notes],
    )


def _step_to_wire(step: domain.PlanStep) -> pb.PlanStep:
    return pb.PlanStep(
        intervention=step.intervention,
        tier=clean(step.tier),
        tensor=clean(step.tensor),
        description=clean(step.description),
        predicted_error=step.predicted_error,
        held_out=step.held_out,
    )


def _gate_to_wire(gate: domain.Gate) -> pb.Gate:
    return pb.Gate(name=clean(gate.name), limit=gate.limit, unit=clean(gate.unit), reason=clean(gate.reason))


def _gate_result_to_wire(result: domain.GateResult) -> pb.GateResult:
    return pb.GateResult(gate=_gate_to_wire(result.gate), measured=result.measured, passed=result.passed)

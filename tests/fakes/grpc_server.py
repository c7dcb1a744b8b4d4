"""A small server in this process that speaks the contract, for tests of the client.

It answers from plain attributes, and can be told to break a stream once, so that resuming is tested.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.empty_pb2 import Empty
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from tests.fakes.edit_service import FakeEdits
from tests.fakes.replacement_service import FakeReplacements
from trephine.v1 import (
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    audit_service_pb2,
    audit_service_pb2_grpc,
    circuit_service_pb2,
    circuit_service_pb2_grpc,
    circuit_targets_pb2,
    common_pb2,
    edit_service_pb2,
    edit_service_pb2_grpc,
    generation_service_pb2,
    generation_service_pb2_grpc,
    intervention_service_pb2,
    intervention_service_pb2_grpc,
    interventions_pb2,
    live_edits_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    operation_service_pb2,
    operation_service_pb2_grpc,
    replacement_service_pb2_grpc,
)

VERSION = common_pb2.ModelVersion(model="models/tiny", weight_hash="w" * 64)
FILE = bytes(range(256)) * 4096


def rich_status(code: grpc.StatusCode, reason: str, message: str, **context: str) -> status_pb2.Status:
    """A status as the service writes it."""
    status = status_pb2.Status(code=code.value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=reason, domain="trephine", metadata=context)
    details: list[Any] = [info]
    if "field" in context:
        violation = error_details_pb2.BadRequest.FieldViolation(field=context["field"], description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    for detail in details:
        status.details.add().Pack(detail)
    return status


class FakeService(
    FakeReplacements,
    FakeEdits,
    model_service_pb2_grpc.ModelServiceServicer,
    generation_service_pb2_grpc.GenerationServiceServicer,
    intervention_service_pb2_grpc.InterventionServiceServicer,
    circuit_service_pb2_grpc.CircuitServiceServicer,
    audit_service_pb2_grpc.AuditServiceServicer,
    artifact_service_pb2_grpc.ArtifactServiceServicer,
    operation_service_pb2_grpc.OperationServiceServicer,
    operations_pb2_grpc.OperationsServicer,
):
    """Every service of the contract that the client calls."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.loaded = True
        self.watch_breaks = 0
        """How often the next watches break with UNAVAILABLE halfway."""
        self.read_breaks = 0
        """The same for reads of exported files."""
        self.wrote: tuple[int, int | None] = (1, 1)
        self.watched_after: list[int] = []
        self.read_offsets: list[int] = []
        self.operations: dict[str, operations_pb2.Operation] = {}
        self.watched = threading.Event()
        self.cancelled = threading.Event()
        self.generation_ended = threading.Event()
        self.generate_forever = False
        self.overflowing: set[int] = set()
        self.endless = False
        self.more_auditors: list[str] = []
        """Operations run until they are cancelled."""
        self.deaf = False
        """Cancelling is heard, and changes nothing."""
        self.report = audit_service_pb2.AuditReport(
            name="audits/a1",
            verdict=audit_service_pb2.VERDICT_INCONCLUSIVE,
            why="too few usable items",
            auditor=audit_service_pb2.Auditor(name="sample", version="1"),
            version=VERSION,
        )
        self.prompt = "Mary"
        self.artifacts: dict[str, bytes] = {}
        self.uploaded: dict[str, bytes] = {}
        self.file = FILE
        self.gates_passed = True
        self.dtype = "float32"

    # --- plain answers ---------------------------------------------------------------------------

    def _note(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})

    def _model(self) -> model_service_pb2.Model:
        state = "LOADED" if self.loaded else "AVAILABLE"
        return model_service_pb2.Model(
            name="models/tiny",
            state=model_service_pb2.ModelState.Value(f"MODEL_STATE_{state}"),
            dtype=self.dtype,
            device="cpu",
            n_layers=2,
        )

    def GetModel(self, request, context):
        self._note(request, context)
        if request.name != "models/tiny":
            self._fail(context, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", f"no model {request.name}")
        return self._model()

    def ListModels(self, request, context):
        """Two pages."""
        self._note(request, context)
        if request.page_token:
            return model_service_pb2.ListModelsResponse(models=[model_service_pb2.Model(name="models/two")])
        return model_service_pb2.ListModelsResponse(models=[self._model()], next_page_token="2")

    def LoadModel(self, request, context):
        self._note(request, context)
        return self._start("LoadModel", self._model())

    def Tokenize(self, request, context):
        self._note(request, context)
        self._fail(
            context, grpc.StatusCode.INVALID_ARGUMENT, "EMPTY_PROMPT", "the text is empty", field="text"
        )

    def GetCapabilities(self, request, context):
        context.abort(grpc.StatusCode.UNAVAILABLE, "nobody home")

    def _applied(self):
        written, changed = self.wrote
        return interventions_pb2.Applied(
            positions=written, changed=changed, degraded=self.replacement_degraded
        )

    def Ablate(self, request, context):
        self._note(request, context)
        effect = intervention_service_pb2.AblationEffect(
            name="as_given", baseline=5.0, intervened=2.0, change=-3.0, applied=[self._applied()]
        )
        return intervention_service_pb2.AblateResponse(
            effects=[effect], version=VERSION, retain_tokens=1024, caveats=list(self.caveats)
        )

    def Generate(self, request, context):
        self._note(request, context)
        context.add_callback(self.generation_ended.set)
        step = 0
        while self.generate_forever or step < 2:
            for row in range(len(request.rows)):
                yield generation_service_pb2.GenerateResponse(
                    token=generation_service_pb2.TokenEvent(row=row, step=step, text=f"{row}.{step}\x1b[31m ")
                )
            step += 1
            if not context.is_active():
                return
        rows = [
            generation_service_pb2.Completion(
                text="done\x1b[31m",
                finish_reason="overflow" if index in self.overflowing else "length",
                caveats=[f"rows[{index}] overflows"] if index in self.overflowing else [],
                applied=[self._applied()],
                edits=[
                    live_edits_pb2.AppliedEdit(
                        edit=f"{use.edit}@4", strength=use.strength, applied=[self._applied()]
                    )
                    for use in row.edits
                ],
            )
            for index, row in enumerate(request.rows)
        ]
        yield generation_service_pb2.GenerateResponse(
            finished=generation_service_pb2.GenerationFinished(completions=rows, version=VERSION)
        )

    # --- circuits, edits, exports, audits --------------------------------------------------------

    def _circuit(self) -> circuit_service_pb2.Circuit:
        return circuit_service_pb2.Circuit(
            name="circuits/c1",
            prompt=self.prompt,
            targets=[
                circuit_targets_pb2.ExplainedTarget(
                    kind=circuit_targets_pb2.TARGET_KIND_LOGIT,
                    label=" Mary",
                    position=1,
                    share=1.0,
                    token=common_pb2.Token(id=5, raw=b" Mary", display=" Mary"),
                )
            ],
            baseline=5.25,
            n_nodes=2,
            n_edges=1,
            edge_rule="relp_half",
            version=VERSION,
        )

    def DiscoverCircuit(self, request, context):
        self._note(request, context)
        return self._start("DiscoverCircuit", self._circuit())

    def GetCircuit(self, request, context):
        return self._circuit()

    def ListCircuits(self, request, context):
        return circuit_service_pb2.ListCircuitsResponse(circuits=[self._circuit()])

    def ListNodes(self, request, context):
        self._note(request, context)
        node = circuit_service_pb2.Node(
            kind=circuit_service_pb2.NODE_KIND_FEATURE,
            layer=1,
            position=3,
            feature=common_pb2.FeatureRef(layer=1, index=7),
            promotes=["<img src=x onerror=alert(1)>", "\u202egnorw"],
            bias=0.0,
        )
        return circuit_service_pb2.ListNodesResponse(nodes=[node])

    def ExportCircuit(self, request, context):
        form = circuit_service_pb2.CircuitFormat.Name(request.format)
        data = b"<html></html>" if form.endswith("HTML") else b'{"nodes": []}'
        return circuit_service_pb2.ExportCircuitResponse(artifact=self._keep(data))

    def ProposeEdit(self, request, context):
        self._note(request, context)
        ranked = edit_service_pb2.RankedFeature(feature=common_pb2.FeatureRef(layer=1, index=7), score=2.0)
        point = edit_service_pb2.CurvePoint(count=1, value=2.0, drop=0.6, retain_kl=0.05)
        proposal = edit_service_pb2.EditProposal(
            baseline=5.0, curve=[point], ranking=[ranked], chosen=1, why="one is enough", version=VERSION
        )
        return self._start("ProposeEdit", proposal)

    def _edit(self, name: str = "no-mary") -> edit_service_pb2.Edit:
        return edit_service_pb2.Edit(
            name=f"edits/{name}", version=1, content_hash="c" * 64, made_for=VERSION, reason="because"
        )

    def CreateEdit(self, request, context):
        self._note(request, context)
        edit = self._edit(request.edit_id)
        edit.interventions.extend(request.interventions)
        return edit

    def GetEdit(self, request, context):
        return self._edit()

    def _export(self, name: str) -> edit_service_pb2.Export:
        files = [
            edit_service_pb2.ExportedFile(
                path="weights/model.safetensors", size=len(FILE), sha256=hashlib.sha256(FILE).hexdigest()
            )
        ]
        gate = edit_service_pb2.GateResult(
            gate=edit_service_pb2.Gate(name="kl_mean", limit=1.0), passed=self.gates_passed
        )
        word = "EXPORT_VERDICT_PASSED" if self.gates_passed else "EXPORT_VERDICT_FAILED"
        certificate = edit_service_pb2.Certificate(
            edit="edits/no-mary",
            edit_hash="c" * 64,
            passed=self.gates_passed,
            gates=[gate],
            verdict=word,
        )
        return edit_service_pb2.Export(name=name, certificate=certificate, files=files)

    def GetExport(self, request, context):
        self._note(request, context)
        self._fail(context, grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND", f"no export {request.name}")

    def ExportCheckpoint(self, request, context):
        self._note(request, context)
        return self._start("ExportCheckpoint", self._export(f"exports/{request.export_id}"))

    def ReadExportFile(self, request, context):
        self.read_offsets.append(request.offset)
        half = len(FILE) // 2
        self.read_breaks -= 1
        if self.read_breaks >= 0:
            yield edit_service_pb2.ReadExportFileResponse(offset=0, data=self.file[:half])
            context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
        for start in range(request.offset, len(self.file), 1 << 19):
            data = self.file[start : start + (1 << 19)]
            yield edit_service_pb2.ReadExportFileResponse(offset=start, data=data)

    def RunAudit(self, request, context):
        self._note(request, context)
        return self._start("RunAudit", self.report)

    def ListAuditors(self, request, context):
        more = [type(self.report.auditor)(name=name) for name in self.more_auditors]
        return audit_service_pb2.ListAuditorsResponse(auditors=[self.report.auditor, *more])

    def RenderAuditReport(self, request, context):
        form = audit_service_pb2.ReportFormat.Name(request.format)
        return audit_service_pb2.RenderAuditReportResponse(artifact=self._keep(form.encode()))

    def _keep(self, data: bytes) -> str:
        name = f"artifacts/{hashlib.sha256(data).hexdigest()}"
        self.artifacts.setdefault(name, data)
        return name

    def Read(self, request, context):
        yield artifact_service_pb2.ReadResponse(offset=0, data=self.artifacts[request.name])

    # --- operations ------------------------------------------------------------------------------

    def _start(self, method: str, response: Any) -> operations_pb2.Operation:
        operation = operations_pb2.Operation(name=f"operations/{len(self.operations) + 1}")
        self.operations[operation.name] = operation
        self._responses = getattr(self, "_responses", {})
        self._responses[operation.name] = (method, response)
        return self._snapshot(operation.name, "running", 1)

    def _snapshot(self, name: str, state: str, sequence: int) -> operations_pb2.Operation:
        method, response = self._responses[name]
        operation = operations_pb2.Operation(name=name, done=state in {"succeeded", "failed", "cancelled"})
        operation.metadata.Pack(self._metadata(method, state, sequence))
        if state == "succeeded":
            packed = Packed()
            packed.Pack(response)
            operation.response.CopyFrom(packed)
        elif state == "cancelled":
            operation.error.CopyFrom(rich_status(grpc.StatusCode.CANCELLED, "CANCELLED", "cancelled"))
        return operation

    def _metadata(self, method: str, state: str, sequence: int) -> operation_service_pb2.OperationMetadata:
        return operation_service_pb2.OperationMetadata(
            method=method,
            state=state,
            sequence=sequence,
            attempts=1,
            progress=common_pb2.Progress(stage=f"step\x1b[2J{sequence}", done=sequence, total=4),
        )

    def Watch(self, request, context) -> Iterator[operation_service_pb2.WatchResponse]:
        self.watched_after.append(request.after_sequence)
        self.watched.set()
        method, _ = self._responses[request.name]
        for sequence in range(request.after_sequence + 1, 4):
            yield operation_service_pb2.WatchResponse(
                operation=self._snapshot(request.name, "running", sequence),
                metadata=self._metadata(method, "running", sequence),
            )
            self.watch_breaks -= sequence == 2
            if sequence == 2 and self.watch_breaks >= 0:
                context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
        if self.endless:
            while not (self.cancelled.wait(0.05) and not self.deaf):
                if not context.is_active():
                    return
        state = "cancelled" if self.endless else "succeeded"
        yield operation_service_pb2.WatchResponse(
            operation=self._snapshot(request.name, state, 4), metadata=self._metadata(method, state, 4)
        )

    def GetOperation(self, request, context):
        if request.name not in self.operations:
            self._fail(context, grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND", "no such operation")
        return self._snapshot(request.name, "running", 1)

    def ListOperations(self, request, context):
        operations = [self._snapshot(name, "running", 1) for name in self.operations]
        return operations_pb2.ListOperationsResponse(operations=operations)

    def CancelOperation(self, request, context):
        self.cancelled.set()
        return Empty()

    def _fail(
        self, context: grpc.ServicerContext, code: grpc.StatusCode, reason: str, text: str, **more: str
    ) -> None:
        context.abort_with_status(rpc_status.to_status(rich_status(code, reason, text, **more)))


def serve(service: FakeService) -> tuple[grpc.Server, str]:
    """Start the fake on a loopback port; return the server and its address."""
    server = grpc.server(ThreadPoolExecutor(max_workers=8))
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
    generation_service_pb2_grpc.add_GenerationServiceServicer_to_server(service, server)
    intervention_service_pb2_grpc.add_InterventionServiceServicer_to_server(service, server)
    circuit_service_pb2_grpc.add_CircuitServiceServicer_to_server(service, server)
    replacement_service_pb2_grpc.add_ReplacementServiceServicer_to_server(service, server)
    edit_service_pb2_grpc.add_EditServiceServicer_to_server(service, server)
    audit_service_pb2_grpc.add_AuditServiceServicer_to_server(service, server)
    artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(service, server)
    operation_service_pb2_grpc.add_OperationServiceServicer_to_server(service, server)
    operations_pb2_grpc.add_OperationsServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"

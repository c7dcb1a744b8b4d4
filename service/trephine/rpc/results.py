"""Operations as messages, with the resource that they ended in as their response."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from google.longrunning.operations_pb2 import Operation
from google.protobuf.message import Message

from trephine.app.jobs.requests import OperationRequest
from trephine.app.service import Service
from trephine.domain.errors import InternalError, ModelNotReadyError, ResourceNotFoundError
from trephine.domain.operations import OperationRecord, OperationState
from trephine.rpc.errors import status_of
from trephine.rpc.wire.audits import audit_to_wire
from trephine.rpc.wire.circuit_verification import verification_to_wire
from trephine.rpc.wire.circuits import circuit_to_wire
from trephine.rpc.wire.dataset_circuits import dataset_circuit_to_wire
from trephine.rpc.wire.edit_evaluations import evaluation_to_wire as edit_evaluation_to_wire
from trephine.rpc.wire.edits import proposal_to_wire
from trephine.rpc.wire.evaluations import evaluation_to_wire
from trephine.rpc.wire.exports import export_to_wire
from trephine.rpc.wire.feature_indexes import index_to_wire
from trephine.rpc.wire.fields import request_id as checked_request_id
from trephine.rpc.wire.fits import fit_to_wire
from trephine.rpc.wire.models import model_to_wire
from trephine.rpc.wire.operations import operation_to_wire, packed
from trephine.rpc.wire.replacements import set_name, set_to_wire
from trephine.rpc.wire.spurious_removals import classifier_to_wire, removal_to_wire
from trephine.v1.operation_service_pb2 import OperationMetadata


class OperationWriter:
    """Starts operations and writes them, with responses of the types that the contract states."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._readers: dict[str, Callable[[str], Awaitable[Message]]] = {
            "models": self._model,
            "circuits": self._circuit,
            "circuitVerifications": self._circuit_verification,
            "datasetCircuits": self._dataset_circuit,
            "proposals": self._proposal,
            "edits/evaluations": self._edit_evaluation,
            "exports": self._export,
            "spuriousRemovals": self._spurious_removal,
            "classifiers": self._classifier,
            "audits": self._audit,
            "models/replacements": self._replacement_set,
            "evaluations": self._evaluation,
            "fits": self._fit,
            "featureIndexes": self._feature_index,
        }

    async def start(self, method: str, request: OperationRequest, request_id: str) -> Operation:
        """Start an operation, or return the one that this request id started.

        Raises:
            InvalidRequestError: If the request id is no UUID.
            RequestIdReusedError: If it came with another request.
        """
        identifier = checked_request_id(request_id)
        return await self.write(await self._service.operations.start(method, request, request_id=identifier))

    async def write(self, record: OperationRecord) -> Operation:
        """Write an operation; one whose result was deleted since carries that as its error."""
        if record.state is not OperationState.SUCCEEDED or record.result is None:
            return operation_to_wire(record, None)
        try:
            return operation_to_wire(record, await self._response(record.result))
        except (ResourceNotFoundError, ModelNotReadyError) as error:
            operation = operation_to_wire(record, None)
            operation.error.CopyFrom(status_of(error))
            return operation

    async def write_all(self, records: Iterable[OperationRecord]) -> list[Operation]:
        """Write several, in order."""
        return list(await asyncio.gather(*(self.write(record) for record in records)))

    async def _response(self, resource: str) -> Message:
        collection = "/".join(resource.split("/")[::2])
        if collection not in self._readers:
            raise InternalError(f"an operation ended with {resource!r}, which is no known resource")
        return await self._readers[collection](resource)

    async def _model(self, name: str) -> Message:
        entry = self._service.models.get(name.partition("/")[2])
        return model_to_wire(entry.name, entry.state, entry.info)

    async def _circuit(self, name: str) -> Message:
        return circuit_to_wire(await self._service.circuits.get(name))

    async def _dataset_circuit(self, name: str) -> Message:
        return dataset_circuit_to_wire(await self._service.dataset_circuits.get(name))

    async def _circuit_verification(self, name: str) -> Message:
        return verification_to_wire(await self._service.circuit_verifications.get(name))

    async def _proposal(self, name: str) -> Message:
        return proposal_to_wire(await self._service.proposals.get(name))

    async def _edit_evaluation(self, name: str) -> Message:
        return edit_evaluation_to_wire(await self._service.edit_evaluations.get(name))

    async def _export(self, name: str) -> Message:
        return export_to_wire(await self._service.exports.get(name))

    async def _spurious_removal(self, name: str) -> Message:
        return removal_to_wire(await self._service.spurious_removals.get(name))

    async def _classifier(self, name: str) -> Message:
        return classifier_to_wire(await self._service.classifiers.get(name))

    async def _audit(self, name: str) -> Message:
        return audit_to_wire(await self._service.audits.get(name))

    async def _replacement_set(self, name: str) -> Message:
        found = set_name(name)
        return set_to_wire(self._service.replacements.entry(found.name, found.model))

    async def _evaluation(self, name: str) -> Message:
        return evaluation_to_wire(await self._service.evaluations.get(name))

    async def _fit(self, name: str) -> Message:
        return fit_to_wire(await self._service.fits.get(name))

    async def _feature_index(self, name: str) -> Message:
        return index_to_wire(await self._service.feature_indexes.get(name))


def validated(method: str, response: Message) -> Operation:
    """A finished operation that did nothing but check: the answer to `validate_only`."""
    metadata = OperationMetadata(method=method, state=OperationState.SUCCEEDED.value)
    return Operation(
        name="operations/validated", done=True, metadata=packed(metadata), response=packed(response)
    )

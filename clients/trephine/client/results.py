"""What a finished operation holds."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from trephine.client.decoding import WireValue, decode
from trephine.client.errors import InternalError
from trephine.client.status import error_of_status
from trephine.client.types import (
    AuditReport,
    CircuitVerification,
    ClassifierExport,
    DatasetCircuit,
    EditEvaluation,
    Export,
    FeatureIndex,
    FitReport,
    SpuriousRemoval,
)
from trephine.v1 import (
    audit_service_pb2,
    circuit_service_pb2,
    circuit_verification_pb2,
    dataset_circuits_pb2,
    edit_evaluations_pb2,
    edit_service_pb2,
    feature_service_pb2,
    model_service_pb2,
    replacement_service_pb2,
    spurious_removal_pb2,
)

_RESULTS: tuple[Any, ...] = (
    model_service_pb2.Model,
    circuit_service_pb2.Circuit,
    circuit_verification_pb2.CircuitVerification,
    dataset_circuits_pb2.DatasetCircuit,
    edit_service_pb2.EditProposal,
    edit_evaluations_pb2.EditEvaluation,
    edit_service_pb2.Export,
    spurious_removal_pb2.SpuriousRemoval,
    spurious_removal_pb2.ClassifierExport,
    audit_service_pb2.AuditReport,
    replacement_service_pb2.ReplacementSet,
    replacement_service_pb2.ReplacementEvaluation,
    replacement_service_pb2.FitReport,
    feature_service_pb2.FeatureIndex,
)
_VALUES: dict[str, type[WireValue]] = {
    "CircuitVerification": CircuitVerification,
    "DatasetCircuit": DatasetCircuit,
    "EditEvaluation": EditEvaluation,
    "Export": Export,
    "SpuriousRemoval": SpuriousRemoval,
    "ClassifierExport": ClassifierExport,
    "AuditReport": AuditReport,
    "FitReport": FitReport,
    "FeatureIndex": FeatureIndex,
}


def unpack_result(operation: Any) -> Message:
    """The response message of a `google.longrunning.Operation` that is done.

    Raises:
        TrephineError: Why the operation failed.
    """
    if operation.HasField("error"):
        raise error_of_status(operation.error)
    for kind in _RESULTS:
        if operation.response.Is(kind.DESCRIPTOR):
            message: Message = kind()
            operation.response.Unpack(message)
            return message
    raise InternalError(
        f"{operation.name} ended with {operation.response.type_url or 'nothing'}, "
        "which this client does not know; upgrade it to the server's version"
    )


def value_of(message: Message) -> WireValue:
    """A result that is a plain value: an export, a report."""
    return decode(_VALUES[message.DESCRIPTOR.name], message)


def circuit_verification_of(message: Message) -> CircuitVerification:
    """A finished verification of a circuit."""
    return decode(CircuitVerification, message)


def dataset_circuit_of(message: Message) -> DatasetCircuit:
    """The circuit of a behaviour."""
    return decode(DatasetCircuit, message)


def edit_evaluation_of(message: Message) -> EditEvaluation:
    """A finished evaluation of an edit."""
    return decode(EditEvaluation, message)


def removal_of(message: Message) -> SpuriousRemoval:
    """What a removal of spurious features ended in."""
    return decode(SpuriousRemoval, message)


def classifier_of(message: Message) -> ClassifierExport:
    """A published classifier."""
    return decode(ClassifierExport, message)

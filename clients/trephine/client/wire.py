"""The sync connection: stubs, deadlines, and errors translated in one place."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import grpc
from google.longrunning import operations_pb2_grpc

from trephine.client.endpoint import OPTIONS, Endpoint
from trephine.client.leases import Lease
from trephine.client.status import error_of_call
from trephine.v1 import (
    artifact_service_pb2_grpc,
    audit_service_pb2_grpc,
    circuit_service_pb2_grpc,
    edit_service_pb2_grpc,
    feature_service_pb2_grpc,
    generation_service_pb2_grpc,
    intervention_service_pb2_grpc,
    model_service_pb2_grpc,
    operation_service_pb2_grpc,
    replacement_service_pb2_grpc,
)

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")

UNARY_SECONDS = 600.0
"""Deadline of a call that answers once. Long work is an operation and has none."""


class Wire:
    """One channel with its stubs. Safe to use from several threads."""

    def __init__(self, endpoint: Endpoint, lease: Lease | None = None) -> None:
        self.endpoint = endpoint
        self.lease = lease
        """Of a local server: folders of this machine are shared through it."""
        self._channel = _open(endpoint)
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trephine-calls")
        self.models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self.text = generation_service_pb2_grpc.GenerationServiceStub(self._channel)
        self.effects = intervention_service_pb2_grpc.InterventionServiceStub(self._channel)
        self.circuits = circuit_service_pb2_grpc.CircuitServiceStub(self._channel)
        self.replacements = replacement_service_pb2_grpc.ReplacementServiceStub(self._channel)
        self.features = feature_service_pb2_grpc.FeatureServiceStub(self._channel)
        self.edits = edit_service_pb2_grpc.EditServiceStub(self._channel)
        self.audits = audit_service_pb2_grpc.AuditServiceStub(self._channel)
        self.artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(self._channel)
        self.watching = operation_service_pb2_grpc.OperationServiceStub(self._channel)
        self.operations: Any = operations_pb2_grpc.OperationsStub(self._channel)

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        *,
        timeout: float = UNARY_SECONDS,
    ) -> ResponseT:
        """Ask once.

        Raises:
            TrephineError: What the server answered, rebuilt.
        """
        call = self._begin(method.future, request, timeout)
        try:
            response: ResponseT = call.result()
        except grpc.RpcError as failure:
            raise error_of_call(failure) from failure
        finally:
            call.cancel()
        return response

    def stream(
        self,
        method: grpc.UnaryStreamMultiCallable[RequestT, ResponseT],
        request: RequestT,
        *,
        timeout: float | None = None,
    ) -> Iterator[ResponseT]:
        """Ask, and take the answers as they come. Closing the iterator ends the call.

        Raises:
            TrephineError: What the server answered, rebuilt.
        """
        call = self._begin(method, request, timeout)
        try:
            yield from call
        except grpc.RpcError as failure:
            raise error_of_call(failure) from failure
        finally:
            call.cancel()

    def close(self) -> None:
        """Close the channel; calls that run on it end."""
        self._starter.shutdown(wait=False)
        self._channel.close()

    def _begin(self, method: Any, request: Any, timeout: float | None) -> Any:
        """Start a call on a thread that no signal reaches.

        Where Ctrl-C interrupts gRPC as it starts a call, the call's end is never noticed and every later
        wait on the channel is endless. Waiting for a call that was started may be interrupted.
        """
        start = partial(method, request, timeout=timeout, metadata=self.endpoint.metadata)
        return self._starter.submit(start).result()


def _open(endpoint: Endpoint) -> grpc.Channel:
    credentials = endpoint.credentials()
    if credentials is None:
        return grpc.insecure_channel(endpoint.address, options=OPTIONS)
    return grpc.secure_channel(endpoint.address, credentials, options=OPTIONS)

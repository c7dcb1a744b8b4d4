"""The sync connection: stubs, deadlines, errors. Written by hand, as its twin in `aio`."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import grpc
from google.longrunning import operations_pb2_grpc

from trephine.client.calls import Calls
from trephine.client.endpoint import UNARY_SECONDS, Endpoint
from trephine.client.leases import Lease
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


class Wire:
    """One channel with its stubs. Safe to use from several threads."""

    def __init__(self, endpoint: Endpoint, lease: Lease | None = None) -> None:
        self.endpoint = endpoint
        self.lease = lease
        """Of a local server: folders of this machine are shared through it."""
        self._calls = Calls(_open(endpoint))
        channel = self._calls.channel
        self.models = model_service_pb2_grpc.ModelServiceStub(channel)
        self.text = generation_service_pb2_grpc.GenerationServiceStub(channel)
        self.effects = intervention_service_pb2_grpc.InterventionServiceStub(channel)
        self.circuits = circuit_service_pb2_grpc.CircuitServiceStub(channel)
        self.replacements = replacement_service_pb2_grpc.ReplacementServiceStub(channel)
        self.features = feature_service_pb2_grpc.FeatureServiceStub(channel)
        self.edits = edit_service_pb2_grpc.EditServiceStub(channel)
        self.audits = audit_service_pb2_grpc.AuditServiceStub(channel)
        self.artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
        self.watching = operation_service_pb2_grpc.OperationServiceStub(channel)
        self.operations: Any = operations_pb2_grpc.OperationsStub(channel)

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
            ConnectionClosedError: After `close`.
        """
        return self._calls.ask(method, request, timeout=timeout, metadata=self.endpoint.metadata)

    def stream(
        self,
        method: grpc.UnaryStreamMultiCallable[RequestT, ResponseT],
        request: RequestT,
        *,
        timeout: float | None = None,
    ) -> Generator[ResponseT, None, None]:
        """Ask, and take the answers as they come. Closing the iterator ends the call.

        Raises:
            TrephineError: What the server answered, rebuilt.
            ConnectionClosedError: After `close`.
        """
        return self._calls.stream(method, request, timeout=timeout, metadata=self.endpoint.metadata)

    def pages(self, method: Any, request: Any) -> Iterator[Any]:
        """Every page of a list, one call each."""
        while True:
            page = self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def close(self) -> None:
        """Close the channel; calls that run on it end, and later ones are refused."""
        self._calls.close()


def _open(endpoint: Endpoint) -> grpc.Channel:
    credentials = endpoint.credentials()
    if credentials is None:
        return grpc.insecure_channel(endpoint.address, options=endpoint.options)
    return grpc.secure_channel(endpoint.address, credentials, options=endpoint.options)

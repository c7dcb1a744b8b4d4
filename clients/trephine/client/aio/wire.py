"""The awaited connection: stubs of grpc.aio, deadlines, errors. Written by hand, as its sync twin."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
from google.longrunning import operations_pb2_grpc

from trephine.client.endpoint import UNARY_SECONDS, Endpoint
from trephine.client.leases import Lease
from trephine.client.local_errors import CLOSED, ConnectionClosedError
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


class AsyncWire:
    """One channel with its stubs, bound to the event loop that it was made on."""

    # The stubs are typed for sync channels or for both, depending on the generator's version.
    models: Any
    text: Any
    effects: Any
    circuits: Any
    replacements: Any
    features: Any
    edits: Any
    audits: Any
    artifacts: Any
    watching: Any
    operations: Any

    def __init__(self, endpoint: Endpoint, lease: Lease | None = None) -> None:
        self.endpoint = endpoint
        self.lease = lease
        """Of a local server: folders of this machine are shared through it."""
        self._channel = _open(endpoint)
        self._closed = False
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
        self.operations = operations_pb2_grpc.OperationsStub(self._channel)

    async def call(self, method: Any, request: Any, *, timeout: float = UNARY_SECONDS) -> Any:
        """Ask once.

        Raises:
            TrephineError: What the server answered, rebuilt.
            ConnectionClosedError: After `close`.
        """
        self._check_open()
        try:
            return await method(request, timeout=timeout, metadata=self.endpoint.metadata)
        except grpc.RpcError as failure:
            raise error_of_call(failure) from failure

    async def stream(
        self, method: Any, request: Any, *, timeout: float | None = None
    ) -> AsyncGenerator[Any, None]:
        """Ask, and take the answers as they come. Closing the iterator ends the call.

        Raises:
            TrephineError: What the server answered, rebuilt.
            ConnectionClosedError: After `close`.
        """
        self._check_open()
        call = method(request, timeout=timeout, metadata=self.endpoint.metadata)
        try:
            async for response in call:
                yield response
        except grpc.RpcError as failure:
            raise error_of_call(failure) from failure
        finally:
            call.cancel()

    async def pages(self, method: Any, request: Any) -> AsyncIterator[Any]:
        """Every page of a list, one call each."""
        while True:
            page = await self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def close(self) -> None:
        """Close the channel; calls that run on it end, and later ones are refused."""
        self._closed = True
        await self._channel.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionClosedError(CLOSED)


def _open(endpoint: Endpoint) -> grpc.aio.Channel:
    credentials = endpoint.credentials()
    if credentials is None:
        return grpc.aio.insecure_channel(endpoint.address, options=endpoint.options)
    return grpc.aio.secure_channel(endpoint.address, credentials, options=endpoint.options)

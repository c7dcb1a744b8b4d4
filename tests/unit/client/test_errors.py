"""A caller sees typed errors, never grpc's."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import status_pb2

from tests.fakes.grpc_server import FakeService, rich_status
from trephine.client import Trephine, connect
from trephine.client.errors import (
    EmptyPromptError,
    InternalError,
    ModelNotFoundError,
    ServerUnreachableError,
    TrephineError,
    UnsupportedInterventionError,
)
from trephine.client.status import error_of_status


def test_reason_field_and_cause_arrive(trephine: Trephine):
    """ErrorInfo chooses the class, BadRequest the field; the RPC error stays as the cause."""
    with pytest.raises(EmptyPromptError) as caught:
        trephine.model("tiny").tokenize("")
    assert (caught.value.field, caught.value.reason) == ("text", "EMPTY_PROMPT")
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert not isinstance(caught.value, grpc.RpcError)


def test_status_without_details_is_still_typed(trephine: Trephine):
    """What a proxy or the transport says becomes the nearest error."""
    with pytest.raises(ServerUnreachableError, match="nobody home"):
        trephine.model("tiny").capabilities()


def test_nobody_at_the_address():
    """A port without a server is an error of ours that names the status."""
    gone = pytest.raises(
        ServerUnreachableError, match=r"\(UNAVAILABLE\): the server has ended .* connect\(\) again"
    )
    with connect("127.0.0.1:1") as trephine, gone:
        trephine.models.list()


def test_unknown_reasons_become_internal_errors():
    """A newer server's reason is no crash, and keeps message and context."""
    status = rich_status(grpc.StatusCode.ABORTED, "FROM_THE_FUTURE", "wait", seconds="3")
    error = error_of_status(status)
    assert type(error) is InternalError
    assert (error.message, error.context) == ("wait", {"seconds": "3"})


def test_operation_errors_without_details_are_mapped_by_code():
    """The error of a failed operation may be a bare status."""
    status = status_pb2.Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="gone")
    assert error_of_status(status).kind.value == "not_found"


def test_families_are_kept():
    """Catching a family catches its members."""
    status = rich_status(grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED_INTERVENTION", "no", field="mode.heads")
    error = error_of_status(status)
    assert isinstance(error, UnsupportedInterventionError)
    assert isinstance(error, TrephineError)
    assert error.field == "mode.heads"


def test_unknown_models_and_tokens_travel(fake: FakeService, trephine: Trephine):
    """The bearer token is on every call, and an unknown model is its own error."""
    with pytest.raises(ModelNotFoundError):
        trephine.models.get("nothing")
    assert fake.metadata[-1]["authorization"] == "Bearer secret"

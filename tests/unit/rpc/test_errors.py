"""Errors on the wire."""

from __future__ import annotations

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status

from trephine.domain import errors as domain
from trephine.domain.errors import ErrorKind, error_types
from trephine.rpc.errors import CODES, code_of, status_of


def details(status: Status, kind: type) -> list:
    found = []
    for box in status.details:
        message = kind()
        if box.Unpack(message):
            found.append(message)
    return found


def test_every_kind_has_a_status():
    """The table is total over kinds, and no kind is mapped to success or to the vague UNKNOWN."""
    assert set(CODES) == set(ErrorKind)
    assert not {grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN} & set(CODES.values())


@pytest.mark.parametrize("error_type", error_types(), ids=lambda one: one.reason)
def test_every_error_carries_one_error_info(error_type: type[domain.TrephineError]):
    """AIP-193: each status has its code, its message and exactly one ErrorInfo of this domain."""
    error = error_type("do this instead", field="rows[0].prompt", n=3, share=0.5, flag=True)
    status = status_of(error)
    (info,) = details(status, ErrorInfo)
    assert (status.code, status.message) == (code_of(error).value[0], "do this instead")
    assert (info.reason, info.domain) == (error_type.reason, "trephine")
    assert info.metadata == {"field": "rows[0].prompt", "n": "3", "share": "0.5", "flag": "True"}


def test_fields_become_bad_request():
    """A named field is a BadRequest violation with its path."""
    (bad,) = details(status_of(domain.InvalidRequestError("no", field="rows[2].prompt")), BadRequest)
    assert [one.field for one in bad.field_violations] == ["rows[2].prompt"]
    assert not details(status_of(domain.InvalidRequestError("no")), BadRequest)


def test_only_what_may_be_retried_says_when():
    """Lost engines, draining and full queues carry RetryInfo; an over-budget call must change instead."""
    for error_type in (domain.EngineLostError, domain.DrainingError, domain.QueueFullError):
        (retry,) = details(status_of(error_type("later")), RetryInfo)
        assert retry.retry_delay.ToTimedelta().total_seconds() > 0
    assert not details(status_of(domain.OverBudgetError("less")), RetryInfo)


def test_missing_resources_are_named():
    """NOT_FOUND carries ResourceInfo."""
    error = domain.ResourceNotFoundError("gone", name="circuits/x")
    (info,) = details(status_of(error), ResourceInfo)
    assert (info.resource_type, info.resource_name) == ("circuits", "circuits/x")


def test_status_fits_into_trailing_metadata():
    """However long message and context are, the status stays far below gRPC's 8 KiB of metadata."""
    context = {f"key{n}": "😀" * 5000 for n in range(50)}
    error = domain.InvalidRequestError("é" * 100_000, field="f" * 10_000, **context)
    data = status_of(error).SerializeToString()
    assert len(data) < 7000
    assert Status.FromString(data).message.startswith("ééé")


def test_surrogates_in_messages_are_carried():
    """A message that quotes half an emoji still becomes a status."""
    assert "?" in status_of(domain.InvalidRequestError("got '\ud83d'", token="\ud83d")).message

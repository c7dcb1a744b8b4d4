"""The client's errors mirror the service's."""

from __future__ import annotations

import pytest

from trephine.client import errors as client
from trephine.domain import errors as domain

ONLY_CLIENT = {
    "SERVER_UNREACHABLE",
    "HANDSHAKE_FAILED",
    "CONNECTION_CLOSED",
    "SERVER_START_FAILED",
    "SERVICE_MISSING",
    "LOCAL_FILE",
    "SIGNATURE_UNCHECKED",
    "BASELINE_INVALID",
}


@pytest.mark.parametrize("theirs", domain.error_types(), ids=lambda kind: kind.reason)
def test_every_error_has_a_twin(theirs: type[domain.TrephineError]):
    """Same reason, name, kind and family."""
    ours = client.error_type(theirs.reason)
    assert ours.reason == theirs.reason
    assert ours.__name__ == theirs.__name__
    assert ours.kind.value == theirs.kind.value
    assert [base.__name__ for base in ours.__mro__] == [base.__name__ for base in theirs.__mro__]


def test_the_client_adds_only_its_own():
    """Errors that only the client knows are listed here, so that none is forgotten in the service."""
    theirs = {kind.reason for kind in domain.error_types()}
    assert {kind.reason for kind in client.error_types()} - theirs == ONLY_CLIENT


def test_kinds_are_the_same():
    """Exit codes hang on kinds."""
    assert {kind.value for kind in client.ErrorKind} == {kind.value for kind in domain.ErrorKind}

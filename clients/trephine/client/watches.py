"""Watching an operation: what its watcher is told, and how long it waits before it takes a lost line up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from trephine.client.decoding import decode
from trephine.client.errors import DeadlinePassedError, ServerUnreachableError
from trephine.client.types import OperationMetadata, PartialCircuit, Progress
from trephine.v1 import operation_service_pb2

OnProgress = Callable[[Progress], None]
OnPartial = Callable[[PartialCircuit], None]

RECONNECT_PAUSES = (0.2, 0.5, 1.0, 2.0, 3.0, 4.0)
"""Seconds between attempts to resume a watch; about ten in all, then the error is the caller's."""


def seconds_left(name: str, ends: float | None) -> float | None:
    """What is left of a time limit.

    Raises:
        DeadlinePassedError: If nothing is.
    """
    if ends is None:
        return None
    left = ends - time.monotonic()
    if left <= 0:
        raise DeadlinePassedError(f"{name} is not done yet; it goes on, wait for it again")
    return left


def next_pause(name: str, pauses: Iterator[float], failure: Exception | None) -> float:
    """How long to wait before a watch is resumed.

    Raises:
        ServerUnreachableError: If all attempts are used up.
    """
    seconds = next(pauses, None)
    if seconds is None:
        raise ServerUnreachableError(
            f"the server did not come back while {name} ran; it is durable and resumes when the server "
            f"starts again: trephine operations wait {name}"
        ) from failure
    return seconds


def metadata_of(operation: Any) -> OperationMetadata:
    """The metadata of a `google.longrunning.Operation`."""
    packed = operation_service_pb2.OperationMetadata()
    operation.metadata.Unpack(packed)
    return decode(OperationMetadata, packed)

"""Asking a state folder's server whether it serves, for health checks of containers."""

from __future__ import annotations

from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from trephine.server import address

_SECONDS = 5


def is_serving(state: Path) -> bool:
    """True if `server.json` names a server that says SERVING."""
    found = address.find(state)
    if found is None:
        return False
    with grpc.insecure_channel(found.address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_SECONDS
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

"""Artifacts."""

from __future__ import annotations

import re

from trephine.domain.artifacts import ArtifactInfo
from trephine.domain.errors import InvalidRequestError
from trephine.rpc.wire.fields import clean, printable, qualified
from trephine.v1 import artifact_service_pb2 as pb

_DIGEST = re.compile(r"[0-9a-f]{64}")


def digest_from_wire(name: str, field: str = "name") -> str:
    """Read `artifacts/<sha256>`.

    Raises:
        InvalidRequestError: If it is anything else.
    """
    prefix, _, digest = name.partition("/")
    if prefix != "artifacts" or not _DIGEST.fullmatch(digest):
        raise InvalidRequestError(
            f"{field} must be artifacts/ and 64 hexadecimal digits, got {printable(name)!r}", field=field
        )
    return digest


def is_digest(text: str) -> bool:
    """True for 64 lower case hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def artifact_to_wire(info: ArtifactInfo) -> pb.Artifact:
    """Write a stored artifact."""
    return pb.Artifact(
        name=qualified("artifacts", info.sha256),
        size=info.size,
        media_type=clean(info.media_type),
        create_time=clean(info.create_time),
    )

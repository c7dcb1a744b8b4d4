"""Content-addressed store."""

from __future__ import annotations

from collections.abc import AsyncIterator

from trephine.domain.artifacts import ArtifactInfo
from trephine.domain.errors import InternalError


class ArtifactStore:
    """Immutable bytes under their digest. Implements `domain.ports.ArtifactStore`."""

    async def put(self, data: bytes, *, media_type: str) -> ArtifactInfo:
        """Store bytes."""
        raise InternalError("not available yet")

    async def put_stream(
        self, chunks: AsyncIterator[bytes], *, media_type: str, expected_sha256: str | None
    ) -> ArtifactInfo:
        """Store a stream."""
        raise InternalError("not available yet")

    async def stat(self, sha256: str) -> ArtifactInfo:
        """Describe."""
        raise InternalError("not available yet")

    async def read(self, sha256: str) -> bytes:
        """Read whole."""
        raise InternalError("not available yet")

    def chunks(self, sha256: str, *, offset: int = 0, chunk_bytes: int = 1 << 20) -> AsyncIterator[bytes]:
        """Read in pieces."""
        raise InternalError("not available yet")

    async def list(self) -> tuple[ArtifactInfo, ...]:
        """Newest first."""
        raise InternalError("not available yet")

    async def delete(self, sha256: str) -> None:
        """Forget one."""
        raise InternalError("not available yet")

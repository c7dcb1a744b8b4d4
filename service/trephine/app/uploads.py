"""Resumable uploads."""

from __future__ import annotations

from trephine.domain.artifacts import ArtifactInfo
from trephine.domain.errors import InternalError


class Uploads:
    """Uploads that survive lost connections and killed servers."""

    async def committed(self, upload_id: str) -> int:
        """Bytes stored durably so far; 0 for an unknown upload."""
        raise InternalError("not available yet")

    async def append(self, upload_id: str, *, offset: int, data: bytes, media_type: str = "") -> int:
        """Add a piece at the committed offset; return the new committed offset."""
        raise InternalError("not available yet")

    async def finish(self, upload_id: str, *, sha256: str) -> ArtifactInfo:
        """Verify the digest and store the artifact."""
        raise InternalError("not available yet")

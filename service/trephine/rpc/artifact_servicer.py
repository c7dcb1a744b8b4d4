"""ArtifactService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

from google.protobuf.empty_pb2 import Empty

from trephine.app.service import Service
from trephine.domain.errors import InvalidRequestError, MessageTooLargeError
from trephine.rpc.calls import Context
from trephine.rpc.paging import page
from trephine.rpc.wire.artifacts import artifact_to_wire, digest_from_wire, is_digest
from trephine.rpc.wire.fields import at_least
from trephine.v1 import artifact_service_pb2 as pb
from trephine.v1.artifact_service_pb2_grpc import ArtifactServiceServicer

LARGEST_PIECE = 1 << 20
_READ_PIECE = 1 << 18
"""Small enough that other calls are answered between two pieces."""


class ArtifactServicer(ArtifactServiceServicer):
    """Immutable bytes, addressed by their content."""

    def __init__(self, service: Service) -> None:
        self._artifacts = service.artifacts
        self._uploads = service.uploads

    async def Write(
        self, request_iterator: AsyncIterator[pb.WriteRequest], context: Context
    ) -> pb.WriteResponse:
        """Store bytes; a message without data asks how much of an upload is committed."""
        upload, committed = "", 0
        async for piece in request_iterator:
            upload = _same_upload(upload, piece)
            if piece.data:
                committed = await self._append(upload, piece)
            if piece.finish:
                return await self._finish(upload, piece)
        if not upload:
            raise InvalidRequestError("the stream held no message", field="upload_id")
        return pb.WriteResponse(committed=committed or await self._uploads.committed(upload))

    async def Read(self, request: pb.ReadRequest, context: Context) -> AsyncIterator[pb.ReadResponse]:
        """Read bytes from an offset."""
        digest, offset = digest_from_wire(request.name), at_least(request.offset, 0, "offset")
        info = await self._artifacts.stat(digest)
        if offset > info.size:
            raise InvalidRequestError(
                f"offset {offset} is behind the end, the artifact has {info.size} bytes", field="offset"
            )
        async for data in self._artifacts.chunks(digest, offset=offset, chunk_bytes=_READ_PIECE):
            yield pb.ReadResponse(offset=offset, data=data)
            offset += len(data)

    async def Stat(self, request: pb.StatRequest, context: Context) -> pb.Artifact:
        """Describe one artifact."""
        return artifact_to_wire(await self._artifacts.stat(digest_from_wire(request.name)))

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        """List stored artifacts, newest first."""
        found = page(
            await self._artifacts.list(),
            size=request.page_size,
            token=request.page_token,
            question=("ListArtifacts",),
            key=lambda info: info.sha256,
        )
        artifacts = [artifact_to_wire(info) for info in found.items]
        return pb.ListResponse(artifacts=artifacts, next_page_token=found.next_token)

    async def Delete(self, request: pb.DeleteRequest, context: Context) -> Empty:
        """Forget one."""
        await self._artifacts.delete(digest_from_wire(request.name))
        return Empty()

    async def _append(self, upload: str, piece: pb.WriteRequest) -> int:
        if len(piece.data) > LARGEST_PIECE:
            raise MessageTooLargeError(f"send at most {LARGEST_PIECE} bytes in one piece", field="data")
        offset = at_least(piece.offset, 0, "offset")
        return await self._uploads.append(upload, offset=offset, data=piece.data, media_type=piece.media_type)

    async def _finish(self, upload: str, piece: pb.WriteRequest) -> pb.WriteResponse:
        if not is_digest(piece.sha256):
            raise InvalidRequestError("the last piece needs the sha256 of the whole", field="sha256")
        info = await self._uploads.finish(upload, sha256=piece.sha256)
        return pb.WriteResponse(committed=info.size, artifact=artifact_to_wire(info))


def _same_upload(upload: str, piece: pb.WriteRequest) -> str:
    try:
        given = str(UUID(piece.upload_id))
    except ValueError as error:
        raise InvalidRequestError("upload_id must be a UUID", field="upload_id") from error
    if upload and given != upload:
        raise InvalidRequestError("one stream carries one upload", field="upload_id")
    return given

"""Letting a local server read what lies on this machine."""

from __future__ import annotations

from trephine.client.aio.blocking import run_blocking
from trephine.client.errors import InvalidRequestError
from trephine.client.leases import Lease
from trephine.client.sources import Source


async def shared(source: Source, lease: Lease | None) -> str:
    """Let a local server read the folder, if it is one, and return what a request names.

    Args:
        source: A name or a folder.
        lease: Of the local server; None: the server is elsewhere.

    Raises:
        InvalidRequestError: If it is a folder and the server is elsewhere: paths of this machine mean nothing
            there.
        PathDeniedError: If the server refuses it.
    """
    if source.folder is not None:
        if lease is None:
            raise InvalidRequestError(
                f"a named server {source.kind.elsewhere}; leave --server out to open a folder of this "
                "machine",
                field="source",
            )
        await run_blocking(source.kind.share, lease, source.folder)
    return source.source

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from trephine.client.aio.trephine import AsyncTrephine
from trephine.client.aio.wire import AsyncWire
from trephine.client.connection import open_endpoint


async def connect(
    server: str | None = None,
    *,
    token: str | None = None,
    state: str | os.PathLike[str] | None = None,
    model_roots: Sequence[str | os.PathLike[str]] = (),
    root_certificates: str | os.PathLike[str] | None = None,
) -> AsyncTrephine:
    """Open a connection; the arguments and errors are those of `trephine.client.connect`."""
    endpoint, lease = await asyncio.to_thread(
        open_endpoint, server, token, state, model_roots, root_certificates
    )
    return AsyncTrephine(AsyncWire(endpoint, lease), lease)

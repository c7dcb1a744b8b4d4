from __future__ import annotations

import os
from collections.abc import Sequence

from trephine.client.aio.blocking import run_blocking
from trephine.client.aio.trephine import AsyncTrephine
from trephine.client.aio.wire import AsyncWire
from trephine.client.server_choice import open_endpoint


async def connect(
    server: str | None = None,
    *,
    token: str | None = None,
    state: str | os.PathLike[str] | None = None,
    model_roots: Sequence[str | os.PathLike[str]] = (),
    root_certificates: str | os.PathLike[str] | None = None,
) -> AsyncTrephine:
    """Open a connection.

    Args:
        server: `host:port` or `unix:/path`. Unset: the state folder's server, started if need be;
            it ends with its last client.
        token: Bearer token of a named server.
        state: State folder of a local server; unset: `$TREPHINE_STATE` or the user's own.
        model_roots: Further folders that a local server may load models from.
        root_certificates: PEM file of the authorities to trust; unset: the system's. Connections that
            leave this machine always use TLS.

    Raises:
        InvalidRequestError: If the address is none, or a named server is to have `state` or `model_roots`.
        ServiceMissingError: If a local server is needed and the service is not installed.
        ServerStartError: If it does not come up.
    """
    endpoint, lease = await run_blocking(open_endpoint, server, token, state, model_roots, root_certificates)
    return AsyncTrephine(AsyncWire(endpoint, lease), lease)

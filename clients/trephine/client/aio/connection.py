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
    certificate_name: str | None = None,
    insecure_connect: bool = False,
) -> AsyncTrephine:
    """Open a connection.

    Args:
        server: `host:port` or `unix:/path`. Unset: the state folder's server, started if need be;
            it ends with its last client.
        token: Bearer token of a named server.
        state: State folder of a local server; unset: `$TREPHINE_STATE` or the user's own.
        model_roots: Further folders that a local server may load models from.
        root_certificates: PEM file of the authorities to trust; unset: the system's. Connections that
            leave this machine use TLS. So do those to a loopback address if this or `certificate_name` is
            given: the server may be at the other end of a tunnel, or of a container's published port.
        certificate_name: The name that the named server's certificate is for, where that is not the host
            of its address.
        insecure_connect: Go without TLS to a named server beyond this machine that was started with
            `--insecure-listen`: the token, the prompts and the answers can be read on the way.

    Raises:
        InvalidRequestError: If the address is none, a named server is to have `state` or `model_roots`, or a
            local one a certificate, or if what is said about TLS contradicts itself.
        LocalFileError: If `root_certificates` cannot be read, or holds no certificate.
        ServiceMissingError: If a local server is needed and the service is not installed.
        ServerStartError: If it does not come up.
    """
    endpoint, lease = await run_blocking(
        open_endpoint,
        server,
        token,
        state,
        model_roots,
        root_certificates,
        certificate_name,
        insecure_connect,
    )
    return AsyncTrephine(AsyncWire(endpoint, lease), lease)

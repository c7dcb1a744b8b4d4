from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from trephine.client.endpoint import Endpoint, parse_endpoint
from trephine.client.errors import InvalidRequestError
from trephine.client.leases import Lease
from trephine.client.server_process import default_state, find_or_start
from trephine.client.trephine import Trephine
from trephine.client.wire import Wire


def connect(
    server: str | None = None,
    *,
    token: str | None = None,
    state: str | os.PathLike[str] | None = None,
    model_roots: Sequence[str | os.PathLike[str]] = (),
    root_certificates: str | os.PathLike[str] | None = None,
) -> Trephine:
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
        ServiceMissingError: If a local server is needed and the service is not installed.
        ServerStartError: If it does not come up.
    """
    endpoint, lease = open_endpoint(server, token, state, model_roots, root_certificates)
    return Trephine(Wire(endpoint, lease), lease)


def open_endpoint(
    server: str | None,
    token: str | None,
    state: str | os.PathLike[str] | None,
    model_roots: Sequence[str | os.PathLike[str]],
    root_certificates: str | os.PathLike[str] | None,
) -> tuple[Endpoint, Lease | None]:
    """Where to connect to, and the lease if it is a local server's."""
    if server is not None:
        if state is not None or model_roots:
            raise InvalidRequestError(
                "state and model_roots are a local server's; a named server has its own", field="server"
            )
        certificates = Path(root_certificates) if root_certificates is not None else None
        return parse_endpoint(server, token=token, root_certificates=certificates), None
    folder = Path(state) if state is not None else default_state()
    local = find_or_start(folder.absolute(), [Path(root) for root in model_roots])
    return Endpoint(address=local.address), local.lease

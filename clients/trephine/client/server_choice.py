"""Which server a connection is for: one that is named, or the state folder's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from trephine.client.endpoint import Endpoint, parse_endpoint
from trephine.client.errors import InvalidRequestError
from trephine.client.leases import Lease
from trephine.client.server_process import default_state, find_or_start


def open_endpoint(
    server: str | None,
    token: str | None,
    state: str | os.PathLike[str] | None,
    model_roots: Sequence[str | os.PathLike[str]],
    root_certificates: str | os.PathLike[str] | None,
    certificate_name: str | None = None,
    insecure_connect: bool = False,
) -> tuple[Endpoint, Lease | None]:
    """Where to connect to, and the lease if it is a local server's."""
    if server is not None:
        if state is not None or model_roots:
            raise InvalidRequestError(
                "state and model_roots are a local server's; a named server has its own", field="server"
            )
        certificates = Path(root_certificates) if root_certificates is not None else None
        endpoint = parse_endpoint(
            server,
            token=token,
            root_certificates=certificates,
            certificate_name=certificate_name,
            insecure=insecure_connect,
        )
        return endpoint, None
    if root_certificates is not None or certificate_name is not None or insecure_connect:
        raise InvalidRequestError(
            "root_certificates, certificate_name and insecure_connect are for a named server; name it, as "
            "HOST:PORT, or leave them out: a local one is reached over a socket of this machine",
            field="server",
        )
    if state is not None and not os.fspath(state).strip():
        raise InvalidRequestError(
            "state is empty and names no folder; leave it out for your own, or write . for the current one",
            field="state",
        )
    folder = Path(state) if state is not None else default_state()
    local = find_or_start(folder.absolute(), [Path(root) for root in model_roots])
    return Endpoint(address=local.address), local.lease

"""Where a server is, and with which transport it is reached."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc

from trephine.client.errors import InvalidRequestError, LocalFileError

REQUEST_BYTES = 8 * 1024 * 1024
"""The largest message that the service takes."""
MESSAGE_BYTES = REQUEST_BYTES + 1024 * 1024
"""With headroom, so that the service's error is the one seen."""

UNARY_SECONDS = 600.0
"""Deadline of a call that answers once. Long work is an operation and has none."""

OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Lost connections to a server that restarts are retried soon, not after gRPC's default minute.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.primary_user_agent", "trephine-client"),
    # A proxy of the environment never stands between a command and its own machine's socket.
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An address, who asks, and whether the connection is encrypted."""

    address: str
    """`unix:/path` or `host:port`."""
    token: str | None = None
    root_certificates: Path | None = None
    """PEM file of the authorities to trust; None means the system's."""

    @property
    def is_local(self) -> bool:
        """True for Unix sockets and loopback addresses: these need no TLS."""
        if self.address.startswith("unix:"):
            return True
        host = self.address.rpartition(":")[0].strip("[]")
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def credentials(self) -> grpc.ChannelCredentials | None:
        """TLS credentials, or None where the connection stays on this machine.

        Raises:
            LocalFileError: If the certificate file cannot be read.
        """
        if self.is_local:
            return None
        try:
            pem = self.root_certificates.read_bytes() if self.root_certificates else None
        except OSError as failure:
            raise LocalFileError(f"cannot read {self.root_certificates}: {failure.strerror}") from failure
        return grpc.ssl_channel_credentials(root_certificates=pem)


def parse_endpoint(server: str, *, token: str | None, root_certificates: Path | None) -> Endpoint:
    """Read an address as people type it.

    Raises:
        InvalidRequestError: If it is neither `host:port` nor `unix:/path`.
    """
    host, _, port = server.rpartition(":")
    if not server.startswith("unix:") and (not host or not port.isdigit()):
        raise InvalidRequestError(
            f"{server!r} is no server address; give HOST:PORT or unix:/PATH", field="server"
        )
    return Endpoint(address=server, token=token, root_certificates=root_certificates)

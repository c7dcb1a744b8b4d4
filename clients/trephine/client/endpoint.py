"""Where a server is, and with which transport it is reached."""

from __future__ import annotations

import ipaddress
import ssl
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
    certificate_name: str | None = None
    """The name that the server's certificate is for; None means the address's host."""
    insecure: bool = False
    """Go without TLS to an address beyond this machine."""

    @property
    def is_local(self) -> bool:
        """True for Unix sockets and loopback addresses: these need no TLS."""
        if self.is_socket:
            return True
        host = self.address.rpartition(":")[0].strip("[]")
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def is_socket(self) -> bool:
        """True for Unix sockets, which never have TLS."""
        return self.address.startswith("unix:")

    @property
    def is_encrypted(self) -> bool:
        """True where TLS is spoken: beyond this machine, and wherever a certificate is to be checked."""
        asked_for = self.root_certificates is not None or self.certificate_name is not None
        return asked_for or not (self.is_local or self.insecure)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    @property
    def options(self) -> tuple[tuple[str, int | str], ...]:
        """Of the channel."""
        if self.certificate_name is None:
            return OPTIONS
        return (*OPTIONS, ("grpc.ssl_target_name_override", self.certificate_name))

    def credentials(self) -> grpc.ChannelCredentials | None:
        """TLS credentials, or None where the connection is not encrypted.

        Raises:
            LocalFileError: If the certificate file cannot be read, or holds no certificate.
        """
        if not self.is_encrypted:
            return None
        pem = None if self.root_certificates is None else _certificates(self.root_certificates)
        return grpc.ssl_channel_credentials(root_certificates=pem)


def parse_endpoint(
    server: str,
    *,
    token: str | None,
    root_certificates: Path | None,
    certificate_name: str | None = None,
    insecure: bool = False,
) -> Endpoint:
    """Read an address as people type it.

    Raises:
        InvalidRequestError: If it is neither `host:port` nor `unix:/path`, or contradicts itself about TLS.
    """
    host, _, port = server.rpartition(":")
    if not server.startswith("unix:") and (not host or not port.isdigit()):
        raise InvalidRequestError(
            f"{server!r} is no server address; give HOST:PORT or unix:/PATH", field="server"
        )
    endpoint = Endpoint(
        address=server,
        token=token,
        root_certificates=root_certificates,
        certificate_name=certificate_name,
        insecure=insecure,
    )
    _check_transport(endpoint)
    return endpoint


def _check_transport(endpoint: Endpoint) -> None:
    if endpoint.certificate_name is not None and not endpoint.certificate_name.strip():
        raise InvalidRequestError(
            "certificate_name is empty; write the host that the certificate is for, or leave it out",
            field="certificate_name",
        )
    if endpoint.is_encrypted and endpoint.insecure:
        raise InvalidRequestError(
            "insecure_connect goes without TLS, so no certificate is checked; leave out either it or "
            "root_certificates and certificate_name",
            field="insecure_connect",
        )
    if endpoint.is_encrypted and endpoint.is_socket:
        raise InvalidRequestError(
            "a Unix socket has no TLS; leave out root_certificates and certificate_name, or give HOST:PORT",
            field="server",
        )


def _certificates(file: Path) -> bytes:
    try:
        pem = file.read_bytes()
    except OSError as failure:
        raise LocalFileError(f"cannot read {file}: {failure.strerror}") from failure
    try:
        # gRPC itself would only say, at the first call, that nobody can be reached.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as failure:
        raise LocalFileError(
            f"{file} holds no certificate that can be read; root_certificates is a PEM file, with "
            "-----BEGIN CERTIFICATE-----, of the authorities to trust"
        ) from failure
    return pem

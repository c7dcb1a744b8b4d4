"""The gRPC server: options, credentials, ports."""

from __future__ import annotations

from pathlib import Path

import grpc
from grpc_health.v1.health import aio as health

from trephine.app.service import Service
from trephine.domain.errors import InvalidRequestError
from trephine.rpc.interceptors import BearerToken, CallInterceptor, Drain
from trephine.rpc.registration import register
from trephine.server.secrets_file import read_or_make_token
from trephine.server.settings import Settings, split_listen

MESSAGE_BYTES = 8 << 20
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    # Clients ping every 30 s during long calls; the default of 300 s would answer with GOAWAY.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A client that vanished without closing its connection is noticed within a minute and a half.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A second server on the same port is an error, not a lottery.
    ("grpc.so_reuseport", 0),
)


class Listener:
    """A gRPC server with every servicer, on a Unix socket and perhaps a TCP port."""

    def __init__(self, service: Service, settings: Settings) -> None:
        """Build the server without opening anything.

        Raises:
            InvalidRequestError: If the token file is readable by others.
        """
        self._settings = settings
        self.drain = Drain()
        token = BearerToken(None if settings.listen is None else read_or_make_token(_token_file(settings)))
        interceptor = CallInterceptor(token=token, drain=self.drain, log_content=settings.log_content)
        self.server = grpc.aio.server(interceptors=(interceptor,), options=OPTIONS)
        self.health: health.HealthServicer = register(self.server, service)

    def bind(self, socket: Path) -> str | None:
        """Open the Unix socket, and the TCP port if one is set; return that one's address.

        Raises:
            InvalidRequestError: If the address cannot be had, or the certificate cannot be read.
        """
        try:
            self.server.add_insecure_port(f"unix:{socket}")
            return None if self._settings.listen is None else self._bind_tcp(self._settings.listen)
        except RuntimeError as error:
            raise InvalidRequestError(f"cannot listen: {error}", field="listen") from error

    def _bind_tcp(self, listen: str) -> str:
        credentials = _credentials(self._settings)
        if credentials is None:
            port = self.server.add_insecure_port(listen)
        else:
            port = self.server.add_secure_port(listen, credentials)
        host, _ = split_listen(listen)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _token_file(settings: Settings) -> Path:
    return settings.token_file or settings.state / "token"


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    try:
        pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
    except OSError as error:
        raise InvalidRequestError(f"cannot read the certificate or key: {error}", field="tls_cert") from error
    return grpc.ssl_server_credentials([pair])

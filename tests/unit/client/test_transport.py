"""When a connection is encrypted, whose certificates count, and what a failed handshake says."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from tests.self_signed import self_signed
from trephine.client import Trephine, aio, connect
from trephine.client.endpoint import Endpoint, parse_endpoint
from trephine.client.errors import (
    ConnectionClosedError,
    HandshakeFailedError,
    InvalidRequestError,
    LocalFileError,
    ServerUnreachableError,
)
from trephine.client.status import error_of_call

TORN = """-----BEGIN CERTIFICATE-----
MIIBfzCCASWgAwIBAgIUbKqsm0xH6xkkDY0O1nbAh3p6WFAwCgYIKoZIzj0EAwIw
-----END CERTIFICATE-----
"""
REFUSED = "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:7311: "


class Unavailable(grpc.RpcError):
    """What a stub raises where no server answers."""

    def __init__(self, details: str) -> None:
        super().__init__(details)
        self._details = details

    def code(self) -> grpc.StatusCode:
        """The status of every failed connection."""
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        """The transport's words."""
        return self._details


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return self_signed(tmp_path)[0]


def endpoint(
    server: str, certificates: Path | None = None, name: str | None = None, insecure: bool = False
) -> Endpoint:
    return parse_endpoint(
        server, token=None, root_certificates=certificates, certificate_name=name, insecure=insecure
    )


def test_loopback_is_encrypted_where_a_certificate_is_to_be_checked(authority: Path):
    """A tunnel or a published port ends on loopback, and the server behind it may have TLS."""
    assert endpoint("localhost:1").credentials() is None
    assert endpoint("localhost:1", authority).credentials() is not None
    assert endpoint("127.0.0.1:1", name="trephine.example.org").credentials() is not None


def test_a_certificates_name_takes_the_place_of_the_host():
    """It is what gRPC compares with the certificate."""
    named = ("grpc.ssl_target_name_override", "trephine.example.org")
    assert named in endpoint("localhost:1", name=named[1]).options
    assert named[0] not in dict(endpoint("localhost:1").options)


def test_only_spelled_out_does_a_connection_leave_the_machine_without_tls():
    """The counterpart of a server's --insecure-listen."""
    assert endpoint("10.0.0.1:1").credentials() is not None
    assert endpoint("10.0.0.1:1", insecure=True).credentials() is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"server": "10.0.0.1:1", "insecure_connect": True, "certificate_name": "a"}, "leave out either"),
        ({"server": "unix:/run/x.sock", "certificate_name": "a"}, "a Unix socket has no TLS"),
        ({"server": "10.0.0.1:1", "certificate_name": " "}, "certificate_name is empty"),
        ({"certificate_name": "a"}, "are for a named server"),
        ({"root_certificates": "/nowhere"}, "are for a named server"),
        ({"insecure_connect": True}, "are for a named server"),
    ],
)
def test_what_contradicts_itself_is_refused(given: dict[str, str], words: str):
    """Nothing that is said about TLS is left aside in silence."""
    with pytest.raises(InvalidRequestError, match=words):
        connect(**given)


@pytest.mark.parametrize(
    ("holds", "words"),
    [
        (None, "No such file"),
        ("", "holds no certificate"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "holds no certificate"),
        (TORN, "holds no certificate that can be read"),
    ],
)
@pytest.mark.parametrize("server", ["localhost:1", "10.0.0.1:1"])
def test_a_file_without_a_certificate_is_named(server: str, holds: str | None, words: str, tmp_path: Path):
    """Wherever the server is: a path with a typing error never looks like success."""
    file = tmp_path / "authority.pem"
    if holds is not None:
        file.write_text(holds)
    with pytest.raises(LocalFileError, match=rf"authority\.pem.*{words}"):
        connect(server, root_certificates=file)


@pytest.mark.parametrize(
    ("details", "words"),
    [
        (
            "Tls handshake failed: SSL_ERROR_SSL: WRONG_VERSION_NUMBER",
            "there speaks without TLS.*insecure_con",
        ),
        (
            "Tls handshake failed: CERTIFICATE_VERIFY_FAILED: self signed",
            "no authority.*as root_certificates",
        ),
        ("check failed: Hostname Verification Check failed.", "another host.* as certificate_name"),
        ("Handshake read failed (Socket closed)", "the TLS handshake failed. Check"),
        ("Socket closed", "closed the connection before it answered.*give root_certificates"),
    ],
)
def test_a_failed_handshake_has_its_own_words(details: str, words: str):
    """Somebody is there: to start a local server, or to wait, is no advice."""
    error = error_of_call(Unavailable(REFUSED + details))
    assert isinstance(error, HandshakeFailedError)
    assert words.split(".*")[0] in error.message
    assert words.split(".*")[-1] in error.message
    assert "starts a local one" not in error.message


@pytest.mark.parametrize("details", [REFUSED + "Connection refused", "Socket closed"])
def test_other_lost_connections_keep_theirs(details: str):
    """A port that nobody listens at, and a connection that was lost after it had been used."""
    error = error_of_call(Unavailable(details))
    assert type(error) is ServerUnreachableError
    assert "starts a local one" in error.message


def test_a_call_after_closing_is_refused_by_name(trephine: Trephine):
    """Not by gRPC's own ValueError."""
    lost = trephine.model("tiny")
    trephine.close()
    for ask in (trephine.models.list, lambda: lost.tokenize("a"), lost.generate("a").result):
        with pytest.raises(ConnectionClosedError, match=r"was closed; connect\(\) opens another"):
            ask()
    trephine.close()


async def test_the_awaited_surface_refuses_in_the_same_words(address: str):
    """Not by gRPC's own UsageError."""
    trephine = await aio.connect(address, token="secret")
    lost = await trephine.model("tiny")
    await trephine.close()
    with pytest.raises(ConnectionClosedError, match=r"was closed; connect\(\) opens another"):
        await trephine.models.list()
    with pytest.raises(ConnectionClosedError, match=r"was closed; connect\(\) opens another"):
        await lost.generate("a").result()
    await trephine.close()

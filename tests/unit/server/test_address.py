"""server.json and the sockets' folder."""

from __future__ import annotations

import os
import tempfile

import pytest

from trephine.domain.errors import InvalidRequestError
from trephine.server import address
from trephine.server.address import ServerFile, SocketFolder
from trephine.server.secrets_file import read_or_make_token


def here(sockets: SocketFolder) -> ServerFile:
    return ServerFile(address=f"unix:{sockets.grpc}", lease=str(sockets.lease), pid=1, version="0")


def test_published_found_withdrawn(tmp_path):
    """server.json is 0600, is read back, and is gone after withdrawing; rubbish counts as absent."""
    sockets = SocketFolder()
    address.publish(tmp_path, here(sockets))
    assert (tmp_path / "server.json").stat().st_mode & 0o777 == 0o600
    assert address.find(tmp_path) == here(sockets)
    address.withdraw(tmp_path)
    assert address.find(tmp_path) is None
    (tmp_path / "server.json").write_text('{"pid": ')
    assert address.find(tmp_path) is None
    sockets.remove()


def test_sockets_lie_in_a_private_folder():
    """The folder is fresh, 0700, and short enough for the kernel."""
    first, second = SocketFolder(), SocketFolder()
    assert first.path != second.path
    assert first.path.stat().st_mode & 0o777 == 0o700
    assert len(os.fsencode(first.grpc)) <= 100
    first.remove()
    second.remove()
    assert not first.path.exists()


def test_long_temporary_folders_are_avoided(tmp_path, monkeypatch):
    """A TMPDIR whose path is too long for sockets is not used."""
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    sockets = SocketFolder()
    assert deep not in sockets.path.parents
    sockets.remove()


def test_leftovers_of_a_killed_server_are_swept(tmp_path):
    """The next owner removes the old file and the old sockets, and nothing that is not ours."""
    sockets = SocketFolder()
    address.publish(tmp_path, here(sockets))
    address.sweep(tmp_path)
    assert not sockets.path.exists()
    assert address.find(tmp_path) is None
    precious = tmp_path / "precious"
    precious.mkdir()
    other = ServerFile(address="unix:/x", lease=str(precious / "lease.sock"), pid=1, version="0")
    address.publish(tmp_path, other)
    address.sweep(tmp_path)
    assert precious.exists()


def test_tokens_are_made_once(tmp_path):
    """An absent token file is made 0600 and read the next time; a short token is refused."""
    token = read_or_make_token(tmp_path / "token")
    assert read_or_make_token(tmp_path / "token") == token
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    (tmp_path / "weak").touch(mode=0o600)
    (tmp_path / "weak").write_text("short\n")
    with pytest.raises(InvalidRequestError, match="at least 16"):
        read_or_make_token(tmp_path / "weak")

"""Settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from trephine.domain.errors import InvalidRequestError
from trephine.server.__main__ import main
from trephine.server.settings import is_loopback, load_settings


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    for name in ("TREPHINE_STATE", "TREPHINE_CACHE", "TREPHINE_GRACE_SECONDS"):
        monkeypatch.delenv(name, raising=False)


def refused(flags: dict, config: Path | None = None) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        load_settings(flags, config)
    return caught.value.message


def test_flags_win_over_environment_over_file(monkeypatch, tmp_path):
    """Each source hides the weaker ones, setting by setting."""
    config = tmp_path / "trephine.toml"
    config.write_text('grace_seconds = 1\nengine_threads = 1\nlog_level = "debug"\n')
    monkeypatch.setenv("TREPHINE_GRACE_SECONDS", "2")
    monkeypatch.setenv("TREPHINE_ENGINE_THREADS", "2")
    settings = load_settings({"grace_seconds": 3}, config)
    assert (settings.grace_seconds, settings.engine_threads, settings.log_level) == (3, 2, "debug")


def test_roots_in_the_environment_are_a_path_list(monkeypatch):
    """TREPHINE_MODEL_ROOTS is separated like PATH."""
    monkeypatch.setenv("TREPHINE_MODEL_ROOTS", "/a:/b c")
    assert load_settings({}, None).model_roots == (Path("/a"), Path("/b c"))


def test_state_and_cache_come_from_their_variables(monkeypatch):
    """TREPHINE_STATE and TREPHINE_CACHE move the default folders."""
    monkeypatch.setenv("TREPHINE_STATE", "/s")
    monkeypatch.setenv("TREPHINE_CACHE", "/c")
    settings = load_settings({}, None)
    assert (settings.state, settings.cache) == (Path("/s"), Path("/c"))


def test_unknown_settings_are_refused(tmp_path):
    """A misspelt setting in the file is an error, not silence."""
    config = tmp_path / "trephine.toml"
    config.write_text("grace_second = 1\n")
    assert "grace_second: there is no such setting" in refused({}, config)
    assert "no settings file" in refused({}, tmp_path / "absent.toml")


@pytest.mark.parametrize("written", [b"listen = [", b"listen = '\xff'"])
def test_a_file_that_is_no_toml_is_refused(written: bytes, tmp_path):
    """It ended in a traceback."""
    config = tmp_path / "trephine.toml"
    config.write_bytes(written)
    assert f"cannot read the settings file {config}: " in refused({}, config)


@pytest.mark.parametrize("listen", ["nonsense", "host:port", ":1", "1.2.3.4:99999"])
def test_bad_addresses_are_refused(listen: str):
    """Listen is HOST:PORT."""
    assert "HOST:PORT" in refused({"listen": listen, "token_file": Path("t")})


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "[::]", "example.org"])  # noqa: S104
def test_public_addresses_need_tls_or_plain_words(host: str):
    """Any address but loopback is refused without TLS unless insecure_listen is spelled out."""
    flags = {"listen": f"{host}:1", "token_file": Path("t")}
    assert "insecure_listen" in refused(flags)
    assert load_settings({**flags, "insecure_listen": True}, None).listen
    assert load_settings({**flags, "tls_cert": Path("c"), "tls_key": Path("k")}, None).listen


def test_certificate_and_key_go_together():
    """Half a TLS configuration is an error."""
    assert "go together" in refused({"tls_cert": Path("c")})


def test_loopback():
    """Only addresses that other machines cannot reach count."""
    assert is_loopback("127.0.0.9")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("localhost.example.org")


def test_an_empty_state_is_no_folder(monkeypatch, tmp_path, capsys):
    """Python takes it for the current one; a variable that is set to nothing is not set."""
    assert "names no folder" in refused({"state": ""})
    config = tmp_path / "trephine.toml"
    config.write_text('state = " "\n')
    assert "names no folder" in refused({}, config)
    monkeypatch.setenv("TREPHINE_STATE", "")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert load_settings({}, None).state == tmp_path / "trephine"
    for words in (["serve", "--state", ""], ["doctor", "--state", " "], ["serve", "--export-root", ""]):
        with pytest.raises(SystemExit):
            main(words)
        assert "is empty and names no file or folder" in capsys.readouterr().err

"""Signing with Sigstore in a process of its own, against services on the loopback and against none."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local_sigstore import PROVIDER, LocalSigstore, local_sigstore, token
from trephine.client.errors import SigstoreUnreachableError as NoTrustRoot
from trephine.client.signatures import Trust, check_signature
from trephine.domain.errors import DiskFullError, SigningIdentityError, SigstoreUnreachableError
from trephine.domain.signing import SignedBy
from trephine.server import sigstore as process
from trephine.server import sigstore_signing
from trephine.server.sigstore import SubprocessSigstore
from trephine.server.sigstore_signing import Order, carry_out, translated

CLOSED = "http://127.0.0.1:9"
ME = SignedBy(kind="sigstore", identity="me@example.org", identity_provider=PROVIDER)


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No CI around us, no caches of ours touched, loopback reached as it is."""
    for name in [
        n for n in os.environ if n.startswith(("GITHUB_", "ACTIONS_", "GITLAB", "BUILDKITE", "SIGSTORE"))
    ]:
        monkeypatch.delenv(name)
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def services(tmp_path) -> Iterator[tuple[LocalSigstore, Path]]:
    """Running services and their trust configuration."""
    with local_sigstore(tmp_path) as running:
        yield running


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with two files, and the two that a signature leaves out."""
    made = tmp_path / "edited"
    (made / "sub").mkdir(parents=True)
    for name in ("model.safetensors", "sub/x.json", "trephine.sha256"):
        (made / name).write_text(name)
    return made


def problems(folder: Path, trust: Trust) -> tuple[list[str], list[str]]:
    """What a check says: problems, notes."""
    names, notes = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()], []
    return list(check_signature(folder, names, notes, trust)), notes


async def test_a_folder_is_signed_and_verified_as_an_identity(services, folder):
    """The stock libraries sign and verify; another identity, provider or byte does not pass."""
    running, config = services
    signer = SubprocessSigstore(trust_config=config)
    assert await signer.require(token()) == ME
    assert not (folder / "trephine.sig").exists()
    assert "/api/v2/signingCert" not in running.seen
    assert await signer.sign(folder, token()) == ME
    mine = Trust(identity="me@example.org", identity_provider=PROVIDER, trust_config=config)
    assert problems(folder, mine) == ([], [f"signed by me@example.org, for whom {PROVIDER} vouches"])
    for wrong in ({"identity": "you@example.org"}, {"identity_provider": "https://evil.example.org"}):
        others = Trust(
            **{"identity": "me@example.org", "identity_provider": PROVIDER, **wrong}, trust_config=config
        )
        assert "does not hold" in problems(folder, others)[0][0]
    (folder / "sub" / "x.json").write_text("sub/x.jsom")
    assert problems(folder, mine)[0] == ["trephine.sig: does not hold: sub/x.json is not what was signed"]


def test_the_stock_tool_checks_the_identity_too(services, folder):
    """As the documentation types it, with a trust configuration for want of a network."""
    from click.testing import CliRunner
    from model_signing._cli import main

    carry_out(Order(folder=str(folder), token=token(), trust_config=str(services[1])))
    asked = ["--identity_provider", PROVIDER, "--trust_config", str(services[1])]
    for who, status in (("me@example.org", 0), ("you@example.org", 1)):
        words = ["verify", "sigstore", str(folder), "--signature", str(folder / "trephine.sig")]
        assert CliRunner().invoke(main, [*words, *asked, "--identity", who]).exit_code == status


async def test_another_sigstore_does_not_vouch(services, folder, tmp_path):
    """A signature made elsewhere does not hold, whomever it names."""
    await SubprocessSigstore(trust_config=services[1]).sign(folder, token())
    (tmp_path / "other").mkdir()
    with local_sigstore(tmp_path / "other") as (_, other):
        mine = Trust(identity="me@example.org", identity_provider=PROVIDER, trust_config=other)
        assert "does not hold" in problems(folder, mine)[0][0]


def test_the_servers_token_is_read_anew_for_each_folder(services, folder, tmp_path):
    """A file that is rotated signs as whom it names now; one that cannot be read is said."""
    file = tmp_path / "token"
    order = Order(token_file=str(file), trust_config=str(services[1]))
    with pytest.raises(SigningIdentityError, match="sigstore_token_file"):
        carry_out(order)
    for who in ("one@example.org", "two@example.org"):
        file.write_text(f"{token(who)}\n")
        assert carry_out(order)["identity"] == who


def test_what_ci_offers_is_found(services, monkeypatch):
    """A GitLab job's token, as its documentation names it."""
    monkeypatch.setenv("GITLAB_CI", "true")
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", token("job@example.org"))
    assert carry_out(Order(trust_config=str(services[1])))["identity"] == "job@example.org"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "no identity to sign as"),
        ("nonsense", "malformed"),
        (token(seconds=-60), "has expired"),
        (token()[:-30] + "x.y", "malformed"),
    ],
)
def test_a_token_that_is_none_is_refused_before_any_call(services, given, says):
    """Said by its own error, with where tokens come from, and without the token."""
    running, config = services
    with pytest.raises(Exception) as caught:  # noqa: PT011 (translated below, as `main` does)
        carry_out(Order(token=given, trust_config=str(config)))
    error = translated(caught.value)
    assert isinstance(error, SigningIdentityError)
    assert says in error.message
    assert given is None or given not in error.message
    assert running.seen == []


async def test_a_refused_token_is_never_quoted(services, folder):
    """The authority's answer quotes it; our error does not."""
    services[0].refuse_tokens = True
    given = token()
    with pytest.raises(SigningIdentityError, match="refused the identity token") as caught:
        await SubprocessSigstore(trust_config=services[1]).sign(folder, given)
    assert given not in str(caught.value)
    assert not (folder / "trephine.sig").exists()


def test_a_log_that_is_out_of_order_is_no_fault_of_the_identity(services, folder):
    """The certificate came, the entry did not: try again, or sign with a key; nothing is written."""
    services[0].lose_entries = True
    with pytest.raises(Exception) as caught:  # noqa: PT011
        carry_out(Order(folder=str(folder), token=token(), trust_config=str(services[1])))
    error = translated(caught.value)
    assert isinstance(error, SigstoreUnreachableError)
    assert "a key file signs without a network" in error.message
    assert not (folder / "trephine.sig").exists()


def test_a_full_disk_and_a_broken_trust_configuration_are_no_fault_of_sigstores(tmp_path):
    """Each by its own words."""
    full = translated(OSError(errno.ENOSPC, "No space left on device"))
    assert isinstance(full, DiskFullError)
    (tmp_path / "trust.json").write_text("{}")
    with pytest.raises(SigstoreUnreachableError, match="setting sigstore_trust_config"):
        carry_out(Order(token=token(), trust_config=str(tmp_path / "trust.json")))


async def test_the_public_sigstore_out_of_reach_is_said(folder, monkeypatch):
    """The real path, with no way out: a typed error that names the key file, and no signature."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, CLOSED)
    with pytest.raises(SigstoreUnreachableError, match="a key file signs without a network"):
        await SubprocessSigstore().sign(folder, token())
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "sub", "trephine.sha256"]


async def test_services_out_of_reach_are_found_before_work(folder, tmp_path):
    """With a trust configuration whose services are gone, the look beforehand refuses."""
    with local_sigstore(tmp_path) as (_, config):
        pass
    with pytest.raises(SigstoreUnreachableError, match="cannot be reached"):
        await SubprocessSigstore(trust_config=config).require(token())


async def test_a_process_that_hangs_is_ended(monkeypatch, services, tmp_path):
    """Blocked on the network for ever: killed at the limit, and said."""
    (tmp_path / "hanging.py").write_text("import time\ntime.sleep(3600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(process, "_MODULE", "hanging")
    monkeypatch.setattr(process, "CHECK_SECONDS", 0.2)
    with pytest.raises(SigstoreUnreachableError, match="did not answer within"):
        await SubprocessSigstore(trust_config=services[1]).require(token())


def test_without_a_network_this_machines_trust_root_is_used(services, folder, monkeypatch):
    """A signature of another Sigstore is then judged, and refused, by the public one's root at hand."""
    carry_out(Order(folder=str(folder), token=token(), trust_config=str(services[1])))
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, CLOSED)
    found, notes = problems(folder, Trust(identity="me@example.org", identity_provider=PROVIDER))
    assert "does not hold" in found[0]
    assert any("Sigstore could not be reached" in note for note in notes)


def test_no_trust_root_at_all_is_said(services, folder, monkeypatch):
    """Neither the network nor a copy: a typed error that names the flag."""
    from sigstore.errors import TUFError
    from sigstore.models import ClientTrustConfig

    def gone(offline: bool = False) -> None:
        raise TUFError("gone")

    carry_out(Order(folder=str(folder), token=token(), trust_config=str(services[1])))
    monkeypatch.setattr(ClientTrustConfig, "production", gone)
    with pytest.raises(NoTrustRoot, match="--sigstore-trust-config"):
        problems(folder, Trust(identity="me@example.org", identity_provider=PROVIDER))


def test_an_answer_is_always_one_line(capsys, monkeypatch, services):
    """Whatever is raised becomes an answer for the server."""
    import io
    import json
    from types import SimpleNamespace

    order = json.dumps({"token": "x", "trust_config": str(services[1])}).encode()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(order)))
    assert sigstore_signing.main() == 0
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "SIGNING_IDENTITY"

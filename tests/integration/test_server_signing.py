"""Exports signed with Sigstore and with the key, and lists of exports, through a real server and compile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from tests.builders import tiny_folder
from tests.fakes.engine import FakeEngine
from tests.integration.server_house import Edge, edge
from tests.local_sigstore import PROVIDER, LocalSigstore, local_sigstore, token
from tests.thinking_engine import thinking_scripts
from tests.unit.app.house import compile_export as fake_export
from tests.unit.engine.exporting import hosted_in
from trephine.client.aio.edits import AsyncEdits, AsyncExports
from trephine.client.aio.wire import AsyncWire
from trephine.client.endpoint import Endpoint
from trephine.client.errors import (
    InvalidRequestError,
    ResourceNotFoundError,
    SignatureKindError,
    SigningIdentityError,
)
from trephine.client.interventions import feature
from trephine.client.types import SignatureKind
from trephine.client.verification import verify_folder
from trephine.domain.exports import CompileExport, Export, PlanExport
from trephine.domain.signing import SignedBy
from trephine.engine.exports.export import compile_export
from trephine.engine.exports.planning import plan_export
from trephine.engine.exports.signing import sign_folder, write_public_key
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.v1 import edit_service_pb2 as pb
from trephine.v1.edit_service_pb2_grpc import EditServiceStub

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
ME, TOKEN = "me@example.org", token()


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalSigstore, Path]]:
    """A Sigstore of our own."""
    with (
        pytest.MonkeyPatch.context() as patch,
        local_sigstore(tmp_path_factory.mktemp("sigstore")) as running,
    ):
        patch.setenv("NO_PROXY", "127.0.0.1")
        for name in ("GITHUB_ACTIONS", "GITLAB_CI", "SIGSTORE_ID_TOKEN", "BUILDKITE", "CIRCLECI"):
            patch.delenv(name, raising=False)
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(
    services: tuple[LocalSigstore, Path], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Edge]:
    """A server whose engine really compiles a tiny Llama, with one edit stored."""
    folder = tmp_path_factory.mktemp("edge")
    hosted = hosted_in(tiny_folder("llama", folder / "roots" / "tiny"))
    session = Session(hosted=hosted)
    scripts = {
        **thinking_scripts(hosted),
        PlanExport: lambda command: _carried_out(plan_export(session, command)),
        CompileExport: lambda command: _compiled(session, command),
    }
    async with edge(folder, [FakeEngine(scripts)], sigstore_trust_config=services[1]) as running:
        await running.load()
        wire = AsyncWire(Endpoint(address=running.address))
        await AsyncEdits(wire).create("quiet", [feature(1, 2).ablate()], model="tiny")
        await AsyncEdits(wire).create("loud", [feature(1, 3).scale(2.0)], model="tiny")
        yield running


@torch.inference_mode()
def _carried_out(work):
    return finish(work)


def _compiled(session: Session, command: CompileExport) -> Export:
    """Compile `quiet` in earnest; of `loud` only what a key's signature needs, in a hundredth of the time."""
    if command.edit.name == "quiet":
        return _carried_out(compile_export(session, command))
    made, key = fake_export(command), Path(command.signing_key)
    write_public_key(key, Path(command.folder))
    finish(sign_folder(key, Path(command.folder)))
    return replace(made, signed=True, signed_by=SignedBy())


def exports_of(server: Edge) -> AsyncExports:
    """The exports of a server."""
    return AsyncExports(AsyncWire(Endpoint(address=server.address)))


async def test_an_export_is_signed_as_whom_the_token_names(server, services, tmp_path, capfd):
    """Published, listed, fetched, verified here and there; another identity fails; the token is nowhere."""
    exports = exports_of(server)
    made = await (await exports.start("quiet", "as-me", identity_token=TOKEN)).result()
    assert (made.signed_by.kind, made.signed_by.identity) == (SignatureKind.SIGSTORE, ME)
    assert str(made.signed_by) == f"{ME}, for whom {PROVIDER} vouches"
    assert not any(file.path == "public_key.pem" for file in made.files)
    there = await exports.verify("as-me", identity=ME, identity_provider=PROVIDER)
    assert (there.passed, there.notes) == (True, (f"signed by {ME}, for whom {PROVIDER} vouches",))
    assert not (await exports.verify("as-me", identity="you@x.org", identity_provider=PROVIDER)).passed
    home = await exports.download(made, tmp_path / "home")
    mine = {"identity": ME, "identity_provider": PROVIDER, "sigstore_trust_config": services[1]}
    assert verify_folder(home, **mine).passed
    plain = verify_folder(home)
    assert plain.passed
    assert "who signed was not checked" in plain.notes[0]
    with pytest.raises(SignatureKindError, match="signed with Sigstore, as me@example"):
        verify_folder(home, public_key=_key(server))
    stored = [path for path in server.state.rglob("*") if path.is_file()]
    assert any(b"as-me" in path.read_bytes() for path in stored)
    assert not [path for path in [*stored, *home.rglob("*.json")] if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in "".join(capfd.readouterr())


async def test_a_keys_signature_names_no_identity(server):
    """The default is as before; an identity asked of it is an error of its own."""
    exports = exports_of(server)
    made = await (await exports.start("loud", "by-key")).result()
    assert made.signed_by.kind is SignatureKind.KEY
    with pytest.raises(SignatureKindError, match="--public-key"):
        await exports.verify("by-key", identity=ME, identity_provider=PROVIDER)


async def test_nobody_to_sign_as_is_refused_by_the_call(server):
    """No operation is made of it, and no folder; half an identity and a token that is none name a field."""
    exports = exports_of(server)
    with pytest.raises(SigningIdentityError, match="no identity to sign as"):
        await exports.start("quiet", "nobody", sigstore=True)
    with pytest.raises(InvalidRequestError) as caught:
        await exports.start("quiet", "nobody", identity_token="not a token")
    assert caught.value.field == "sigstore.identity_token"
    assert "not a token" not in caught.value.message
    with pytest.raises(InvalidRequestError) as caught:
        await exports.verify("as-me", identity=ME)
    assert caught.value.field == "identity_provider"
    with pytest.raises(ResourceNotFoundError):
        await exports.get("nobody")
    assert not list((server.state / "exports").glob("nobody*"))


async def test_exports_are_listed_newest_first_and_by_edit(server):
    """In short: the certificate's word and gates, no files; GetExport has all of one."""
    exports = exports_of(server)
    listed = await exports.list()
    assert [one.name for one in listed] == ["exports/by-key", "exports/as-me"]
    assert [one.name for one in await exports.list(edit="quiet")] == ["exports/as-me"]
    assert await exports.list(edit="quiet@1") == await exports.list(edit="quiet")
    assert await exports.list(edit="nobody") == ()
    with pytest.raises(ResourceNotFoundError):
        await exports.list(edit="nobody@2")
    short, whole = listed[1], await exports.get("as-me")
    assert (short.files, short.certificate.measurements, short.certificate.changed_tensors) == ((), (), ())
    assert whole.files
    assert whole.certificate.measurements
    assert short.certificate.gates == whole.certificate.gates != ()
    assert listed[0].create_time > short.create_time == whole.create_time


async def test_pages_continue_where_they_ended(server):
    """One at a time; a token of another question is refused."""
    stub = server.stub(EditServiceStub)
    first = await stub.ListExports(pb.ListExportsRequest(page_size=1))
    token_ = first.next_page_token
    second = await stub.ListExports(pb.ListExportsRequest(page_size=1, page_token=token_))
    assert [one.name for page in (first, second) for one in page.exports] == [
        "exports/by-key",
        "exports/as-me",
    ]
    assert second.next_page_token == ""
    wire = AsyncWire(Endpoint(address=server.address))
    with pytest.raises(InvalidRequestError, match="page_token"):
        await wire.call(wire.edits.ListExports, pb.ListExportsRequest(edit="edits/quiet", page_token=token_))


def _key(server: Edge) -> Path:
    return server.state / "signing.pub.pem"

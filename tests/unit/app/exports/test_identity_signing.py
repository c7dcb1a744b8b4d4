"""Exports signed as an identity: when it is asked, what it leaves, and where its token never goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.engine import Script
from tests.unit.app.exports.test_edits_and_exports import create, ignore, leftovers
from tests.unit.app.house import House, compile_export, house
from trephine.app.jobs.requests import ExportRequest
from trephine.app.storage.records import encode
from trephine.domain.errors import ResourceNotFoundError, SigningIdentityError, SigstoreUnreachableError
from trephine.domain.exports import CompileExport, PlanExport
from trephine.domain.operations import OperationState
from trephine.domain.signing import SignedBy

TOKEN = "eyJhbGciOiJSUzI1NiJ9.dGhlIHNlY3JldA.c2ln"
ME = SignedBy(kind="sigstore", identity="me@example.org", identity_provider="https://idp.example.org")
AS_SERVER = ExportRequest(edit="no-mary", export_id="edited", sigstore=True)
AS_ME = replace(AS_SERVER, token_given=True, identity_token=TOKEN)


class FakeSigner:
    """Signs by writing down who signs; refuses when it is told to."""

    def __init__(self) -> None:
        self.tokens: list[str | None] = []
        self.refusal: Exception | None = None
        self.refusal_at_the_end: Exception | None = None

    async def require(self, token: str | None) -> SignedBy:
        """Refuse, or say who signs."""
        self.tokens.append(token)
        if self.refusal is not None:
            raise self.refusal
        return ME

    async def sign(self, folder: Path, token: str | None) -> SignedBy:
        """Write a signature."""
        self.tokens.append(token)
        if self.refusal_at_the_end is not None:
            raise self.refusal_at_the_end
        (folder / "trephine.sig").write_text("{}")
        return ME


@pytest.fixture
def signer() -> FakeSigner:
    """The port, in memory."""
    return FakeSigner()


async def ready(root: Path, signer: FakeSigner, **scripts: object) -> House:
    """A house with `tiny` loaded and the edit `no-mary` stored."""
    here = house(root, {globals()[name]: script for name, script in scripts.items()}, identity_signer=signer)
    await here.models.load(here.models.resolve("tiny"), ignore)
    if not (root / "state" / "edits" / "no-mary.json").exists():
        await create(here)
    await here.operations.open()
    return here


async def done(here: House, request: ExportRequest):
    """Start an export and wait for its end."""
    record = await here.operations.start("ExportCheckpoint", request, request_id="r")
    return await here.operations.wait(record.id)


def holds(root: Path, text: str) -> Iterator[str]:
    """Files below a folder that hold a text."""
    for path in root.rglob("*"):
        if path.is_file() and text.encode() in path.read_bytes():
            yield str(path)


async def test_a_built_folder_is_signed_before_it_is_published(tmp_path, signer):
    """The engine is given no key; the list of digests covers the signature; the export says who signed."""
    here = await ready(tmp_path, signer)
    assert (await done(here, AS_ME)).state is OperationState.SUCCEEDED
    built = next(c for c in here.launcher.latest.commands if isinstance(c, CompileExport))
    assert built.signing_key is None
    export = await here.exports.get("edited")
    assert (export.signed, export.signed_by) == (True, ME)
    assert [file.path for file in export.files] == ["model.safetensors", "trephine.sha256", "trephine.sig"]
    listed = (tmp_path / "published" / "edited" / "trephine.sha256").read_text()
    signature = next(file for file in export.files if file.path == "trephine.sig")
    assert f"{signature.sha256}  trephine.sig\n" in listed
    assert set(signer.tokens) == {TOKEN}


async def test_what_cannot_be_signed_is_refused_before_any_work(tmp_path, signer):
    """No credential, no Sigstore: no operation, no plan, nothing in the root."""
    here = await ready(tmp_path, signer)
    for refusal in (SigningIdentityError("nobody"), SigstoreUnreachableError("no network")):
        signer.refusal = refusal
        with pytest.raises(type(refusal)):
            await here.operations.start("ExportCheckpoint", AS_SERVER, request_id="r")
    assert here.operations.list() == ()
    assert not [c for c in here.launcher.latest.commands if isinstance(c, PlanExport | CompileExport)]
    assert leftovers(here) == []
    assert signer.tokens == [None, None]


async def test_sigstore_that_is_lost_meanwhile_leaves_nothing(tmp_path, signer):
    """The folder was built, the signature does not come: a typed failure, and nothing is left."""
    here = await ready(tmp_path, signer)
    signer.refusal_at_the_end = SigstoreUnreachableError("gone; a key file signs without a network")
    record = await done(here, AS_ME)
    assert (record.state, record.failure.reason) == (OperationState.FAILED, "SIGSTORE_UNREACHABLE")
    assert leftovers(here) == []
    with pytest.raises(ResourceNotFoundError):
        await here.exports.get("edited")
    assert list(holds(tmp_path, TOKEN)) == []


async def test_a_token_is_in_no_record_request_or_text(tmp_path, signer):
    """Not in what is stored, encoded or printed; and memory loses it with the operation."""
    here = await ready(tmp_path, signer, CompileExport=Script(hold=asyncio.Event(), result=compile_export))
    record = await here.operations.start("ExportCheckpoint", AS_ME, request_id="r")
    while not isinstance(here.launcher.latest.commands[-1], CompileExport):
        await asyncio.sleep(0.001)
    assert TOKEN in here.exports._identity._tokens.values()
    assert list(holds(tmp_path, TOKEN)) == []
    assert list(holds(tmp_path, record.id)) != []
    for text in (encode(AS_ME).decode(), repr(AS_ME), repr(here.launcher.latest.commands), repr(record)):
        assert TOKEN not in text
    await here.operations.cancel(record.id)
    assert here.exports._identity._tokens == {}


async def test_a_token_survives_the_engine_and_not_the_server(tmp_path, signer):
    """A lost engine costs an attempt; a lost server costs the token, and the failure says so."""
    hold = Script(hold=asyncio.Event(), result=compile_export)
    here = await ready(tmp_path, signer, CompileExport=hold)
    record = await here.operations.start("ExportCheckpoint", AS_ME, request_id="r")
    while not isinstance(here.launcher.latest.commands[-1], CompileExport):
        await asyncio.sleep(0.001)
    lost = here.launcher.latest
    lost.lose()
    while here.launcher.latest is lost or not any(
        isinstance(command, CompileExport) for command in here.launcher.latest.commands
    ):
        await asyncio.sleep(0.001)
    assert here.operations.get(record.id).attempts == 2
    assert set(signer.tokens) == {TOKEN}
    await here.operations.close()
    again = await ready(tmp_path, signer)
    failed = await again.operations.wait(record.id)
    assert (failed.state, failed.failure.reason) == (OperationState.FAILED, "SIGNING_IDENTITY")
    assert "never stored: export again" in failed.failure.message
    assert leftovers(again) == []


async def test_the_servers_own_identity_survives_a_restart(tmp_path, signer):
    """Without a token in the request nothing is lost: the next server signs as itself."""
    here = await ready(tmp_path, signer, CompileExport=Script(hold=asyncio.Event(), result=compile_export))
    record = await here.operations.start("ExportCheckpoint", AS_SERVER, request_id="r")
    await here.operations.close()
    again = await ready(tmp_path, signer)
    assert (await again.operations.wait(record.id)).state is OperationState.SUCCEEDED
    assert leftovers(again) == ["edited"]


async def test_the_same_request_with_a_newer_token_is_the_same_operation(tmp_path, signer):
    """A token is no part of what was asked for; a key's signature in place of an identity's is."""
    here = await ready(tmp_path, signer)
    record = await done(here, AS_ME)
    newer = replace(AS_ME, identity_token="a.b.c")
    assert (await here.operations.start("ExportCheckpoint", newer, request_id="r")).id == record.id
    assert encode(AS_ME) == encode(newer) != encode(AS_SERVER)
    assert "identity_token" not in json.loads(encode(AS_ME))


async def test_tokens_of_operations_that_never_began_do_not_pile_up(tmp_path, signer):
    """The oldest are dropped."""
    here = await ready(tmp_path, signer)
    for number in range(300):
        here.exports._identity.keep(AS_ME, str(number))
    kept = here.exports._identity._tokens
    assert (len(kept), next(iter(kept))) == (256, "44")

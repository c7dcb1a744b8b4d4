"""Names of exports: what a second command of other options must not find, and what the same one must."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from tests.fakes.grpc_server import FakeService, rich_status
from trephine.client import Trephine
from trephine.client.cli import main
from trephine.client.errors import ExportTargetExistsError
from trephine.client.export_names import export_id_for
from trephine.client.types import Edit, Version
from trephine.v1 import edit_service_pb2 as pb

Run = Callable[..., int]
EDIT = Edit(
    name="edits/e", version=1, content_hash="ab" * 32, interventions=(), reason="", author="", evidence=(),
    create_time="", made_for=Version(model="models/m", weight_hash=""),
)  # fmt: skip


def token(subject: str, issued: int) -> str:
    """A token of a subject; each that is issued is another."""
    claims = {"iss": "https://idp.org", "sub": subject, "iat": issued}
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{body}.c2ln"


OPTIONS = (
    {},
    {"model": "other"},
    {"text": "one"},
    {"text": "another"},
    {"min_recovery": 0.5},
    {"min_recovery": 0.6},
    {"keep_shapes": True},
    {"attack": True},
    {"attack": True, "attack_steps": 100},
    {"attack": True, "attack_steps": 200},
    {"gguf": ("q8_0",)},
    {"gguf": ("q8_0", "q4_0")},
    {"sigstore": True},
    {"identity_token": token("me", 1)},
    {"identity_token": token("you", 1)},
    {"text": "one", "keep_shapes": True},
)


def test_every_option_that_changes_an_export_gives_another_name():
    """All of them differ from one another, and none from itself."""
    names = [export_id_for("out/edited", EDIT, **given) for given in OPTIONS]
    assert len(set(names)) == len(OPTIONS)
    assert names == [export_id_for("elsewhere/edited", EDIT, **given) for given in OPTIONS]
    assert re.fullmatch("edited-[0-9a-f]{12}", names[0])


@pytest.mark.parametrize(
    "other",
    [{"name": "edits/f"}, {"version": 2}, {"content_hash": "cd" * 32}, {"author": "you"}, {"reason": "none"}],
)
def test_what_the_card_says_of_the_edit_gives_another_name(other: dict[str, Any]):
    """Another edit that does the same is not handed the first one's card; the next version neither."""
    assert export_id_for("out", EDIT) != export_id_for("out", replace(EDIT, **other))


def test_an_export_of_another_edit_that_does_the_same_is_not_its_own(trephine: Trephine, fake: Published):
    """By a name that somebody chose: it was made from this edit or it was not."""
    edit = trephine.edits.get("no-mary")
    trephine.exports.start(edit, "mine").result()
    assert trephine.exports.published("mine", edit) is not None
    twin = replace(edit, name="edits/loud")
    assert twin.content_hash == edit.content_hash
    assert trephine.exports.published("mine", twin) is None


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ({}, {"model": "m"}),
        ({}, {"model": "models/m"}),
        ({"gguf": ("q8_0", "q4_0")}, {"gguf": ["q4_0", "q8_0"]}),
        ({"identity_token": token("me", 1)}, {"identity_token": token("me", 2), "sigstore": True}),
    ],
)
def test_what_changes_nothing_keeps_the_name(one, same):
    """The edit's own model by name, an order, a fresh token of the same person."""
    assert export_id_for("out", EDIT, **one) == export_id_for("out", EDIT, **same)


def test_a_name_of_all_options_fits_the_contract():
    """63 characters, whatever the folder is called; a token that is none does no harm."""
    everything = {key: value for given in OPTIONS for key, value in given.items()} | {"identity_token": "é"}
    assert len(export_id_for("x" * 90, EDIT, **everything)) == 63


class Published(FakeService):
    """A server that keeps what it exported."""

    def GetExport(self, request, context):
        """What was made under that name."""
        asked = [one for one in self.requests if isinstance(one, pb.ExportCheckpointRequest)]
        if request.name not in {f"exports/{one.export_id}" for one in asked}:
            return super().GetExport(request, context)
        found = self._export(request.name)
        found.certificate.edit_hash = self._edit().content_hash
        return found

    def made(self) -> list[str]:
        """Names under which exports were started."""
        return [one.export_id for one in self.requests if isinstance(one, pb.ExportCheckpointRequest)]

    def ExportCheckpoint(self, request, context):
        """One that the same command, given elsewhere at once, is first to publish."""
        started = super().ExportCheckpoint(request, context)
        if self.outrun:
            context.abort_with_status(rpc_status.to_status(TAKEN))
        return started

    outrun = False


TAKEN = rich_status(grpc.StatusCode.ALREADY_EXISTS, "EXPORT_TARGET_EXISTS", "it exists", field="export_id")


@pytest.fixture
def fake() -> Published:
    """In the place of the ordinary fake."""
    return Published()


@pytest.fixture
def run(address: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command against the fake and return its exit status."""

    def command(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["trephine", "--server", address, *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return command


def test_a_second_command_says_what_it_reuses(
    fake: Published, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The same one fetches and says so; one of another text compiles anew."""
    for number, content in enumerate(("one text", "one text", "another")):
        (tmp_path / "text").write_text(content)
        out = tmp_path / str(number) / "edited"
        assert run("export", "no-mary", "--out", str(out), "--text", str(tmp_path / "text")) == 0
        said = capsys.readouterr().err
        told = f"already published as exports/{fake.made()[0]}: fetched as it is"
        assert (told in said) == (number == 1)
        assert (out / "weights" / "model.safetensors").exists()
    assert len(set(fake.made())) == len(fake.made()) == 2


def test_a_name_of_your_own_is_reused_with_a_warning(fake: Published, trephine: Trephine, tmp_path: Path):
    """The client cannot tell what options that one was made with."""
    trephine.export("no-mary", tmp_path / "first", export_id="mine")
    with pytest.warns(UserWarning, match="already published as exports/mine: fetched as it is, whatever"):
        trephine.export("no-mary", tmp_path / "second", export_id="mine", keep_shapes=True)
    assert fake.made() == ["mine"]


def test_the_same_export_twice_at_once_is_fetched_twice(fake: Published, trephine: Trephine, tmp_path: Path):
    """Whoever comes second has waited as long; under a name of your own it may be of other options."""
    fake.outrun = True
    made = trephine.export("no-mary", tmp_path / "edited")
    assert [made.name] == [f"exports/{name}" for name in fake.made()]
    assert (tmp_path / "edited" / "weights" / "model.safetensors").exists()
    with pytest.raises(ExportTargetExistsError):
        trephine.export("no-mary", tmp_path / "mine", export_id="mine")


def test_the_command_that_comes_second_says_what_it_fetched(
    fake: Published, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """As it does of an export from before."""
    fake.outrun = True
    assert run("export", "no-mary", "--out", str(tmp_path / "edited")) == 0
    assert f"already published as exports/{fake.made()[0]}" in capsys.readouterr().err

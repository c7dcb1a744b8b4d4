"""Several edits on the command line: composed, compared, served, named by requests; against a fake server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest

from tests.fakes.grpc_server import FakeService
from trephine.client import Trephine
from trephine.client.cli import main
from trephine.client.cli.arguments import read_edits
from trephine.client.cli.edit_composition import show_diff
from trephine.client.cli.exit_codes import ExitCode
from trephine.client.cli.output import Output
from trephine.client.errors import InvalidRequestError
from trephine.client.interventions import feature
from trephine.client.types import EditDiff, EditUse
from trephine.v1 import live_edits_pb2

Run = Callable[..., int]


@pytest.fixture
def run(address: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command against the fake and return its exit status."""

    def command(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["trephine", "--server", address, *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return command


def test_edits_are_read_with_version_and_strength():
    """A strength that is no number is said to be one, before anything is sent."""
    assert read_edits(["quiet", "quiet@2", "warm=0.5", "warm@2=0"]) == [
        EditUse(edit="quiet"),
        EditUse(edit="quiet@2"),
        EditUse(edit="warm", strength=0.5),
        EditUse(edit="warm@2", strength=0.0),
    ]
    with pytest.raises(InvalidRequestError, match="'warm=much' is no edit"):
        read_edits(["warm=much"])


def test_composing_stores_or_lists_conflicts(fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]):
    """Parts keep order and strengths; `--check` stores nothing and its exit status tells."""
    assert run("edits", "compose", "both", "quiet", "warm@2=0.5", "--reason", "why") == 0
    asked = fake.requests[-1]
    assert [(use.edit, use.strength, use.HasField("strength")) for use in asked.parts] == [
        ("edits/quiet", 0.0, False),
        ("edits/warm@2", 0.5, True),
    ]
    assert (asked.edit_id, asked.reason, asked.validate_only) == ("both", "why", False)
    assert "edits/both, version 1" in capsys.readouterr().out
    assert run("edits", "compose", "both", "a", "b@2", "--check") == ExitCode.FINDINGS
    assert fake.requests[-1].validate_only
    shown = capsys.readouterr().out
    assert "edits/a@1\tedits/b@2\tneurons:1:3\tevery position\tone does \\x1b[1mablate" in shown
    assert run("edits", "compose", "both", "a", "--check") == ExitCode.PASS
    assert "no conflict" in capsys.readouterr().err
    assert run("--json", "edits", "compose", "both", "a", "b", "--check") == ExitCode.FINDINGS
    assert json.loads(capsys.readouterr().out)["conflicts"][0]["secondIntervention"] == 2


def test_a_diff_names_target_change_and_fields(
    fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]
):
    """A line per intervention, then what else differs."""
    assert run("edits", "diff", "quiet@1", "quiet") == 0
    assert fake.requests[-1] == live_edits_pb2.DiffEditsRequest(first="edits/quiet@1", second="edits/quiet")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "changed\t1:3\tscale 0.5\tscale 0.25\toperation"
    assert lines[2] == "added\t1:3\t\tscale 0.25\t"
    assert [line.split("  ")[-1].strip() for line in lines[3:]] == [
        "edits/quiet@1, edits/quiet",
        "differs",
        "2 interventions, in another order",
        "reason",
    ]


def test_edits_that_do_the_same_have_no_table(capsys: pytest.CaptureFixture[str]):
    """What differs beside interventions is told; a header with no row below it would be all of the table."""
    show_diff(
        Output(json=False),
        EditDiff(
            first="edits/quiet@1",
            second="edits/quiet",
            same_content=True,
            changes=(),
            unchanged=2,
            reordered=False,
            fields=("reason",),
        ),
    )
    written = capsys.readouterr().out
    assert written.startswith("from, to")
    assert "CHANGE" not in written


def test_what_a_model_serves_is_set_shown_and_ended(
    fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]
):
    """Without arguments nothing is changed; `--none` ends it, and goes with no edit."""
    assert run("edits", "serve", "quiet", "warm=0.5", "--model", "tiny") == 0
    assert [use.edit for use in fake.requests[-1].edits] == ["edits/quiet", "edits/warm"]
    assert capsys.readouterr().out.splitlines()[1:] == ["edits/quiet\t1", "edits/warm\t0.5"]
    assert run("edits", "serve", "--model", "tiny") == 0
    assert isinstance(fake.requests[-1], live_edits_pb2.GetLiveEditsRequest)
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert run("edits", "serve", "quiet", "--none", "--model", "tiny") == ExitCode.USAGE
    assert run("edits", "serve", "--none", "--model", "tiny") == 0
    assert fake.requests[-1] == live_edits_pb2.SetLiveEditsRequest(model="models/tiny")
    written = capsys.readouterr()
    assert "models/tiny serves no edit to requests that name none" in written.err
    assert not written.out, "a header with no row below it"


def test_a_text_that_overflows_beside_the_plain_one_is_an_error(
    fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]
):
    """What was written stays to be read; the exit status says that it is no answer."""
    fake.overflowing = {1}
    assert run("generate", "Mary", "--edit", "warm", "--model", "tiny") == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert "plain: " in out
    assert "an answer overflows, so that it is none: rows[1] overflows [NON_FINITE_VALUE]" in err


def test_text_under_edits_stands_beside_the_plain_one(
    fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str]
):
    """The first row is plain, the second one names its edits; version and writes are told."""
    words = ("--edit", "quiet", "--edit", "warm=0.5", "--model", "tiny")
    assert run("generate", "Mary", *words) == 0
    plain, edited = fake.requests[-1].rows
    assert (plain.without_edits, len(plain.edits)) == (True, 0)
    assert (edited.without_edits, [use.edit for use in edited.edits]) == (
        False,
        ["edits/quiet", "edits/warm"],
    )
    said = capsys.readouterr().err
    assert "edits/warm@4 at strength 0.5: 1 activation written, 1 changed" in said
    assert run("ablate", "Mary", "--target", " a", *words) == 0
    assert [use.edit for use in fake.requests[-1].edits] == ["edits/quiet", "edits/warm"]
    assert run("generate", "Mary", "--edit", "warm=much", "--model", "tiny") == ExitCode.USAGE


@pytest.mark.parametrize(
    ("wrote", "told"),
    [
        ((26, 1), "26 activations written, 1 changed"),
        ((6, 0), "6 activations written, none changed"),
        ((26, None), "26 activations written"),
        ((0, 0), "it matched nothing, no activation written"),
    ],
)
def test_writes_that_change_nothing_are_told_as_such(
    fake: FakeService, run: Run, capsys: pytest.CaptureFixture[str], wrote: tuple[int, int | None], told: str
):
    """An edit of silent features, or at strength 0, writes and changes nothing."""
    fake.wrote = wrote
    assert run("generate", "Mary", "--edit", "warm=0", "--model", "tiny") == 0
    assert f"edits/warm@4 at strength 0: {told}\n" in capsys.readouterr().err


def test_steering_alone_is_without_the_default_edits(trephine: Trephine, fake: FakeService):
    """What is compared with the model itself is the model and the steering, nothing else."""
    model = trephine.model("tiny")
    for given, plain in (((feature(1, 3).ablate(),), True), ((), False)):
        with model.side_by_side("Mary", given) as stream:
            stream.result()
        assert [row.without_edits for row in fake.requests[-1].rows] == [True, plain]
    stored = trephine.edits.get("no-mary")
    with model.generate("Mary", edits=[stored.at(0.5)]) as stream:
        (completion,) = stream.result().completions
    assert [(use.edit, use.strength) for use in fake.requests[-1].rows[0].edits] == [("edits/no-mary@1", 0.5)]
    assert completion.edits[0].strength == 0.5

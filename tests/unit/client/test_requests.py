"""Text that cannot be sent is refused by name, on both surfaces and on the command line."""

from __future__ import annotations

import sys

import pytest

from trephine.client import Row, Trephine, feature
from trephine.client.aio import connect as connect_async
from trephine.client.cli import main
from trephine.client.cli.exit_codes import ExitCode
from trephine.client.errors import InvalidRequestError

HALF = "half \ud83d emoji"


@pytest.mark.parametrize(
    "ask",
    [
        lambda t: t.model("tiny").generate([Row(HALF)]),
        lambda t: t.model("tiny").discover(HALF, target=" Mary"),
        lambda t: t.model("tiny").discover("Mary", target=HALF),
        lambda t: t.model("tiny").tokenize(HALF),
        lambda t: t.model("tiny").render_chat([("user", HALF)]),
        lambda t: t.model("tiny").ablate("Mary", [feature(0, 1).resample(HALF)], target="x"),
        lambda t: t.edits.create("e", [feature(0, 1).ablate()], model="tiny", reason=HALF),
        lambda t: t.edits.get(HALF),
        lambda t: t.models.get(HALF),
        lambda t: t.circuits.get(HALF),
        lambda t: t.operations.get(HALF),
        lambda t: t.audits.start("tiny", HALF),
        lambda t: t.audits.start("tiny", "toy", parameters={"template": HALF}),
        lambda t: t.start_load(HALF),
    ],
)
def test_half_a_character_is_refused_before_it_is_sent(ask, trephine: Trephine):
    """Wherever half an emoji is put, the error is typed and quotes the place, escaped."""
    with pytest.raises(InvalidRequestError, match=r"half \\ud83d emoji"):
        ask(trephine)


async def test_the_async_surface_refuses_it_too(address: str):
    """The same builders, the same error."""
    async with await connect_async(address, token="secret") as client:
        with pytest.raises(InvalidRequestError, match=r"half \\ud83d emoji"):
            await (await client.load_model("tiny")).tokenize(HALF)


def test_bytes_that_are_no_text_are_wrong_use(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """An argument that is not UTF-8 arrives as lone surrogates: status 2, no traceback."""
    words = ["trephine", "--server", address, "generate", "\udcff Mary", "--model", "tiny"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == ExitCode.USAGE
    assert "[INVALID_REQUEST]" in capsys.readouterr().err

"""Text that cannot be sent is refused by name, on both surfaces and on the command line."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import pytest

import trephine.client
from trephine.client import Row, Trephine, feature
from trephine.client.aio import connect as connect_async
from trephine.client.circuit_view_requests import trace_request
from trephine.client.cli import main
from trephine.client.cli.exit_codes import ExitCode
from trephine.client.errors import InvalidRequestError
from trephine.client.sendable import _several
from trephine.client.types import DatasetExample
from trephine.client.types.interventions import Where
from trephine.client.types.targets import TokenLogits

DATA = [DatasetExample(clean="Mary", answers=(" x",))]
ONE_ANSWER = [DatasetExample(clean="Mary", answers=" x")]  # type: ignore[arg-type]
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


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (
            lambda m: m.generate("Mary", feature(0, 1).ablate()),
            "interventions takes several values",
        ),
        (lambda m: m.generate("Mary", None), "interventions takes several values and was given None"),
        (
            lambda m: m.generate("Mary", edits="quiet"),
            "edits takes several values and was given 'quiet'",
        ),
        (lambda m: m.generate(None), "rows takes several values and was given None"),
        (lambda m: m.generate(["Mary"]), r"'Mary' is no row; write Row\("),
        (lambda m: m.score(["Mary"]), r"'Mary' is no row; write ScoreRow\("),
        (
            lambda m: m.discover("Mary", target=" x", beside="neurons"),
            "beside takes several values",
        ),
        (lambda m: m.discover("Mary", target=" x", positions="1"), "positions takes several values"),
        (lambda m: m.discover("Mary", target=None), "None is nothing that a graph explains; name a token"),
        (lambda m: m.trace_attention("Mary", layer=0, head=0, beside="small"), "beside takes several values"),
        (
            lambda m: m.features().contrast("some text", ["another"]),
            "first takes several values",
        ),
        (lambda m: m.discover("Mary", target=" x", layers=1), "layers takes several values and was given 1"),
        (lambda m: m.discover("Mary", target=TokenLogits(tokens=" x")), "tokens takes several values"),
        (lambda m: m.discover_dataset(DATA, DATA, layers=1), "layers takes several values"),
        (lambda m: m.discover_dataset(DATA, DATA, ablations="zero"), "ablations takes several values"),
        (lambda m: m.discover_dataset(ONE_ANSWER, DATA), "answers takes several values and was given ' x'"),
        (lambda m: Where(positions=1), "where.positions takes several values"),
        (lambda m: Where(phases="generation"), "where.phases takes several values"),
    ],
)
def test_one_value_where_several_are_taken_is_told(ask, said: str, trephine: Trephine):
    """A text was taken for its letters (`there is no edit q`), and other things ended in a bare TypeError."""
    with pytest.raises(InvalidRequestError, match=said):
        ask(trephine.model("tiny"))


def test_every_request_refuses_one_value_for_several():
    """By the argument's name, whether it is listed among a builder's arguments or passed on as a field."""
    found = 0
    for module in pkgutil.iter_modules(trephine.client.__path__, "trephine.client."):
        if "requests" not in module.name:
            continue
        for build in vars(importlib.import_module(module.name)).values():
            if not hasattr(build, "__wrapped__") or not hasattr(build, "__code__"):
                continue
            for name in _several(build.__wrapped__):
                for alone in (1, "abc"):
                    found += 1
                    with pytest.raises(InvalidRequestError, match=f"^{name} takes several values") as refused:
                        build(**{name: alone})
                    assert refused.value.field == name
    assert found > 80


def test_a_set_is_named_by_its_value_in_traces_as_well(trephine: Trephine):
    """As everywhere: by id, by name or as the set that was loaded."""
    loaded = trephine.model("tiny").load_replacements("small")
    asked = trace_request("models/tiny", "Mary", 0, 0, None, None, loaded, [loaded.name], None)
    assert (asked.replacement, list(asked.beside)) == (loaded.set_id, [loaded.set_id])


def test_a_value_of_a_wrong_type_is_told_with_what_was_given(trephine: Trephine):
    """Protobuf's own words name no argument: `bad argument type for built-in operation`."""
    with pytest.raises(TypeError) as caught:
        trephine.model("tiny").tokenize(5)  # type: ignore[arg-type]
    assert caught.value.__notes__ == ["given were model='models/tiny', text=5"]


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

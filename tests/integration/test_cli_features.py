"""`trephine features` and the clients over the whole service; a tiny real model answers in this process."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from structlog.testing import capture_logs

from tests.builders import tiny_hosted
from tests.fakes.engine import FakeEngine
from tests.integration.server_house import edge
from tests.thinking_engine import thinking_scripts
from trephine.client import Trephine, connect
from trephine.client import aio as async_client
from trephine.client.cli import main
from trephine.client.cli.highlight import show_tokens
from trephine.client.cli.output import Output
from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.types import FeatureRef, Token

pytestmark = pytest.mark.integration
TEXT = " Mary and John went to the store"
Run = Callable[..., int]


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """A server in a thread of its own: its address, and the file with its token."""
    folder = tmp_path_factory.mktemp("house")
    ready, ended = threading.Event(), asyncio.Event()
    found: dict[str, Any] = {}

    async def serve() -> None:
        engine = FakeEngine()
        engine.scripts = dict(thinking_scripts(tiny_hosted("llama")))
        async with edge(folder, [engine], listen="127.0.0.1:0", token_file=folder / "token") as server:
            await server.load()
            found.update(address=server.listen, loop=asyncio.get_running_loop())
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    with capture_logs():  # the server's log would be taken for output of the commands
        thread.start()
        assert ready.wait(60)
        yield found["address"], folder / "token"
        found["loop"].call_soon_threadsafe(ended.set)
        thread.join(60)


@pytest.fixture
def trephine(house) -> Iterator[Trephine]:
    address, token = house
    with connect(address, token=token.read_text().strip()) as client:
        yield client


@pytest.fixture
def run(house, monkeypatch, capsys) -> Run:
    """Run a command and return its exit status."""
    address, token = house

    def command(*words: str) -> int:
        options = ["--server", address, "--token-file", str(token)]
        monkeypatch.setattr(sys, "argv", ["trephine", *options, *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return command


@pytest.fixture
def corpus(tmp_path) -> Path:
    path = tmp_path / "corpus.jsonl"
    lines = [
        json.dumps({"text": f"When Mary and John went to the {word} they gave a drink to the {word}"})
        for word in ("store", "capital", "cat", "dog", "Paris")
    ]
    path.write_text("\n".join(lines))
    return path


def test_from_a_corpus_to_a_page(run, capsys, corpus, tmp_path):
    """Index, search, describe, label and render: each command sees what the ones before did."""
    assert run("features", "index", "-m", "tiny", "--corpus", str(corpus), "--dry-run") == 0
    assert "prediction" in capsys.readouterr().out
    assert run("features", "index", "-m", "tiny", "--corpus", str(corpus)) == 0
    out = capsys.readouterr().out
    assert "5 documents" in out
    assert "corpus.jsonl" in out
    assert run("--json", "features", "search", "-m", "tiny", "--token", " store") == 0
    hits = json.loads(capsys.readouterr().out)["features"]
    best = f"{hits[0]['feature'].get('layer', 0)}:{hits[0]['feature'].get('index', 0)}"
    assert run("features", "label", best, "shops </script>", "--author", "ann", "-m", "tiny") == 0
    assert run("features", "describe", best, "-m", "tiny") == 0
    out = capsys.readouterr().out
    assert f"{best} shops </script>" in out
    assert "fires on" in out
    assert "«" in out
    assert run("features", "page", best, "-m", "tiny", "--around", "1", "--out", str(tmp_path / "pages")) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert written[0].name == f"neurons-{best.replace(':', '-')}.html"
    assert 2 <= len(written) <= 3
    html = written[0].read_text()
    assert "shops &lt;/script&gt;" in html
    assert run("features", "label", best, "", "-m", "tiny") == 0
    capsys.readouterr()
    assert f'href="{written[1].name}"' in html
    assert run("features", "indexes") == 0
    name = capsys.readouterr().out.splitlines()[1].split("\t")[0]
    assert run("features", "delete-index", name) == 0
    assert run("features", "search", "-m", "tiny", "--token", " store") == 2
    assert "trephine features index" in capsys.readouterr().err


def test_activations_are_written_as_a_page(run, capsys, tmp_path):
    """`--out` writes every feature's text into one HTML file, beside the table."""
    page = tmp_path / "page.html"
    assert run("features", "activations", TEXT, "1:5", "2:7", "-m", "tiny", "--out", str(page)) == 0
    assert str(page) in capsys.readouterr().err
    html = page.read_text()
    assert html.count("<section>") == 2
    assert "1:5" in html
    assert " store</span>" in html


def test_rankings_and_activations_are_tables_off_a_terminal(run, capsys):
    """A pipe gets tab-separated lines: one per token, a column per feature."""
    assert run("features", "activations", TEXT, "1:5", "2:7", "-m", "tiny") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split("\t") == ["POSITION", "TOKEN", "1:5", "2:7"]
    assert [row.split("\t")[1] for row in rows][-1] == " store"
    assert run("features", "top", TEXT, "-m", "tiny", "--count", "4") == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert run("features", "top", TEXT, "-m", "tiny", "--per-token", "--layers", "1-2", "--count", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[2].split("\t")[2].startswith(("1:", "2:"))


def test_labels_go_out_and_in(run, capsys, tmp_path, trephine):
    """Export writes what import reads; importing replaces; deleting forgets."""
    features = trephine.model("tiny").features()
    features.set_label((2, 3), "three", author="ann")
    out = tmp_path / "labels.jsonl"
    assert run("features", "labels", "export", "-m", "tiny", "--out", str(out)) == 0
    features.delete_label((2, 3))
    capsys.readouterr()
    assert run("features", "labels", "import", str(out), "-m", "tiny") == 0
    said = capsys.readouterr().err
    assert "stored 1 labels of neurons of tiny" in said
    assert "--set" in said
    assert (2, 3, "three") in {(one.feature.layer, one.feature.index, one.text) for one in features.labels()}
    assert run("features", "labels", "list", "-m", "tiny", "--layer", "2") == 0
    assert "2:3\tthree\tann" in capsys.readouterr().out
    assert run("features", "label", "2:3", "", "-m", "tiny") == 0
    out.write_text('{"layer": 2, "index": 3, "label": "fine"}\nnonsense\n')
    capsys.readouterr()
    assert run("features", "labels", "import", str(out), "-m", "tiny") == 2
    assert "line 2" in capsys.readouterr().err
    assert features.labels() == ()


def test_a_contrast_of_two_files(run, capsys, tmp_path):
    """Each line is a text; the clearest feature comes first, with its p and q."""
    for name, who in (("first", "Mary"), ("second", "John")):
        texts = [f"The {word} gave a drink to {who}" for word in ("cat", "dog", "store", "capital", "Paris")]
        (tmp_path / name).write_text("\n\n".join(texts))
    files = (str(tmp_path / "first"), str(tmp_path / "second"))
    assert run("features", "contrast", *files, "-m", "tiny", "--count", "3", "--permutations", "99") == 0
    head, best, *_ = capsys.readouterr().out.splitlines()
    assert head.split("\t") == ["FEATURE", "DIFFERENCE", "AUROC", "P", "Q", "LABEL"]
    assert best.split("\t")[2] in ("1.000", "0.000")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("describe", "1:64"), "0 to 63"),
        (("describe", "9:0"), "does not cover layer 9"),
        (("describe", "words"), "no feature"),
        (("describe", "other:1:5"), "--set other"),
        (("activations", TEXT, "1:5", "1:64"), "0 to 63"),
        (("search",), "exactly one"),
        (("search", "--token", " the", "--label", "x"), "exactly one"),
        (("search", "--label", " "), "write a word"),
        (("label", "1:5", "x" * 201), "201 characters"),
        (("label", "1:5", "a\x1bb"), "U+001B"),
        (("contrast", "absent.txt", "absent.txt"), "cannot read"),
        (("index", "--corpus", "absent.txt"), "cannot read"),
        (("top", " the"), "one token"),
    ],
)
def test_mistakes_are_exit_status_2_with_a_reason(run, capsys, words, says):
    """Wrong use and bad input end with status 2 and say what is wrong, without a traceback."""
    assert run("features", *words, "-m", "tiny") == 2
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err
    assert "\x1b" not in err


def test_a_corpus_with_binary_junk_says_where(run, capsys, tmp_path):
    """The operation fails with line and byte, as exit status 2."""
    path = tmp_path / "junk.txt"
    path.write_bytes(b"a text that is fine\n\nand \xff\xfe not")
    assert run("features", "index", "-m", "tiny", "--corpus", str(path)) == 2
    assert "byte 25 (line 3)" in capsys.readouterr().err


def test_detach_prints_the_operation_and_leaves(run, capsys, corpus, trephine):
    """`--detach` names the operation, which goes on."""
    words = ("features", "index", "-m", "tiny", "--corpus", str(corpus), "--layers", "1", "--detach")
    assert run(*words) == 0
    name = capsys.readouterr().out.strip()
    index = trephine.operations.get(name).result()
    assert (index.layers, index.documents) == ((1,), 5)
    trephine.features.delete_index(index.name)


def test_the_python_client_reads_one_feature(trephine):
    """`model.feature` describes, reads, labels and begins interventions."""
    feature = trephine.model("tiny").feature(1, 5)
    values = feature.activations(TEXT)
    assert len(values) == 7
    assert feature.label("five", author="ann").text == "five"
    found = feature.describe(tokens=2, neighbours=1)
    assert (found.label.text, len(found.promotes), len(found.neighbours)) == ("five", 2, 1)
    assert found.statistics is None
    assert "five" in feature.html()
    assert feature.change().ablate().target == FeatureRef(layer=1, index=5)
    trephine.model("tiny").features().delete_label((1, 5))


async def test_the_async_client_does_the_same(house, corpus):
    """The awaited surface indexes, describes, searches and labels."""
    address, token = house
    async with await async_client.connect(address, token=token.read_text().strip()) as trephine:
        features = (await trephine.model("tiny")).features()
        predicted = await features.predict_index(corpus, layers=[0])
        index = await features.index(corpus, layers=[0])
        assert predicted.seconds > 0
        assert [one.name for one in await trephine.features.indexes()] == [index.name]
        described = await features.describe((0, 1))
        assert described.index.name == index.name
        hits = await features.search(text=TEXT, count=3)
        assert len(hits) == 3
        await features.set_label(hits[0].feature, "first")
        assert [one.text for one in await features.labels()] == ["first"]
        assert await features.import_labels(await features.export_labels()) == 1
        await features.delete_label(hits[0].feature)
        await trephine.features.delete_index(index.name)


def test_what_cannot_be_sent_is_refused_here(trephine, tmp_path):
    """Half an emoji, two queries and an absent file are typed errors of the client."""
    features = trephine.model("tiny").features()
    with pytest.raises(InvalidRequestError, match="half a character"):
        features.top("half \ud83d")
    with pytest.raises(InvalidRequestError, match="exactly one"):
        features.search()
    with pytest.raises(LocalFileError):
        features.import_labels(tmp_path / "absent")


def test_tokens_are_coloured_by_strength_on_a_terminal(monkeypatch):
    """The peak is strongest, weak tokens are plain, and escapes of a token are shown, not acted on."""
    output = Output(json=False)
    console = Console(force_terminal=True, color_system="truecolor", width=80)
    monkeypatch.setattr(output, "_out", console)
    tokens = [Token(id=i, raw=b"", display=text) for i, text in enumerate((" a", "\x1b[2J", " c"))]
    with console.capture() as capture:
        show_tokens(output, "x ", tokens, (0.0, -1.0, 4.0))
    shown = capture.get()
    assert "\x1b[2J" not in shown
    assert "\\x1b[2J" in shown
    assert shown.count("48;2;") == 2
    assert "1;4;" in shown

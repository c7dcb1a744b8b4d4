import json
from pathlib import Path

import pytest

from tests.builders import tiny_hosted
from tests.unit.engine.fitting.fits import text
from trephine.domain.errors import BrokenCorpusError, UnsupportedOptionError
from trephine.engine.fitting import corpus
from trephine.engine.fitting.contexts import cut, split

BAD = {
    "empty": (b"  \n ", "empty"),
    "zeros": (b"some text \0\0\0 and more", "binary"),
    "noise": (bytes(range(256)) * 40, "binary"),
    "latin": ("naïve café ".encode("latin-1") * 100, "UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str):
    """Binary junk and other encodings are errors that say what to give instead."""
    content, said = BAD[name]
    path = tmp_path / "corpus.txt"
    path.write_bytes(content)
    with pytest.raises(BrokenCorpusError, match=said):
        list(corpus.documents(path))


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ([json.dumps({"text": "a"}), "{"], 2),
        ([json.dumps({"body": "a"})], 1),
        ([json.dumps({"text": "a"}), json.dumps({"text": 3})], 2),
        (["[1, 2]"], 1),
    ],
)
def test_a_wrong_record_is_named(tmp_path: Path, lines: list[str], line: int):
    """JSONL must hold a string under `text` in every line; the first wrong one is named."""
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(BrokenCorpusError) as caught:
        list(corpus.documents(path))
    assert caught.value.context["line"] == line


def test_a_corpus_that_went_away_is_refused(tmp_path: Path):
    """A missing file is a typed error."""
    with pytest.raises(BrokenCorpusError, match="does not exist"):
        corpus.documents(tmp_path / "none.txt")


def test_a_datasets_folder_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without `datasets` a folder is refused, and the message says what to install."""
    monkeypatch.setattr(corpus, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedOptionError, match=r"trephine\[fit\]"):
        list(corpus.documents(tmp_path))


def test_a_datasets_folder_is_read(tmp_path: Path):
    """A folder that `datasets` wrote gives its `text` column; any other folder is refused."""
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(tmp_path / "set")
    assert list(corpus.documents(tmp_path / "set")) == ["one", "two"]
    with pytest.raises(BrokenCorpusError, match="save_to_disk"):
        list(corpus.documents(tmp_path))


def test_too_little_text_is_refused():
    """What cannot be trained on, calibrated and measured is an error that says how much there is."""
    hosted = tiny_hosted("llama")
    with pytest.raises(BrokenCorpusError, match="contexts of 32 tokens"):
        cut(hosted, ["only a few words"], length=32, wanted_tokens=1000, separated=False)


def test_contexts_hold_the_text_in_order():
    """Rows are consecutive pieces; documents are parted by the end token, blocks of one text are not."""
    hosted = tiny_hosted("llama")
    pieces = [text(300), text(300, seed=1)]
    plain = cut(hosted, pieces, length=16, wanted_tokens=10_000, separated=False)
    parted = cut(hosted, pieces, length=16, wanted_tokens=10_000, separated=True)
    assert hosted.decode(plain.flatten().tolist()) in "".join(pieces)
    assert (plain == 0).sum() == 0
    assert (parted == 0).sum() == 1


def test_every_context_begins_with_bos_where_there_is_one():
    """A tokenizer's BOS stands in front of every context and takes a place in it."""
    hosted = tiny_hosted("llama")
    hosted.tokenizer.bos_token = "<|start|>"
    rows = cut(hosted, [text(600)], length=16, wanted_tokens=10_000, separated=False)
    assert set(rows[:, 0].tolist()) == {2}
    assert rows.shape[1] == 16


def test_held_out_contexts_are_the_last_ones():
    """Training never sees what thresholds are set and figures taken on."""
    hosted = tiny_hosted("llama")
    rows = cut(hosted, [text(4000)], length=16, wanted_tokens=100_000, separated=False)
    made = split(rows, prepends_bos=False)
    assert len(made.train) + len(made.calibration) + len(made.held_out) == len(rows)
    assert made.train.tolist() == rows[: len(made.train)].tolist()
    assert abs(len(made.calibration) - len(made.held_out)) <= 1

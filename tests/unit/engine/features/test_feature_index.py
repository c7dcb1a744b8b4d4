"""A feature index holds what the corpus did to the features, whatever interrupted its building."""

from __future__ import annotations

import json
import sqlite3
import tracemalloc
import zlib
from collections import deque
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import tiny_hosted
from tests.resident_sets import resident_set
from trephine.domain.errors import (
    BrokenCorpusError,
    CorruptRecordError,
    InvalidRequestError,
    LayerOutOfRangeError,
    ReplacementNotFoundError,
)
from trephine.domain.feature_index import BINS, DENSE_FIRING, EDGES, SAMPLED_FIRINGS
from trephine.domain.features import FeatureIndexInfo, IndexFeatures
from trephine.engine.features import index as indexing
from trephine.engine.features.corpus import Place, documents
from trephine.engine.features.index import index_features
from trephine.engine.features.tally import LayerTally
from trephine.engine.models.neurons import decoder_norms, neuron_site
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.runs.rows import RowInput, run_rows

TEXT = "\n\n".join(
    f"When Mary and John went to the store {word} gave a drink to the {word} of France"
    for word in ("Mary", "the cat", "a dog", "Paris", "John", "capital", "zebra", "émile")
)


@pytest.fixture(scope="module")
def hosted():
    return tiny_hosted("llama")


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def command(corpus: Path, path: Path, **options: Any) -> IndexFeatures:
    chosen = {"context_tokens": 16, "commit_tokens": 40, "contexts_per_feature": 3, "window": 2, **options}
    return IndexFeatures(corpus=str(corpus), corpus_name="test", path=str(path), **chosen)


def build(hosted: Any, asked: IndexFeatures) -> FeatureIndexInfo:
    return finish(index_features(Session(hosted=hosted), asked))


def content(path: Path) -> dict[str, Any]:
    """Everything that an index answers from, byte for byte."""
    with closing(sqlite3.connect(path)) as database:
        arrays = database.execute("SELECT layer, name, data FROM arrays ORDER BY layer, name").fetchall()
        return {
            "arrays": [(layer, name, zlib.decompress(data)) for layer, name, data in arrays],
            "contexts": database.execute("SELECT * FROM contexts ORDER BY number").fetchall(),
            "tokens": database.execute("SELECT * FROM tokens ORDER BY id").fetchall(),
            "info": database.execute("SELECT value FROM facts WHERE name = 'info'").fetchone(),
        }


def array(path: Path, layer: int, name: str, dtype: str, *shape: int) -> np.ndarray:
    with closing(sqlite3.connect(path)) as database:
        query = "SELECT data FROM arrays WHERE layer = ? AND name = ?"
        (data,) = database.execute(query, (layer, name)).fetchone()
    return np.frombuffer(zlib.decompress(data), dtype).reshape(-1, *shape)


def by_hand(hosted: Any, path: Path, layer: int) -> list[tuple[int, int, int, int, float]]:
    """Every firing as (context, position, feature, token, activation), read without the index's code."""
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT number, tokens FROM contexts ORDER BY number").fetchall()
    firings = []
    for number, blob in rows:
        ids = np.frombuffer(blob, "<i4").tolist()
        values = run_rows(hosted, [RowInput(ids)], reads=[neuron_site(layer)], keep_last=1).values[0]
        hidden = values[neuron_site(layer)]
        sizes = hidden.abs() * decoder_norms(hosted.architecture, layer)
        for position in range(1, len(ids)):
            for feature in sizes[position].topk(DENSE_FIRING).indices.tolist():
                firings.append((number, position, feature, ids[position], float(hidden[position, feature])))
    return firings


def test_statistics_equal_those_counted_by_hand(hosted, corpus, tmp_path):
    """Counts, means, histograms, maxima and tokens are those of a plain loop; position 0 is left out."""
    path = tmp_path / "index"
    info = build(hosted, command(corpus, path))
    firings = by_hand(hosted, path, 1)
    counts, sums = array(path, 1, "counts", "<i8"), array(path, 1, "sums", "<f8")
    histogram = array(path, 1, "histogram", "<u4", BINS)
    masses, largest = array(path, 1, "masses", "<f8"), array(path, 1, "largest", "<f4")
    ids, held = array(path, 1, "token_ids", "<i4", 8), array(path, 1, "token_masses", "<f4", 8)
    assert info.tokens * DENSE_FIRING == len(firings) == counts.sum()
    for feature in range(64):
        own = [one for one in firings if one[2] == feature]
        values = np.asarray([one[4] for one in own])
        assert counts[feature] == len(own)
        assert sums[feature] == pytest.approx(values.sum(), abs=1e-4)
        assert masses[feature] == pytest.approx(np.abs(values).sum(), rel=1e-5)
        assert abs(largest[feature]) == pytest.approx(np.abs(values).max(initial=0), rel=1e-5)
        expected = np.bincount(np.searchsorted(EDGES, np.abs(values), side="right"), minlength=BINS)
        assert np.abs(histogram[feature].astype(int) - expected).sum() <= 2  # a value may lie on an edge
        by_token: dict[int, float] = {}
        for _, _, _, token, value in own:
            by_token[token] = by_token.get(token, 0.0) + abs(value)
        if by_token:
            heaviest = max(by_token, key=lambda token: by_token[token])
            assert held[feature][list(ids[feature]).index(heaviest)] <= by_token[heaviest] * 1.0001


def test_the_strongest_contexts_are_the_strongest_one_per_context(hosted, corpus, tmp_path):
    """The kept peaks are the largest magnitudes over contexts, with the right position and window."""
    path = tmp_path / "index"
    build(hosted, command(corpus, path))
    firings = by_hand(hosted, path, 2)
    values = array(path, 2, "top_values", "<f4", 3)
    contexts, places = array(path, 2, "top_contexts", "<i4", 3), array(path, 2, "top_places", "<i2", 3)
    windows = array(path, 2, "top_windows", "<i1", 3, 5)
    for feature in range(64):
        peaks: dict[int, tuple[float, int, float]] = {}
        for context, position, index, _, value in firings:
            if index == feature and abs(value) > peaks.get(context, (0.0, 0, 0.0))[0]:
                peaks[context] = (abs(value), position, value)
        best = sorted(peaks.items(), key=lambda one: -one[1][0])[:3]
        for slot, (context, (_, position, value)) in enumerate(best):
            assert values[feature, slot] == pytest.approx(value, rel=1e-5)
            assert (contexts[feature, slot], places[feature, slot]) == (context, position)
            assert windows[feature, slot, 2] == (127 if value > 0 else -127)
        assert (contexts[feature, len(best) :] == -1).all()


def test_partners_are_those_of_the_first_firings(hosted, corpus, tmp_path):
    """A feature's partners are counted at its first firings, and never counted too often."""
    path = tmp_path / "index"
    build(hosted, command(corpus, path))
    order = sorted(by_hand(hosted, path, 0))
    ids, counts = array(path, 0, "partner_ids", "<i4", 16), array(path, 0, "partner_counts", "<u1", 16)
    at: dict[tuple[int, int], set[int]] = {}
    for context, position, feature, _, _ in order:
        at.setdefault((context, position), set()).add(feature)
    checked = 0
    for feature in range(64):
        own = [place for place, active in at.items() if feature in active]
        for partner, count in zip(ids[feature], counts[feature], strict=True):
            together = sum(partner in at[place] for place in own)
            assert count <= min(together, SAMPLED_FIRINGS)
            assert partner != feature
            checked += count > 0
    assert checked > 64


@pytest.mark.parametrize("quanta", [9, 14, 19, 24])
def test_an_interrupted_index_ends_as_an_uninterrupted_one(hosted, corpus, tmp_path, quanta):
    """Stopped at any quantum and begun again, the index holds the same bytes."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    build(hosted, command(corpus, whole))
    work = index_features(Session(hosted=hosted), command(corpus, broken))
    for _ in range(quanta):
        next(work)
    work.close()
    with closing(sqlite3.connect(broken)) as database:
        progress = database.execute("SELECT value FROM facts WHERE name = 'progress'").fetchone()
        assert database.execute("SELECT count(*) FROM facts WHERE name = 'info'").fetchone() == (0,)
    build(hosted, command(corpus, broken))
    assert content(broken) == content(whole)
    assert quanta < 14 or json.loads(progress[0])["documents"] > 0


@pytest.mark.parametrize("quanta", [0, 12, 21, 30, 39])
def test_counts_that_memory_does_not_hold_are_made_layer_by_layer(
    hosted, corpus, tmp_path, monkeypatch, quanta
):
    """In several passes over the corpus, interrupted or not, the index is what one pass makes."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    build(hosted, command(corpus, whole))
    monkeypatch.setattr(indexing, "_MEMORY_SHARE", 0.0)
    held = []
    monkeypatch.setattr(indexing, "LayerTally", lambda *a, **k: held.append(a) or LayerTally(*a, **k))
    work = index_features(Session(hosted=hosted), command(corpus, parts))
    shown = [step.done for _, step in zip(range(quanta), work, strict=False) if step is not None]
    work.close()
    build(hosted, command(corpus, parts))
    assert content(parts) == content(whole)
    assert shown == sorted(shown)
    assert len(held) >= 3


def test_a_corpus_is_streamed(tmp_path):
    """However long it is, and a line of it, no more than some pieces are held at once."""
    path = tmp_path / "corpus.txt"
    path.write_text("a line of text\n\n" * 50_000 + "one long line " * 100_000)
    tracemalloc.start()
    try:
        last = deque(documents(path, Place()), maxlen=1)[0]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert last.following.offset == path.stat().st_size > 2_000_000
    assert peak < 500_000


def test_a_finished_index_is_not_built_again(hosted, corpus, tmp_path):
    """A second run reads the answer and does no work."""
    path = tmp_path / "index"
    first = build(hosted, command(corpus, path))
    work = index_features(Session(hosted=hosted), command(corpus, path))
    steps = list(work)
    assert all(step is None for step in steps)
    assert build(hosted, command(corpus, path)) == first
    assert not path.with_name("index-wal").exists()


def test_a_file_of_another_request_is_refused(hosted, corpus, tmp_path):
    """An unfinished index is never gone on with under other options."""
    path = tmp_path / "index"
    build(hosted, command(corpus, path))
    with pytest.raises(CorruptRecordError, match="another request"):
        build(hosted, command(corpus, path, window=1))


def test_max_tokens_stops_between_contexts(hosted, corpus, tmp_path):
    """No context begins beyond the limit, whatever the size of a transaction."""
    path = tmp_path / "index"
    build(hosted, command(corpus, path, max_tokens=20, commit_tokens=1000))
    lengths = [len(tokens) // 4 for _, _, tokens in content(path)["contexts"]]
    assert sum(lengths[:-1]) < 20 <= sum(lengths)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"good text\n\nbad \xff\xfe text", "byte 15 .line 3"),
        (b"good text\n\nbad \x00 text", r"U\+0000 near byte 15 .line 3"),
        (b'{"text": "fine"}\n{"no": 1}\n', "line 2 of the corpus has no `text`"),
        (b'{"text": "fine"}\n{"text": \n', "line 2 of the corpus is no JSON"),
        (b"", "two tokens"),
        (b" \n\n \n", "two tokens"),
    ],
)
def test_a_broken_corpus_says_where(hosted, tmp_path, data, says):
    """What is no text, or too little of it, is refused with line and byte."""
    corpus = tmp_path / "corpus"
    corpus.write_bytes(data)
    with pytest.raises(BrokenCorpusError, match=says):
        build(hosted, command(corpus, tmp_path / "index"))


def test_what_cannot_be_indexed_is_named(hosted, corpus, tmp_path):
    """An unknown set, a layer that is absent and senseless sizes are typed errors."""
    path = tmp_path / "index"
    with pytest.raises(ReplacementNotFoundError):
        build(hosted, command(corpus, path, replacement="nowhere"))
    with pytest.raises(LayerOutOfRangeError):
        build(hosted, command(corpus, path, layers=(1, 3)))
    with pytest.raises(InvalidRequestError, match="at a time"):
        build(hosted, command(corpus, path, context_tokens=10_000))
    with pytest.raises(InvalidRequestError, match="context_tokens"):
        command(corpus, path, context_tokens=1)


def test_documents_can_be_read_on_from_any_place(tmp_path):
    """Reading on from a document's end gives the rest, for text and for JSONL, long lines included."""
    text = tmp_path / "text"
    text.write_text("a é\nb\n\n\n" + "ü" * 100_000 + "\n\nlast", encoding="utf-8")
    records = tmp_path / "records"
    records.write_text('\n{"text": "one"}\n\n{"text": "two\\n\\nstill two"}\n', encoding="utf-8")
    for path, expected in ((text, 4), (records, 2)):
        everything = list(documents(path, Place()))
        assert len(everything) == expected
        for place in range(len(everything)):
            assert list(documents(path, everything[place].following)) == everything[place + 1 :]
    assert "".join(one.text for one in documents(text, Place())).count("ü") == 100_000
    assert [one.text for one in documents(records, Place())] == ["one", "two\n\nstill two"]


def test_a_set_that_is_exchanged_meanwhile_changes_nothing(corpus, tmp_path):
    """An index is of the set that it began with, and of no mixture of two."""
    calm, hosted = tiny_hosted("llama"), tiny_hosted("llama")
    name = resident_set(calm, "relu")
    resident_set(hosted, "relu")
    build(calm, command(corpus, tmp_path / "calm", replacement=name))
    work = index_features(Session(hosted=hosted), command(corpus, tmp_path / "exchanged", replacement=name))
    for _ in range(14):
        next(work)
    resident_set(hosted, "clt")
    finish(work)
    assert content(tmp_path / "exchanged") == content(tmp_path / "calm")

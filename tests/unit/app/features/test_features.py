"""Indexes are built once and kept, labels survive, and descriptions put it all together."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import tiny_hosted
from tests.thinking_engine import thinking_scripts
from tests.unit.app.house import House, house
from trephine.app.features.features import Question
from trephine.app.features.index_reading import IndexReader, _cofiring
from trephine.app.jobs.requests import IndexRequest
from trephine.domain.errors import (
    BrokenCorpusError,
    CorruptRecordError,
    FeatureIndexNotFoundError,
    FeatureOutOfRangeError,
    InvalidRequestError,
    LayerOutOfRangeError,
    ParentChangedError,
    ReplacementNotFoundError,
    ResourceNotFoundError,
    TargetNotOneTokenError,
)
from trephine.domain.features import IndexFeatures
from trephine.domain.operations import OperationState
from trephine.domain.sites import FeatureRef

TEXT = "\n\n".join(
    f"When Mary and John went to the store {word} gave a drink to the {word} of France"
    for word in ("Mary", "the cat", "a dog", "Paris", "John", "capital", "zebra", "émile")
)
NEURONS = Question(model="tiny", replacement="neurons")


@pytest.fixture(scope="module")
def hosted():
    return tiny_hosted("llama")


@pytest.fixture
async def place(tmp_path, hosted):
    made = house(tmp_path, thinking_scripts(hosted))
    await made.operations.open()
    await made.models.load(made.models.resolve("tiny"), lambda progress: None)
    return made


async def corpus_of(place: House, text: str | bytes = TEXT) -> str:
    data = text.encode() if isinstance(text, str) else text
    return (await place.artifacts.put(data, media_type="text/plain")).sha256


def request(corpus: str = "", **options: Any) -> IndexRequest:
    chosen = {"context_tokens": 16, "window": 2, "contexts_per_feature": 3, **options}
    return IndexRequest(model="tiny", command=IndexFeatures(path="", corpus_name="", **chosen), corpus=corpus)


async def build(place: House, asked: IndexRequest, request_id: str = "") -> Any:
    started = await place.operations.start("BuildFeatureIndex", asked, request_id=request_id)
    return await place.operations.wait(started.id)


async def test_an_index_is_published_once_and_answers(place):
    """The same request builds nothing anew; the corpus and the unfinished file are gone afterwards."""
    corpus = await corpus_of(place)
    done = await build(place, request(corpus))
    assert done.state is OperationState.SUCCEEDED, done.failure
    again = await build(place, request(corpus))
    assert again.result == done.result
    built = [one for one in place.launcher.latest.commands if isinstance(one, IndexFeatures)]
    assert len(built) == 1
    folder = place.root / "state" / "feature-indexes"
    assert [path.suffix for path in folder.iterdir()] == [".sqlite"]
    (index,) = await place.feature_indexes.list()
    assert index.name == done.result
    assert index.info.corpus == corpus
    assert index.info.documents == 8


async def test_two_operations_for_one_index_share_the_work(place):
    """Asked for twice at once, an index is built once."""
    corpus = await corpus_of(place)
    first, second = await asyncio.gather(build(place, request(corpus)), build(place, request(corpus)))
    assert first.result == second.result
    assert first.id != second.id
    assert sum(isinstance(one, IndexFeatures) for one in place.launcher.latest.commands) == 1


async def test_a_broken_corpus_fails_the_operation_with_its_place(place):
    """An upload with binary junk ends the operation with line and byte, and leaves no index."""
    done = await build(place, request(await corpus_of(place, b"fine\n\nnot \xff fine")))
    assert done.state is OperationState.FAILED
    assert done.failure.reason == BrokenCorpusError.reason
    assert (done.failure.context["line"], done.failure.context["byte"]) == (3, 10)
    assert await place.feature_indexes.list() == ()


async def test_what_cannot_be_indexed_is_refused_before_any_work(place):
    """Unknown sets, layers and corpora make no operation."""
    for asked, error in (
        (request(replacement="nowhere"), ReplacementNotFoundError),
        (request(layers=(3,)), LayerOutOfRangeError),
        (request("0" * 64), ResourceNotFoundError),
    ):
        with pytest.raises(error):
            await place.operations.start("BuildFeatureIndex", asked, request_id="")
    assert place.operations.list() == ()


async def test_a_prediction_covers_the_features_asked_for(place):
    """Fewer layers take less; the tokens are bounded by the corpus and by what was asked."""
    everything = await place.feature_indexes.predict(request(await corpus_of(place)))
    one = await place.feature_indexes.predict(request(await corpus_of(place), layers=(1,), max_tokens=10))
    held = everything.memory_bytes - one.memory_bytes  # of two layers; a forward pass beside them is the same
    assert 0 < held < everything.memory_bytes
    refused_by = await place.models.predict_command("tiny", request().command)
    assert everything.memory_bytes == refused_by.memory_bytes  # what is told is what admission counts
    assert everything.disk_bytes > one.disk_bytes
    assert one.tokens == 10 < everything.tokens <= len(TEXT)
    assert 0 < one.seconds < everything.seconds


async def test_what_was_begun_is_kept_for_a_week(place, tmp_path):
    """A new server keeps an unfinished index to go on with, and removes one that is older than a week."""
    folder = tmp_path / "state" / "feature-indexes"
    for name, age in (("new.building", 3600), ("old.building", 8 * 86400), ("old.corpus", 8 * 86400)):
        (folder / name).write_bytes(b"x")
        moment = place.clock.now().timestamp() - age
        os.utime(folder / name, (moment, moment))
    house(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["new.building"]


async def test_a_description_joins_weights_index_and_labels(place):
    """View, statistics, label and the labels of neighbours come together; without an index it says so."""
    feature = FeatureRef(layer=1, index=5)
    before = await place.features.describe(NEURONS, 1, 5)
    assert before.statistics is None
    assert any("No index" in caveat for caveat in before.caveats)
    await build(place, request(await corpus_of(place)))
    features = await place.feature_sets.get("tiny", "neurons")
    nearest = before.view.neighbours[0][0]
    await place.labels.set(features, feature, "drinks", "ann")
    await place.labels.set(features, nearest, "near it", "ben")
    found = await place.features.describe(NEURONS, 1, 5)
    assert found.view == before.view
    assert found.label.text == "drinks"
    assert nearest in {label.feature for label in found.labels}
    statistics = found.statistics
    assert statistics.count > 0
    assert statistics.density == statistics.count / found.index.tokens
    assert sum(statistics.histogram.counts) == statistics.count
    assert len(statistics.histogram.edges) == len(statistics.histogram.counts) + 1
    for context in statistics.contexts:
        assert len(context.tokens) == len(context.activations)
        assert abs(context.activations[context.peak]) == pytest.approx(max(map(abs, context.activations)))
    assert any("positions only" in caveat for caveat in found.caveats)


async def test_features_of_another_content_are_not_described(place):
    """Who means certain weights is not told of others."""
    info = await place.models.info("tiny")
    meant = replace(NEURONS, content_hash=info.weight_hash)
    assert (await place.features.describe(meant, 1, 5)).view.feature.index == 5
    with pytest.raises(ParentChangedError, match="their features are others"):
        await place.features.describe(replace(NEURONS, content_hash="f" * 64), 1, 5)


async def test_partners_are_ranked_by_jaccard(place):
    """Not by how often they fire along, which puts what fires everywhere in front."""
    await build(place, request(await corpus_of(place)))
    reordered = 0
    for index in range(64):
        statistics = (await place.features.describe(NEURONS, 1, index)).statistics
        partners = [(one.jaccard, one.count) for one in statistics.cofiring]
        assert [jaccard for jaccard, _ in partners] == sorted((one for one, _ in partners), reverse=True)
        reordered += [count for _, count in partners] != sorted((n for _, n in partners), reverse=True)
    assert reordered > 0


def test_no_partner_fires_along_more_often_than_it_fires():
    """A sample's share may extrapolate to more than the partner has firings."""
    own = {
        "counts": np.int64(155),
        "partner_ids": np.array([3, 4, -1]),
        "partner_counts": np.array([28, 2, 0]),
    }
    counts = np.zeros(8, dtype=np.int64)
    counts[3], counts[4] = 93, 155
    often, rarely, *rest = _cofiring(FeatureRef(replacement="set", layer=8, index=1), own, counts)
    assert (rest, often.feature.index, rarely.feature.index) == ([], 3, 4)
    assert often.jaccard == pytest.approx(93 / 155)
    assert rarely.jaccard == pytest.approx(9.6875 / (310 - 9.6875))


async def test_search_by_token_finds_what_fires_on_it(place):
    """Hits are the features with mass on the token, largest share first; another token has others."""
    await build(place, request(await corpus_of(place)))
    hits = await place.features.on_token(NEURONS, " store")
    found = hits.features
    assert found
    assert hits.caveats == ()
    shares = [one.score for one in found]
    assert shares == sorted(shares, reverse=True)
    described = await place.features.describe(NEURONS, found[0].feature.layer, found[0].feature.index)
    share = {one.token.display: one.share for one in described.statistics.tokens}
    assert share[" store"] == pytest.approx(found[0].score)
    nothing = await place.features.on_token(NEURONS, "<|pad|>")
    assert nothing.features == ()
    assert "occurs nowhere in" in nothing.caveats[0]
    with pytest.raises(TargetNotOneTokenError):
        await place.features.on_token(NEURONS, " store went")


async def test_a_token_that_is_nobodys_own_is_said_to_occur(place, monkeypatch):
    """Where a token is in the corpus but on no feature's list, the answer says so and what to do."""
    await build(place, request(await corpus_of(place)))
    monkeypatch.setattr(IndexReader, "on_token", lambda self, token: ())
    (caveat,) = (await place.features.on_token(NEURONS, " store")).caveats
    assert "occurs in" in caveat
    assert "among the 8 tokens" in caveat
    assert "search by text" in caveat


async def test_search_by_text_and_by_label(place):
    """A text's strongest features come once each; labels match word by word, whatever the case."""
    by_text = (await place.features.in_text(NEURONS, " Mary went to the store")).features
    refs = [one.feature for one in by_text]
    assert len(refs) == len(set(refs)) > 20
    features = await place.feature_sets.get("tiny", "neurons")
    await place.labels.set(features, refs[0], "Names of Women", "ann")
    await place.labels.set(features, FeatureRef(layer=0, index=0), "women", "ann")
    found = await place.features.labelled(NEURONS, "WOMEN")
    assert [one.label for one in found] == ["women", "Names of Women"]
    assert [one.label for one in await place.features.labelled(NEURONS, "women names")] == ["Names of Women"]
    assert (await place.features.in_text(NEURONS, " Mary went to the store")).features[0].label == (
        "Names of Women"
    )
    with pytest.raises(InvalidRequestError, match="write a word"):
        await place.features.labelled(NEURONS, "  ")


async def test_a_search_without_an_index_says_what_to_do(place):
    """Search by token needs an index and says so; an index of another name is no answer."""
    with pytest.raises(FeatureIndexNotFoundError, match="build one"):
        await place.features.on_token(NEURONS, " store")
    with pytest.raises(FeatureIndexNotFoundError):
        await place.features.describe(Question(model="tiny", replacement="neurons", index="gone"), 1, 5)


async def test_a_damaged_index_is_named_and_can_be_deleted(place):
    """A file that is no index is a typed error where it is used, is not listed, and can be removed."""
    done = await build(place, request(await corpus_of(place)))
    name = done.result.partition("/")[2]
    (place.root / "state" / "feature-indexes" / f"{name}.sqlite").write_bytes(b"junk" * 1000)
    with pytest.raises(CorruptRecordError):
        await place.feature_indexes.get(name)
    assert await place.feature_indexes.list() == ()
    await place.feature_indexes.delete(done.result)
    with pytest.raises(FeatureIndexNotFoundError):
        await place.feature_indexes.delete(name)


async def test_labels_survive_and_the_last_write_wins(place, tmp_path):
    """A new process sees the labels; writing again replaces text, author and time."""
    features = await place.feature_sets.get("tiny", "neurons")
    feature = FeatureRef(layer=2, index=63)
    first = await place.labels.set(features, feature, "first", "ann")
    await place.clock.advance(5.0)
    await place.labels.set(features, feature, "second", "")
    reopened = house(tmp_path).labels
    (label,) = await reopened.list(features)
    assert (label.text, label.author) == ("second", "")
    assert label.create_time > first.create_time
    await reopened.delete(features, feature)
    assert await place.labels.list(features) == ()
    with pytest.raises(ResourceNotFoundError):
        await place.labels.delete(features, feature)


async def test_labels_go_out_and_come_back(place):
    """Exported lines import to the same labels."""
    features = await place.feature_sets.get("tiny", "neurons")
    await place.labels.set(features, FeatureRef(layer=0, index=1), "näh \N{CAT FACE} </script>", "ann")
    await place.labels.set(features, FeatureRef(layer=2, index=1), "other", "")
    lines = await place.labels.export_lines(features)
    assert [json.loads(line)["index"] for line in lines.splitlines()] == [1, 1]
    before = await place.labels.list(features)
    for label in before:
        await place.labels.delete(features, label.feature)
    assert await place.labels.import_lines(features, lines, "nobody") == 2
    after = await place.labels.list(features)
    assert [(one.feature, one.text) for one in after] == [(one.feature, one.text) for one in before]
    assert [one.author for one in after] == ["ann", ""]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "blank"),
        (" \t", "blank"),
        ("x" * 201, "201 characters"),
        ("a\nb", r"U\+000A"),
        ("a\x00b", r"U\+0000"),
        ("a\u202eb", r"U\+202E"),
        ("a\ud83d", r"U\+D83D"),
    ],
)
async def test_a_label_must_be_plain_text_on_one_line(place, text, says):
    """Blank, overlong and control characters are refused with their reason."""
    features = await place.feature_sets.get("tiny", "neurons")
    with pytest.raises(InvalidRequestError, match=says):
        await place.labels.set(features, FeatureRef(layer=0, index=0), text, "ann")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (b"", "no label"),
        (b'{"layer": 0, "index": 0, "label": "fine"}\n{"layer": 0}', "line 2"),
        (
            b'{"layer": 0, "index": 0, "label": "fine"}\n{"layer": 9, "index": 0, "label": "x"}',
            "line 2.*layer 9",
        ),
        (b'{"layer": 0, "index": 64, "label": "x"}', "line 1.*0 to 63"),
        (b'{"layer": true, "index": 1, "label": "x"}', "line 1.*whole"),
        (b"[1]", "line 1"),
        (b"\xff\xfe", "line 1"),
    ],
)
async def test_an_import_stores_all_or_nothing(place, lines, says):
    """One bad line is named, and no label of the request is kept."""
    features = await place.feature_sets.get("tiny", "neurons")
    with pytest.raises(InvalidRequestError, match=says):
        await place.labels.import_lines(features, lines, "ann")
    assert await place.labels.list(features) == ()


async def test_labels_of_another_set_are_refused(place):
    """An exported line names its set: for others it is refused by name, and without the hash it is taken."""
    features = await place.feature_sets.get("tiny", "neurons")
    await place.labels.set(features, FeatureRef(layer=0, index=1), "cats", "ann")
    other = replace(features, name="transcoders", content_hash="f" * 64)
    lines = (await place.labels.export_lines(features)).replace(
        features.content_hash.encode(), other.content_hash.encode()
    )
    lines = lines.replace(b'"neurons"', b'"transcoders"')
    with pytest.raises(InvalidRequestError, match=r"line 1.*transcoders \(ffffffffffff\).*for neurons"):
        await place.labels.import_lines(features, lines, "ann")
    assert await place.labels.import_lines(other, lines, "ann") == 1
    bare = json.dumps({**json.loads(lines), "content_hash": features.content_hash}).encode()
    assert await place.labels.import_lines(features, bare, "ann") == 1


async def test_features_that_do_not_exist_are_named(place):
    """Layers and indices out of range, and unknown sets, are typed errors with their field."""
    with pytest.raises(FeatureOutOfRangeError) as caught:
        await place.features.describe(NEURONS, 1, 64)
    assert caught.value.context["field"] == "feature.index"
    with pytest.raises(LayerOutOfRangeError):
        await place.features.describe(NEURONS, 3, 0)
    with pytest.raises(ReplacementNotFoundError):
        await place.features.describe(Question(model="tiny", replacement="nowhere"), 0, 0)


async def test_a_page_links_what_lies_beside_it(place):
    """Rendered with a neighbour beside, the page links to it by the name that the neighbour's page gets."""
    await build(place, request(await corpus_of(place)))
    nearest = (await place.features.describe(NEURONS, 1, 5)).view.neighbours[0][0]
    info = await place.features.render(NEURONS, 1, 5, [(1, nearest.index)])
    html = (await place.artifacts.read(info.sha256)).decode()
    assert f'href="neurons-1-{nearest.index}.html"' in html
    assert html.count("<a ") <= 2
    assert Path(place.root).name not in html

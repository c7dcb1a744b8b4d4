"""Neurons of SmolLM2 looked at: an index of a small corpus, and what it finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.laws import load_model
from trephine.app.features.index_reading import IndexReader
from trephine.domain.features import ContrastFeatures, IndexFeatures, ViewDecoder
from trephine.engine.features.handlers import HANDLERS
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session

pytestmark = [pytest.mark.real, pytest.mark.integration]
LAYER = 20


@pytest.fixture(scope="module")
def session(smollm2) -> Session:
    """SmolLM2 in float32."""
    torch.set_num_threads(1)
    return Session(hosted=load_model(smollm2))


def run(session: Session, command: Any) -> Any:
    return finish(HANDLERS[type(command)](session, command))


def test_an_index_finds_the_neurons_of_a_word(session, tmp_path):
    """The best hit for a token fires on it, and its strongest contexts hold it."""
    corpus = tmp_path / "corpus.txt"
    places = ("Paris", "Berlin", "Madrid", "Rome", "Vienna", "Oslo")
    lines = [
        f"My friend went to {place} in May, and the train to {place} was late again." for place in places
    ]
    corpus.write_text("\n\n".join(lines))
    path = tmp_path / "index.sqlite"
    info = run(session, IndexFeatures(corpus=str(corpus), path=str(path), layers=(LAYER,)))
    assert (info.documents, info.features) == (6, 1536)
    hosted = session.require_model()
    train = hosted.resolve_target(" train")
    reader = IndexReader(path)
    best = reader.on_token(train)[0]
    statistics = reader.statistics(best.feature)
    assert best.share > 0.5
    assert statistics.count >= 5
    assert all(context.tokens[context.peak].id == train for context in statistics.contexts[:3])


def test_a_contrast_tells_languages_apart(session):
    """Neurons that separate French from English have AUROC 0 or 1 and a decoder that can be read."""
    french = (
        "Le chat est sur la table et le chien dort.",
        "Je voudrais une tasse de café, s'il vous plaît.",
        "La ville est belle au printemps, et les rues sont calmes.",
        "Nous avons mangé du pain avec du fromage.",
        "Il pleut souvent dans le nord de la France.",
    )
    english = (
        "The cat is on the table and the dog sleeps.",
        "I would like a cup of coffee, please.",
        "The city is beautiful in spring, and the streets are quiet.",
        "We ate some bread with cheese.",
        "It often rains in the north of England.",
    )
    found = run(session, ContrastFeatures(first=french, second=english, layers=(LAYER,), permutations=999))
    best = found.features[0]
    assert best.auroc in (0.0, 1.0)
    assert best.p_value < 0.02
    view = run(session, ViewDecoder(feature=best.feature, tokens=5))
    assert len(view.promotes) == 5
    assert view.promotes[0][1] > 0 > view.suppresses[0][1]

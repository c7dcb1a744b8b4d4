"""Decisions by heads that have not seen the text."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.builders import tiny_hosted
from tests.spurious_texts import ambiguous
from trephine.domain.errors import TooFewItemsError
from trephine.domain.spurious_heads import Pooling, ProbeHead
from trephine.domain.spurious_removal import RemoveSpuriousFeatures
from trephine.domain.spurious_sizes import FOLDS
from trephine.engine.models.quanta import finish
from trephine.engine.spurious.erasing import erased_on
from trephine.engine.spurious.folds import folds_of
from trephine.engine.spurious.settling import told_apart
from trephine.engine.spurious.study import Study, open_study
from trephine.engine.spurious.turns import decide_by_turns
from trephine.engine.spurious.vectors import Vectors, pool_vectors


@pytest.fixture(scope="module")
def study() -> Study:
    """Texts of which half have a twin."""
    texts = tuple(
        replace(one, twin=one.twin if place % 4 < 2 else None)
        for place, one in enumerate(ambiguous(48, twins=True))
    )
    command = RemoveSpuriousFeatures(training=texts, decision=ProbeHead(layer=0, pooling=Pooling.MEAN))
    return finish(open_study(tiny_hosted("llama"), command))


@pytest.fixture(scope="module")
def vectors(study) -> Vectors:
    """Of the untouched model."""
    return finish(pool_vectors(study, (), "texts", study.everything, attribute=True))


def test_folds_part_nothing_that_belongs_together_and_spread_the_twins(study):
    """A duplicate and a text that is another's twin stay with it; every fifth has its share of twins."""
    texts = list(study.everything)
    texts.append(replace(texts[0], twin=None))
    texts.append(replace(texts[1], ids=next(one.twin for one in texts if one.twin), twin=None))
    folds = folds_of(texts, 3)
    assert sorted(place for fold in folds for place in fold) == list(range(len(texts)))
    home = {place: number for number, fold in enumerate(folds) for place in fold}
    first = next(place for place, one in enumerate(texts) if one.twin is not None)
    assert home[0] == home[len(texts) - 2]
    assert home[first] == home[len(texts) - 1]
    twins = [sum(texts[place].twin is not None for place in fold) for fold in folds]
    assert max(twins) - min(twins) <= 2
    assert folds == folds_of(texts, 3) != folds_of(texts, 4)


def test_few_twins_are_left_out_one_by_one(study):
    """Nine leave eight, which a head without the attribute needs; labels are in every rest."""
    paired = [place for place, one in enumerate(study.everything) if one.twin is not None]
    for count in (9, 10):
        kept = [
            replace(one, twin=one.twin if place in paired[:count] else None)
            for place, one in enumerate(study.everything)
        ]
        folds = folds_of(kept, 0)
        left = [[one for place, one in enumerate(kept) if place not in fold] for fold in folds]
        assert min(sum(one.twin is not None for one in rest) for rest in left) >= 8
        assert all({one.label for one in rest} == {0, 1} for rest in left)
        assert len(folds) == (9 if count == 9 else FOLDS)


def test_nobody_decides_on_a_text_that_it_was_trained_on(study, vectors):
    """Vectors of chance alone: who has seen them knows every label, who has not knows none."""
    generator = torch.Generator().manual_seed(0)
    pooled = torch.randn(len(vectors.texts), 400, generator=generator)
    twins = replace(vectors.twins, vectors=pooled[vectors.twins.rows])
    chance = replace(vectors, pooled=pooled, twins=twins)
    turns = finish(decide_by_turns(study, chance, fixed=None, erased=False))
    head = study.trained(pooled, vectors.texts)
    y = turns.plain.labels
    assert bool((head.decide(twins.vectors) == y).all())
    right = ((turns.plain.texts > 0) == y.bool()).float().mean()
    assert 0.2 < float(right) < 0.8
    assert torch.equal(turns.plain.texts, turns.plain.twins)


def test_decisions_by_turns_are_those_of_heads_without_the_fold(study, vectors):
    """Both kinds, each against a head trained by hand; labels are those of the texts that have twins."""
    turns = finish(decide_by_turns(study, vectors, fixed=None, erased=True))
    rows = vectors.twins.rows.tolist()
    assert turns.plain.labels.tolist() == [vectors.texts[row].label for row in rows]
    folds = folds_of(vectors.texts, study.command.seed)
    assert len(folds) == FOLDS
    for fold in folds:
        seen = vectors.only([place for place in range(len(vectors.texts)) if place not in fold])
        out = [number for number, row in enumerate(rows) if row in fold]
        heads = (
            (study.trained(seen.pooled, seen.texts), turns.plain),
            (finish(erased_on(study, seen)), turns.erased),
        )
        for head, decided in heads:
            unit = told_apart(head, seen)
            for said, own in (
                (decided.texts, vectors.pooled[vectors.twins.rows]),
                (decided.twins, vectors.twins.vectors),
            ):
                expected = head.margin(own[out]).double() / unit
                torch.testing.assert_close(said[out], expected, rtol=1e-4, atol=1e-5)


def test_a_head_that_stays_decides_for_every_fold(study, vectors):
    """Nothing is trained, and nothing without the attribute was asked for."""
    turns = finish(decide_by_turns(study, vectors, fixed=study.head, erased=False))
    expected = study.head.margin(vectors.twins.vectors).double()
    torch.testing.assert_close(turns.plain.twins, expected, rtol=1e-5, atol=1e-6)
    assert turns.erased is None


def test_a_label_whose_texts_all_hang_together_is_refused(study, vectors):
    """A head that is trained without some of them would know no text of that label."""
    texts = tuple(
        replace(one, ids=(number, 1), twin=(0, 7) if one.label == 1 else one.twin)
        for number, one in enumerate(vectors.texts)
    )
    joined = replace(vectors, texts=texts)
    with pytest.raises(TooFewItemsError, match="share a text, a twin or a pair"):
        finish(decide_by_turns(study, joined, fixed=None, erased=False))

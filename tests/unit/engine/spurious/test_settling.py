"""What texts tell that were left out: thresholds, by crossed ones or pairs, and how far heads are shrunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trephine.domain.spurious_heads import Pooling
from trephine.domain.spurious_sizes import SHRINKAGES
from trephine.engine.models.quanta import finish
from trephine.engine.spurious.erasing import fit_each, fit_erased
from trephine.engine.spurious.examples import UNKNOWN, Example, labels
from trephine.engine.spurious.folds import folds_of
from trephine.engine.spurious.heads import STOCK, LinearHead, two_sided
from trephine.engine.spurious.pairs import partners, threshold
from trephine.engine.spurious.pooling import Readout
from trephine.engine.spurious.settling import settle
from trephine.engine.spurious.vectors import Twins, Vectors

PROBE = Readout(layer=1, pooling=Pooling.MEAN)
WIDTH = 60
LABEL, ATTRIBUTE = 0, 1


def _texts(count: int, **told: int) -> tuple[Example, ...]:
    """Texts whose labels alternate, none alike."""
    return tuple(
        Example(
            text=f"text {place}",
            ids=(place, 7),
            label=place % 2,
            attribute=told.get("attribute", UNKNOWN),
            twin=None,
            environment=None,
        )
        for place in range(count)
    )


def _crossing(count: int, paired: int, *, seed: int = 0) -> Vectors:
    """About as many dimensions as texts; the first label's twins are moved farther by the attribute.

    No text alone tells so: only what an edit does to it.
    """
    generator = torch.Generator().manual_seed(seed)
    texts = _texts(count)
    pooled, side = torch.randn(count, WIDTH, generator=generator), 2 * labels(texts) - 1
    pooled[:, LABEL] += 3 * side
    pooled[:, ATTRIBUTE] += 3 * side
    twins = pooled[:paired].clone()
    twins[:, ATTRIBUTE] -= 6 * side[:paired]
    twins[:, LABEL] += 2.0 * (side[:paired] < 0)
    texts = tuple(replace(one, twin=(*one.ids, 9)) if n < paired else one for n, one in enumerate(texts))
    return Vectors(
        texts=texts, pooled=pooled, examples=None, twins=Twins(rows=torch.arange(paired), vectors=twins)
    )


def _fit(vectors: Vectors, factors: Sequence[float]) -> list[LinearHead | None]:
    """One direction forbidden, and twins left aside."""
    attribute = torch.zeros(1, WIDTH)
    attribute[0, ATTRIBUTE] = 1.0
    return fit_each(PROBE, vectors.pooled, labels(vectors.texts), attribute, factors)


def _fitted(vectors: Vectors, factor: float = 1.0) -> LinearHead:
    (head,) = _fit(vectors, (factor,))
    assert head is not None
    return head


def _settled(vectors: Vectors, **told: Tensor | int | None) -> tuple[LinearHead, float]:
    head, factor = finish(settle(_fit, vectors, **{"seed": 0, **told}))
    assert head is not None
    return head, factor


def _same(ours: Tensor, theirs: Tensor) -> None:
    """As two trainings on the same texts come out: which bits a sum ends in is the library's."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_twins_move_the_threshold_to_where_all_are_told_apart():
    """Half-way between the labels, texts and twins counting alike, as some that nobody has seen confirm."""
    vectors = _crossing(120, 60)
    settled, factor = _settled(vectors)
    head = _fitted(vectors, factor)
    _same(settled.weight, head.weight)
    fresh = _crossing(4000, 4000, seed=5)
    y = labels(fresh.texts)
    off, apart = [], 0.0
    for one in (head, settled):
        margins = torch.stack([one.margin(fresh.pooled), one.margin(fresh.twins.vectors)])
        means = [float(margins[:, y == label].mean()) for label in (0, 1)]
        off.append(abs(sum(means)))
        apart = means[1] - means[0]
    assert off[1] < 0.5 * off[0]
    assert off[1] < 0.1 * apart


def test_a_quantum_is_one_training():
    """So that a removal of wide vectors is cancelled within one, however many are left out in turn."""
    vectors, trained = _crossing(60, 30), []

    def fit(seen: Vectors, factors: Sequence[float]) -> list[LinearHead | None]:
        trained.append(len(seen.texts))
        return _fit(seen, factors)

    between = [len(trained) for _ in settle(fit, vectors, seed=0)]
    assert between == list(range(1, len(folds_of(vectors.texts, 0)) + 2))


@pytest.mark.parametrize("by", ["twins", "pairs"])
def test_it_is_what_heads_say_that_were_trained_without(by: str):
    """Against heads that are trained by hand, each in units of how far it tells its own labels apart."""
    vectors, twinned = _crossing(60, 30), 30
    if by == "pairs":
        texts = tuple(replace(one, twin=None, pair=str(n // 2)) for n, one in enumerate(vectors.texts))
        vectors, twinned = replace(vectors, texts=texts, twins=vectors.twins.only([])), 0
    pairs = partners(vectors.texts) if by == "pairs" else None
    settled, factor = _settled(vectors, seed=3, pairs=pairs)
    head, y = _fitted(vectors, factor), labels(vectors.texts)
    texts_said, twins_said = torch.zeros(60).double(), torch.zeros(twinned).double()
    for fold in folds_of(vectors.texts, 3):
        seen = vectors.only([place for place in range(60) if place not in fold])
        without = _fitted(seen, factor)
        apart = _apart(without, seen)
        texts_said[fold] = (without.margin(vectors.pooled[fold]) / apart).double()
        out = [place for place in fold if place < twinned]
        twins_said[out] = (without.margin(vectors.twins.vectors[out]) / apart).double()
    if pairs is None:
        means = [
            said[own == label].mean()
            for said, own in ((texts_said, y), (twins_said, y[:30]))
            for label in (0, 1)
        ]
        at = float(sum(means)) / 4
    else:
        assert factor == 1.0, "nothing tells another one"
        at = threshold(texts_said, pairs)
    moved = head.margin(vectors.pooled) - settled.margin(vectors.pooled)
    expected = torch.full_like(moved, at * _apart(head, vectors))
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-4)
    assert expected.abs().min() > 1e-3


def _apart(head: LinearHead, vectors: Vectors) -> float:
    margins, y = head.margin(vectors.pooled), labels(vectors.texts)
    return float(margins[y == 1].mean() - margins[y == 0].mean())


@pytest.mark.parametrize("why", ["nothing tells it", "one label's twins alone", "stock form", "no head"])
def test_it_stays_where_nothing_tells_it(why: str):
    """Ambiguous texts alone, a stock head without a threshold, or parts without which no head is there."""
    vectors = _crossing(60, 30)
    fit = _fit
    if why == "nothing tells it":
        texts = tuple(replace(one, twin=None) for one in vectors.texts)
        vectors = replace(vectors, texts=texts, twins=vectors.twins.only([]))
    elif why == "one label's twins alone":
        rows = torch.arange(0, 30, 2)
        vectors = replace(vectors, twins=Twins(rows=rows, vectors=vectors.pooled[rows]))
    elif why == "stock form":
        fit = _stock
    else:
        fit = _never_without
    head, factor = finish(settle(fit, vectors, seed=0))
    assert head is not None
    assert factor == 1.0 or why == "stock form"
    (expected,) = fit(vectors, (factor,))
    assert expected is not None
    _same(head.weight, expected.weight)
    _same(head.bias, expected.bias)


@pytest.mark.parametrize("rest", [1e-9, -1e-9, -3.0])
def test_a_head_that_tells_nothing_of_its_own_texts_settles_nothing(rest: float):
    """Its margins have no unit: divided by next to nothing they would carry the threshold past everything.

    By what rounding leaves, of either sign, or the wrong way round.
    """
    vectors = _crossing(60, 30)

    def fit(seen: Vectors, factors: Sequence[float]) -> list[LinearHead | None]:
        heads = _fit(seen, factors)
        if len(seen.texts) == 60 or 0 in {one.ids[0] for one in seen.texts}:
            return heads
        y, margins = labels(seen.texts), _fitted(seen).margin(seen.pooled)
        centred = margins - torch.stack([margins[y == label].mean() for label in (0, 1)])[y] + rest * y
        weight = torch.linalg.lstsq(seen.pooled, centred[:, None]).solution[:, 0]
        return [two_sided(PROBE, weight, 0.0) for _ in factors]

    head, factor = finish(settle(fit, vectors, seed=0))
    assert head is not None
    assert factor == 1.0
    _same(head.bias, _fitted(vectors).bias)


def test_two_pairs_settle_nothing():
    """Without one of them a single one is left, of which nobody knows how it varies."""
    vectors = _crossing(60, 30)
    names = {0: "a", 1: "a", 2: "b", 3: "b"}
    texts = tuple(replace(one, twin=None, pair=names.get(n)) for n, one in enumerate(vectors.texts))
    vectors = replace(vectors, texts=texts, twins=vectors.twins.only([]))

    def fit(seen: Vectors, factors: Sequence[float]) -> list[LinearHead | None]:
        own, nothing = partners(seen.texts), torch.zeros(0, WIDTH)
        return fit_each(PROBE, seen.pooled, labels(seen.texts), nothing, factors, pairs=own)

    head, _ = finish(settle(fit, vectors, seed=0, pairs=partners(texts)))
    (expected,) = fit(vectors, (1.0,))
    assert head is not None
    assert expected is not None
    _same(head.bias, expected.bias)


def _stock(vectors: Vectors, factors: Sequence[float]) -> list[LinearHead | None]:
    return [two_sided(STOCK, _fitted(vectors, factor).direction, 0.0) for factor in factors]


def _never_without(vectors: Vectors, factors: Sequence[float]) -> list[LinearHead | None]:
    return _fit(vectors, factors) if len(vectors.texts) == 60 else [None for _ in factors]


def test_twins_say_how_far_it_is_shrunk():
    """Where the label is written in what varies least, shrinking as far as noise asks for hides it."""
    vectors, generator = _crossing(240, 120), torch.Generator().manual_seed(4)
    turned = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]
    spread = torch.logspace(0, -1.5, WIDTH)

    def written(count: int) -> tuple[Tensor, Tensor]:
        side = 2.0 * (torch.arange(count) % 2) - 1
        pooled = torch.randn(count, WIDTH, generator=generator) * spread
        pooled[:, -5:] += side[:, None] * spread[-5:]
        return pooled @ turned, side

    pooled, _ = written(240)
    twins, _ = written(120)
    sure = replace(vectors, pooled=pooled, twins=replace(vectors.twins, vectors=twins))

    def free(seen: Vectors, factors: Sequence[float]) -> list[LinearHead | None]:
        return fit_each(PROBE, seen.pooled, labels(seen.texts), torch.zeros(0, WIDTH), factors)

    head, factor = finish(settle(free, sure, seed=0))
    assert head is not None
    assert factor in SHRINKAGES[1:]
    fresh, side = written(4000)
    right = [
        float(((one.margin(fresh) > 0) == (side > 0)).double().mean())
        for one in free(sure, (1.0, factor))
        if one is not None
    ]
    assert right[1] > right[0] + 0.05


def test_labels_means_hold_nothing_of_the_attribute():
    """Of twins and their texts alone it cancels; one edit short of enough, all texts count, and it leaks.

    Each edit moves its text in a way of its own, so that a few of them say little of the others.
    """
    generator = torch.Generator().manual_seed(2)
    count, paired = 200, 8  # four of either label
    y = torch.arange(count) % 2
    side = (2 * y - 1)[:, None]
    pooled, moves = (torch.randn(count, WIDTH, generator=generator) for _ in range(2))
    attribute = torch.zeros(WIDTH)
    attribute[10:40] = 1.0
    moves = 1.5 * moves + attribute
    pooled = 0.5 * pooled + side * moves
    pooled[:, LABEL] += 1.5 * side[:, 0]
    twins = Twins(rows=torch.arange(paired), vectors=pooled[:paired] - 2 * side[:paired] * moves[:paired])
    nothing = torch.zeros(0, WIDTH)
    leaks = []
    for count in (paired, paired - 1):
        few = Twins(rows=twins.rows[:count], vectors=twins.vectors[:count])
        head = fit_erased(PROBE, pooled, y, nothing, twins=few)
        assert head is not None
        leaks.append(abs(float(head.direction @ attribute / head.direction[LABEL])))
    assert leaks[0] < 0.5 * leaks[1]

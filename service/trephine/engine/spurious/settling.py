"""What of a head is told by texts that it was not trained on: its threshold, and how far it is shrunk.

A head of as many weights as there are texts fits its own texts: there margins lie close together, on either
side alike. On others they do not, and one side may lie nearer to the threshold, or vary more. So every text
is left out in turn, and the threshold moves by what heads without it say of it, each from its own threshold.

Of texts that have twins, half-way between the labels is taken, texts and twins counting alike, so that either
value of the attribute stands beside either label; of pairs, with twins or without, what is as many standard
deviations from either label. Twins also tell how far the covariance is shrunk: the share that its own noise
asks for is right for the covariance, and a head is made of its inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trephine.domain.spurious_sizes import SHRINKAGES
from trephine.engine.spurious.examples import labels
from trephine.engine.spurious.folds import folds_of
from trephine.engine.spurious.heads import STOCK, LinearHead
from trephine.engine.spurious.information import Paired
from trephine.engine.spurious.judgement import FEWEST
from trephine.engine.spurious.pairs import partners, threshold
from trephine.engine.spurious.vectors import Vectors

Fit = Callable[[Vectors, Sequence[float]], Sequence[LinearHead | None]]
"""Trains a head for each factor of the shrinkage, with the threshold of training texts; None: it cannot."""
_APART = 0.1
"""Of the spread of margins, how far apart labels must be: less is chance, and margins are divided by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Margins:
    """Of heads that have seen neither a text nor its twin, float64; the labels' means are 1 apart."""

    texts: Tensor
    """`(n_factors, n_texts)`."""
    twins: Tensor
    """`(n_factors, n_twins)`."""


def settle(
    fit: Fit, vectors: Vectors, *, seed: int, pairs: Tensor | None = None
) -> Generator[None, None, tuple[LinearHead | None, float]]:
    """Train a head; texts that are left out in turn say with which threshold, and how far it is shrunk.

    A quantum is one training, by all factors.

    Args:
        fit: Trains it.
        vectors: What it is trained on.
        seed: Of who is left out together.
        pairs: `(n_pairs, 2)`, places of the texts of a pair, of a head that ranks these.

    Returns:
        The head, None where none tells the labels apart, and the factor of its shrinkage. The threshold stays
        what it was, and the factor 1, where neither twins nor pairs tell more, or no head can be trained
        without some of the texts; the stock form has no threshold.
    """
    y, rows = labels(vectors.texts), vectors.twins.rows
    twinned = enough_of_both(y[rows])
    factors = SHRINKAGES if twinned else SHRINKAGES[:1]
    ranked = pairs if pairs is not None and len(pairs) > 1 else None
    heads = fit(vectors, factors)
    yield
    able = (twinned or ranked is not None) and None not in heads
    margins = None
    if able:
        margins = yield from _left_out(vectors, fit, factors, seed, pairs=pairs is not None)
    if margins is None:
        return heads[0], factors[0]
    at = torch.zeros(len(factors)).double()
    for place, head in enumerate(heads):
        if head is None or head.readout == STOCK:
            continue
        texts, twins = margins.texts[place], margins.twins[place]
        if ranked is not None:
            at[place] = threshold(texts, ranked)
        else:
            at[place] = (_halfway(texts, y) + _halfway(twins, y[rows])) / 2
    best = 0
    if twinned:
        shifted = _Margins(texts=margins.texts[:, rows] - at[:, None], twins=margins.twins - at[:, None])
        best = _most_told(shifted, y[rows])
    head = heads[best]
    return None if head is None else _moved(head, vectors, float(at[best])), factors[best]


def _halfway(margins: Tensor, y: Tensor) -> float:
    return float(margins[y == 0].mean() + margins[y == 1].mean()) / 2


def _moved(head: LinearHead, vectors: Vectors, at: float) -> LinearHead:
    """Put the threshold where margins are `at`, in units of how far apart the labels are."""
    shift = at * told_apart(head, vectors)
    return replace(head, bias=head.bias + torch.tensor([shift, -shift]) / 2) if shift else head


def _most_told(margins: _Margins, y: Tensor) -> int:
    """Return which head's margins tell most of the labels `(n_twins,)`, of ties the one shrunk furthest."""
    bits = [
        told.mean(told.information())[0]
        for told in (
            Paired(labels=y, texts=texts, twins=twins)
            for texts, twins in zip(margins.texts, margins.twins, strict=True)
        )
    ]
    return bits.index(max(bits))


def enough_of_both(y: Tensor) -> bool:
    """True if labels `(n,)` are of as many texts of either kind as a mean takes."""
    return min(int((y == label).sum()) for label in (0, 1)) >= FEWEST // 2


def _left_out(
    vectors: Vectors, fit: Fit, factors: Sequence[float], seed: int, *, pairs: bool
) -> Generator[None, None, _Margins | None]:
    """Return margins by heads without the text in question; None where one cannot be trained."""
    rows, count = vectors.twins.rows, len(vectors.texts)
    texts = torch.zeros(len(factors), count).double()
    twins = torch.zeros(len(factors), len(rows)).double()
    for fold in folds_of(vectors.texts, seed):
        out = torch.zeros(count, dtype=torch.bool)
        out[fold] = True
        seen = vectors.only((~out).nonzero()[:, 0].tolist())
        if len({one.label for one in seen.texts}) < 2 or (pairs and len(partners(seen.texts)) < 2):
            return None  # of one pair nobody knows how it varies
        for place, head in enumerate(fit(seen, factors)):
            if head is None or not _tells(head, seen):
                return None
            apart = told_apart(head, seen)  # fewer texts make a larger weight
            texts[place, out] = head.margin(vectors.pooled[out]).double() / apart
            twins[place, out[rows]] = head.margin(vectors.twins.vectors[out[rows]]).double() / apart
        yield
    return _Margins(texts=texts, twins=twins)


def _tells(head: LinearHead, vectors: Vectors) -> bool:
    """True if a head tells the labels of its own texts apart at all: else its margins have no unit."""
    spread = float(head.margin(vectors.pooled).double().std())
    return _difference(head, vectors) > _APART * spread


def told_apart(head: LinearHead, vectors: Vectors) -> float:
    """Return how far apart the labels' mean margins are on texts that the head was trained on.

    The unit of its margins, in which heads that were trained on more or fewer texts are alike; 1 where they
    are not apart.
    """
    apart = _difference(head, vectors)
    return apart if apart > 0 else 1.0


def _difference(head: LinearHead, vectors: Vectors) -> float:
    margins, y = head.margin(vectors.pooled).double(), labels(vectors.texts)
    return float(margins[y == 1].mean() - margins[y == 0].mean())

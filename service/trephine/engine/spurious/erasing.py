"""Heads that cannot follow the attribute's directions at their site, and spend their weight sparingly.

A head that is trained again on an ambiguous set finds whatever is left of the attribute. What is known of
the attribute elsewhere forbids it directions: `weight @ direction = 0`, which is what LEACE (Belrose et al.
2023) promises of every linear head, said of this one. Among the heads that are left we take the one whose
decision varies least within a label (Fisher 1936), with the covariance shrunk as far as its own noise asks
for (Ledoit and Wolf 2004): a style that goes with the attribute varies within a label, and costs weight.
Twins are of their text's label, so that what an edit changes is variation within a label too; and so is what
varies among examples of the attribute that hold no label, where that is told.
Texts of one source are not independent; where sources are told, the noise is that between them (Liang and
Zeger 1986), or a head fits what few sources have in common.
Where an edit has both values of the attribute beside each other, its part in the labels' means cancels
exactly, for these texts; of all others it is only forbidden as far as the edits tell it.
Pairs change nothing of this but the threshold: the labels' means differ by the mean difference within pairs,
and a head that decides on single texts must not follow what moves both texts of a pair, as their question.
Thresholds, and with twins how far the covariance is shrunk, are settled on texts that were left out
(`settling`).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.errors import InvalidRequestError
from trephine.engine.spurious.covariances import covariance_of
from trephine.engine.spurious.examples import Example, attributes, labels
from trephine.engine.spurious.heads import STOCK, LinearHead, two_sided
from trephine.engine.spurious.judgement import FEWEST, separation
from trephine.engine.spurious.pairs import threshold
from trephine.engine.spurious.pooling import Readout
from trephine.engine.spurious.settling import enough_of_both, settle
from trephine.engine.spurious.study import Removed, Study
from trephine.engine.spurious.vectors import Twins, Vectors, pool_vectors

_SMALL = 1e-6
"""Scale, relative to the largest, below which an input counts as constant."""
_HELD = 0.9
"""Share of the squared length of twins' changes that the forbidden directions hold."""
_MOST_DIRECTIONS = 16
_FEWEST_SOURCES = 8
"""Of fewer, the noise between them is not known."""
_LABELLED = 0.5
"""Share of the labels' own spread along a decision above which examples hold the label themselves."""
_LEFT = 1e-6
"""Share of the labels' separation that must survive: less is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What tells the attribute from the label at the head's site."""

    directions: Tensor
    """`(k, d_model)`."""
    sources: Tensor | None
    twins: Twins | None
    neutral: Tensor | None
    """`(m, d_model)`, centred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """What could decide once features are removed."""

    plain: LinearHead
    """Trained again as it is, where that was asked for."""
    erased: LinearHead | None
    """Trained with nothing along the attribute; None where that was not asked for, or cannot be."""
    left: float | None = None
    """Of what tells the labels apart, the share that is left to the erased one."""


def heads_without(
    study: Study,
    removed: Removed,
    stage: str,
    *,
    erased: bool = True,
    texts: Sequence[Example] | None = None,
) -> Generator[Progress | None, None, Heads]:
    """Train heads of both kinds on the same vectors.

    Args:
        study: The request in work.
        removed: Features that are gone; without any the head stays as it is.
        stage: Name in the progress.
        erased: False: the plain one alone.
        texts: What they are trained on; None: `fitted`.
    """
    if not study.trains or not removed:
        return Heads(plain=study.head, erased=None)
    texts = study.fitted if texts is None else texts
    wanted = erased and study.command.erase
    vectors = yield from pool_vectors(study, removed, stage, texts, attribute=wanted)
    return (yield from heads_on(study, vectors, erased=wanted))


def heads_on(study: Study, vectors: Vectors, *, erased: bool) -> Generator[None, None, Heads]:
    """Train heads of both kinds, or the plain one alone, on vectors that are there."""
    plain = study.trained(vectors.pooled, vectors.texts)
    head, left = (yield from _erased(study, vectors)) if erased else (None, None)
    return Heads(plain=plain, erased=head, left=left)


def erased_head(
    study: Study, removed: Removed, stage: str, texts: Sequence[Example] | None = None
) -> Generator[Progress | None, None, LinearHead | None]:
    """Train the head with features removed, and with nothing along the attribute.

    Args:
        study: The request in work.
        removed: Features that are gone.
        stage: Name in the progress.
        texts: What it is trained on; None: `fitted`.

    Returns:
        None where nothing tells the attribute from the label, or nothing but the attribute tells the labels
        apart.
    """
    texts = study.fitted if texts is None else texts
    vectors = yield from pool_vectors(study, removed, stage, texts, attribute=True)
    return (yield from erased_on(study, vectors))


def erased_on(study: Study, vectors: Vectors) -> Generator[None, None, LinearHead | None]:
    """Train the head without the attribute on vectors that are there; None as `erased_head`."""
    return (yield from _settled(study, vectors))[0]


def _settled(study: Study, vectors: Vectors) -> Generator[None, None, tuple[LinearHead | None, float]]:
    """Return the head, settled by texts that were left out, and the factor of its shrinkage."""
    pairs, seed = study.pairs(vectors.texts), study.command.seed
    return (yield from settle(partial(_each, study), vectors, seed=seed, pairs=pairs))


def _each(study: Study, vectors: Vectors, factors: Sequence[float]) -> list[LinearHead | None]:
    known = _known(study, vectors)
    if not len(known.directions):
        return [None for _ in factors]
    return _fitted(study, vectors, known, known.directions, factors)


def refuse_labelled_examples(study: Study) -> Generator[Progress | None, None, None]:
    """Look whether examples that were called neutral vary along a decision as the labels do.

    A head that is told so would be kept from reading the label.

    Raises:
        InvalidRequestError: If they do.
    """
    if not (study.command.neutral_examples and study.command.erase and study.trains):
        return
    stage = "are the examples neutral"
    vectors = yield from pool_vectors(study, (), stage, study.fitted, attribute=True)
    known, pooled = _known(study, vectors), vectors.pooled
    if known.neutral is None:
        return
    y = labels(study.fitted)
    head = fit_erased(study.readout, pooled, y, known.directions, sources=known.sources, twins=known.twins)
    share = 0.0 if head is None else labelled_share(head, pooled, y, known.neutral)
    if share > _LABELLED:
        raise InvalidRequestError(
            f"neutral_examples: the attribute's texts vary along the decision by {share:.0%} of what the "
            "labels do, as texts of either label would; leave it out, or give texts of neither label",
            field="neutral_examples",
        )


def labelled_share(head: LinearHead, pooled: Tensor, y: Tensor, neutral: Tensor) -> float:
    """Return how far texts vary along a decision, as a share of what the labels do.

    About 1 if the texts are of either label.

    Args:
        head: Trained without these texts.
        pooled: `(n, d_model)`, what it was trained on.
        y: `(n,)`, 0 or 1.
        neutral: `(m, d_model)`, as `centred` gives them.
    """
    margins = head.margin(pooled).double()
    apart = margins[y == 1].mean() - margins[y == 0].mean()
    varied = (neutral @ head.direction.double()).square().mean()
    return float(varied / (apart / 2).square())


def _erased(study: Study, vectors: Vectors) -> Generator[None, None, tuple[LinearHead | None, float | None]]:
    """Train the head, and one with nothing forbidden; return it, and the share that is left to it."""
    head, factor = yield from _settled(study, vectors)
    if head is None:
        return None, None
    known = _known(study, vectors)
    (free,) = _fitted(study, vectors, known, known.directions[:0], (factor,))
    return head, None if free is None else share_left(head, free, vectors.pooled, labels(vectors.texts))


def _fitted(
    study: Study, vectors: Vectors, known: _Known, forbidden: Tensor, factors: Sequence[float]
) -> list[LinearHead | None]:
    return fit_each(
        study.readout,
        vectors.pooled,
        labels(vectors.texts),
        forbidden,
        factors,
        sources=known.sources,
        twins=known.twins,
        neutral=known.neutral,
        pairs=study.pairs(vectors.texts),
    )


def share_left(head: LinearHead, free: LinearHead, pooled: Tensor, y: Tensor) -> float:
    """Return how far a head tells labels apart, as a share of what the one with nothing forbidden does.

    Both are Fisher's on the same covariance, so that it is the squared sine of the angle between what
    tells the labels apart and the forbidden directions, under that covariance.

    Args:
        head: With directions forbidden.
        free: Without.
        pooled: `(n, d_model)`, what both were trained on.
        y: `(n,)`, 0 or 1.
    """
    apart = [float(separation(one.margin(pooled)[:, None], y)) for one in (head, free)]
    return min(apart[0] / apart[1], 1.0)  # of means of twins it is no sine


def _known(study: Study, vectors: Vectors) -> _Known:
    """Say what examples and twins tell of the attribute."""
    examples = vectors.examples
    twins = vectors.twins if len(vectors.twins.rows) >= FEWEST else None
    return _Known(
        directions=attribute_directions(study, vectors.texts, vectors.pooled, examples, twins),
        sources=sources_of(vectors.texts),
        twins=twins,
        neutral=(
            centred(examples, attributes(study.data.attribute))
            if examples is not None and study.command.neutral_examples
            else None
        ),
    )


def centred(vectors: Tensor, sides: Tensor) -> Tensor:
    """Return vectors `(n, d)` less the mean of their own side, in float64; `sides (n,)` is 0 or 1."""
    wide = vectors.double()
    means = torch.stack([wide[sides == side].mean(0) for side in (0, 1)])
    return wide - means[sides]


def sources_of(texts: Sequence[Example]) -> Tensor | None:
    """Number the environments that texts are from, `(n,)`; None where they are not told or too few."""
    names = {one.environment: 0 for one in texts}
    if None in names or len(names) < _FEWEST_SOURCES:
        return None
    numbers = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers[one.environment] for one in texts])


def attribute_directions(
    study: Study, texts: Sequence[Example], pooled: Tensor, examples: Tensor | None, twins: Twins | None
) -> Tensor:
    """Return what the attribute changes in the pooled vector, float64 `(k, d_model)`.

    The difference of means of `examples` of the attribute, and of `texts` where they are of all groups;
    several directions of `twins`. Vectors of `texts` are `pooled (n_texts, d_model)`.
    """
    found = list[Tensor]()
    if examples is not None:
        found.append(separation(examples, attributes(study.data.attribute)))
    if twins is not None:
        found += changed_directions(pooled[twins.rows], twins.vectors)
    y, sides = labels(texts), attributes(texts)
    cells = [[(y == label) & (sides == side) for side in (0, 1)] for label in (0, 1)]
    if min(int(cell.sum()) for row in cells for cell in row) >= FEWEST:
        parts = [separation(pooled[y == label], sides[y == label]) for label in (0, 1)]
        found.append((parts[0] + parts[1]) / 2)
    return torch.stack(found) if found else torch.zeros(0, study.hosted.info.d_model).double()


def changed_directions(originals: Tensor, twins: Tensor) -> Tensor:
    """Return the directions that hold most of what an edit of the attribute changes, `(k, d_model)`.

    An edit moves different texts differently, so that their mean is not all of it: the leading right singular
    vectors of the changes are taken until they hold `_HELD` of the squared length: none of no change.
    """
    _, sizes, axes = torch.linalg.svd(twins.double() - originals.double(), full_matrices=False)
    axes = axes[sizes > 0]
    energy = sizes.square().cumsum(0) / sizes.square().sum().clamp_min(1e-300)
    return axes[: min(int((energy < _HELD).sum()) + 1, _MOST_DIRECTIONS)]


def fit_erased(
    readout: Readout,
    pooled: Tensor,
    y: Tensor,
    directions: Tensor,
    *,
    sources: Tensor | None = None,
    twins: Twins | None = None,
    neutral: Tensor | None = None,
    pairs: Tensor | None = None,
) -> LinearHead | None:
    """Fit the head of `fit_each` with the covariance shrunk as far as its own noise asks for."""
    return fit_each(
        readout, pooled, y, directions, (1.0,), sources=sources, twins=twins, neutral=neutral, pairs=pairs
    )[0]


def fit_each(
    readout: Readout,
    pooled: Tensor,
    y: Tensor,
    directions: Tensor,
    factors: Sequence[float],
    *,
    sources: Tensor | None = None,
    twins: Twins | None = None,
    neutral: Tensor | None = None,
    pairs: Tensor | None = None,
) -> list[LinearHead | None]:
    """Fit heads of least variance within a label that nothing along `directions` can move.

    w = S^-1 (d - V (V^T S^-1 V)^-1 V^T S^-1 d), d the difference of the labels' means and S their pooled
    covariance, shrunk; all on inputs of unit variance within a label. The threshold lies half-way between the
    means; a stock head has none, so that the half-way point joins the columns of V. Twins count as texts of
    their label, and what they change is added to S unshrunk: few edits know little beyond V, and all of that
    is of the attribute. Where both labels have enough of them, d is of twins and of their texts alone: there
    either value stands beside the other, so that the attribute drops out of d. Neutral texts are more rows of
    S: what varies among them is no label.

    Args:
        readout: Where it reads; the stock site asks for the stock form.
        pooled: `(n, d_model)`.
        y: `(n,)`, 0 or 1, both occurring.
        directions: `(k, d_model)`.
        factors: How many times as far as its noise asks for the covariance is shrunk: one head for each.
        sources: `(n,)`, numbers of the sources that texts are from; None: each is its own.
        twins: Of some of the texts.
        neutral: `(m, d_model)`: texts of neither label, each less the mean of its attribute's value.
        pairs: `(n_pairs, 2)`, of a reward: the threshold of pairs, where the form has one.

    Returns:
        None in place of a head that does not tell the labels apart.
    """
    wide, changes = pooled.double(), pooled.double()[:0]
    told, of = wide, y
    if twins is not None:
        rows, edited = twins.rows, twins.vectors.double()
        changes = edited - wide[rows]
        if enough_of_both(y[rows]):
            told, of = torch.cat([wide[rows], edited]), y[rows].repeat(2)
        wide, y = torch.cat([wide, edited]), torch.cat([y, y[rows]])
        sources = None if sources is None else torch.cat([sources, sources[rows]])
    within = wide - _means(wide, y)[y]
    means = _means(told, of)
    if neutral is not None:
        within = torch.cat([within, neutral.double()])
        sources = None if sources is None else _with_new_sources(sources, len(neutral))
    changed = changes.square().sum(0) / max(len(changes), 1)  # (d_model,)
    deviation = (within.var(0) + changed).sqrt()
    if not float(deviation.max()) > 0:
        return [None for _ in factors]  # one text of either label, or copies: no variance to spare
    scale = torch.where(deviation > _SMALL * deviation.max(), deviation, torch.inf)  # constant: weight 0
    apart, middle = means[1] - means[0], means.mean(0)
    forbidden = torch.cat([directions.double(), middle[None]]) if readout == STOCK else directions.double()
    covariance = covariance_of(within / scale, sources)
    moved = (changes / scale).T @ (changes / scale) / max(len(changes), 1)  # (d_model, d_model)
    columns = (forbidden / scale).T  # (d_model, k)
    asked = torch.cat([(apart / scale)[:, None], columns], 1)
    found = list[LinearHead | None]()
    for factor in factors:
        solved = torch.linalg.solve(covariance.shrunk(factor) + moved, asked)  # (d_model, 1 + k)
        free, blocked = solved[:, 0], solved[:, 1:]
        kept = free - blocked @ (torch.linalg.pinv(columns.T @ blocked, hermitian=True) @ (columns.T @ free))
        weight = kept / scale
        if not float(weight @ apart) > _LEFT * float(free @ (apart / scale)):
            found.append(None)
        elif readout == STOCK:
            found.append(two_sided(readout, weight.float(), 0.0))
        else:
            halfway = float(weight @ middle)
            at = halfway if pairs is None else threshold(pooled.double() @ weight, pairs)
            found.append(two_sided(readout, weight.float(), -at))
    return found


def _means(vectors: Tensor, y: Tensor) -> Tensor:
    """Mean of either label, `(2, d_model)`."""
    return torch.stack([vectors[y == label].mean(0) for label in (0, 1)])


def _with_new_sources(sources: Tensor, count: int) -> Tensor:
    """Add texts that are each from a source of their own."""
    return torch.cat([sources, int(sources.max()) + 1 + torch.arange(count)])

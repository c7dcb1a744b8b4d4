"""What is done without any feature: telling tokens deleted, LEACE and INLP at the head's site.

Each knows of the attribute what the removal is told: its examples, twins, or labelled texts of all groups.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.spurious_arms import Arm, ArmOutcome
from trephine.engine.erasure.affine import Eraser, fit_leace, inlp_rounds
from trephine.engine.erasure.tokens import strongest_tokens, token_associations, without_tokens
from trephine.engine.spurious.examples import UNKNOWN, Example, attributes
from trephine.engine.spurious.judgement import FEWEST
from trephine.engine.spurious.measuring import Measure, Pooled
from trephine.engine.spurious.pooling import Ids
from trephine.engine.spurious.study import Study

INLP_ROUNDS = 20
MOST_TOKENS = 100
"""Deleted at most, the most telling ones."""
SURE = 2.0
"""Least |z| of a deleted token's association."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """Texts of which the attribute is known."""

    texts: list[Ids]
    sides: Tensor
    """`(n_texts,)`, 0 or 1, both occurring."""


def measure_baselines(measure: Measure, plain: Pooled) -> Generator[Progress | None, None, list[ArmOutcome]]:
    """Measure each baseline, the head trained again where heads are; no arm where nothing is told.

    Erasers and tokens are fitted on all that was told, twins of held-out texts among it: figures on these
    are in a baseline's favour. Those on the test split are not.

    Args:
        measure: What arms are measured on.
        plain: Vectors of the untouched model there.
    """
    study = measure.study
    told = _told(study)
    if told is None:
        return []
    vectors = yield from study.pool(told.texts, (), "baselines, attribute")
    texts = [one.ids for one in study.everything] if study.trains else []
    everything = yield from study.pool(texts, (), "baselines, texts")
    arms = []
    for arm in (Arm.LEACE, Arm.INLP):
        erase = yield from _eraser(arm, vectors, told.sides)
        head, validated = study.trained_twice(erase(everything))
        yield None
        arms.append(measure.arm(arm, head, plain.changed(erase), validated))
        yield None
    return [*arms, *(yield from _token_deletion(measure, told))]


def _eraser(arm: Arm, vectors: Tensor, sides: Tensor) -> Generator[Progress | None, None, Eraser]:
    """Fit LEACE, or INLP round by round."""
    if arm is Arm.LEACE:
        return fit_leace(vectors, sides)
    rounds = inlp_rounds(vectors, sides, rounds=INLP_ROUNDS)
    eraser = next(rounds)
    for later in rounds:
        eraser = later
        yield Progress(stage="baselines, INLP", done=eraser.rank, total=INLP_ROUNDS)
    return eraser


def _token_deletion(measure: Measure, told: _Told) -> Generator[Progress | None, None, list[ArmOutcome]]:
    """Delete what tells the attribute from every text; none where no token does."""
    study = measure.study
    found = token_associations(told.texts, told.sides.tolist())
    gone = strongest_tokens(found, above=SURE, at_most=MOST_TOKENS)
    if not gone:
        return []
    edit = partial(_deleted, gone)
    texts = [edit(one.ids) for one in study.everything] if study.trains else []
    head, validated = study.trained_twice((yield from study.pool(texts, (), "tokens deleted")))
    pooled = yield from measure.pooled((), "tokens deleted", edit)
    return [measure.arm(Arm.TOKEN_DELETION, head, pooled, validated)]


def _deleted(gone: frozenset[int], ids: Ids) -> Ids:
    """Delete tokens; two stay in any case, since position 0 alone is an attention sink."""
    kept = tuple(without_tokens(ids, gone))
    return kept if len(kept) > 1 else tuple(ids[:2])


def _told(study: Study) -> _Told | None:
    """Collect examples of the attribute; without them texts and their twins; else texts of all groups."""
    if (examples := _sided(study.data.attribute)) is not None:
        return examples
    paired = [one for one in study.everything if one.twin is not None]
    if len(paired) >= FEWEST:
        own = torch.tensor([one.label if one.attribute == UNKNOWN else one.attribute for one in paired])
        twins = [one.twin or one.ids for one in paired]
        return _Told(texts=[*(one.ids for one in paired), *twins], sides=torch.cat([own, 1 - own]))
    labelled = (*study.data.training, *study.data.held_out)
    groups = [(one.label, one.attribute) for one in labelled]
    enough = min(groups.count((y, a)) for y in (0, 1) for a in (0, 1)) >= FEWEST
    return _sided(labelled) if enough else None


def _sided(texts: Sequence[Example]) -> _Told | None:
    known = [one for one in texts if one.attribute != UNKNOWN]
    sides = attributes(known)
    if min(int((sides == side).sum()) for side in (0, 1)) < FEWEST:
        return None
    return _Told(texts=[one.ids for one in known], sides=sides)

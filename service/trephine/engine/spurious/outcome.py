"""Whether the removal held, on texts in which label and attribute come apart.

Nothing was fitted or chosen by the test split. The number of features and the head were chosen by a
validation split (by which features were judged, too), or by texts and their twins, though no head that is
compared on a text or its twin was trained on it; features were judged on these twins. Examples of the
attribute are no ground: a decision that does not follow the attribute on them may follow it on the texts
themselves, where it is carried otherwise. So may one that is right on twins, by what twins share: they alone
make no PASS.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import compress
from math import asin, degrees, sqrt

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.spurious_groups import group_name
from trephine.domain.spurious_outcomes import Ground, RemovalOutcome, Tally, outcome_on, unmeasured
from trephine.engine.spurious.arms import Measured
from trephine.engine.spurious.choosing import Choice
from trephine.engine.spurious.examples import Example, attributes, in_groups, labels
from trephine.engine.spurious.repeats import once
from trephine.engine.spurious.study import Study

_WOULD_REMOVE = (
    "more that tells the attribute from the label (examples of it, twins, a validation split with texts of "
    "all four groups), or an override that names what is to go"
)


def outcome_of(
    study: Study, choice: Choice, measured: Measured
) -> Generator[Progress | None, None, RemovalOutcome]:
    """Judge what ships by the first ground that there is: test, validation, twins."""
    if not choice.removed:
        return unmeasured(f"nothing was removed: {choice.why}", _WOULD_REMOVE)
    plain, after = measured.plain, measured.after
    if in_groups(measured.test):
        right = [
            head.decide(pooled.test) == labels(measured.test)
            for head, pooled in ((measured.original, plain), (choice.head, after))
        ]
        first = once([one.ids for one in measured.test])
        texts = list(compress(measured.test, first.tolist()))
        return outcome_on(Ground.TEST, _by_group(study, texts, right[0][first], right[1][first]))
    if told := in_groups(study.data.held_out):
        texts = list(compress(told, once([one.ids for one in told]).tolist()))
        return (yield from _on_validation(study, choice, texts))
    if measured.paired:
        y = labels(measured.paired).repeat(2)
        has = torch.tensor([one.twin is not None for one in measured.held_out])
        before, now = (
            head.decide(torch.cat([pooled.held_out[has], pooled.twins])) == y
            for head, pooled in ((study.head, plain), (choice.validated, after))
        )
        apart = [[one.ids for one in measured.paired], [one.twin or one.ids for one in measured.paired]]
        sides = _by_side(study, y, torch.cat([once(side) for side in apart]), before, now)
        return outcome_on(Ground.TWINS, sides, chosen_by=choice.by_twins)
    return unmeasured(_told_by_examples(study, choice))


def _on_validation(
    study: Study, choice: Choice, texts: Sequence[Example]
) -> Generator[Progress | None, None, RemovalOutcome]:
    y = labels(texts)
    ids, gone = [one.ids for one in texts], [one.feature for one in choice.removed]
    plain = yield from study.pool(ids, (), "validation, original")
    after = yield from study.pool(ids, gone, "validation, removed")
    right = study.head.decide(plain) == y, choice.validated.decide(after) == y
    groups = _by_group(study, texts, *right)
    given, tried = bool(study.command.validation), len(choice.points)
    return outcome_on(Ground.VALIDATION, groups, chosen_by=choice.by_groups, given=given, tried=tried)


def _by_group(study: Study, texts: Sequence[Example], before: Tensor, after: Tensor) -> list[Tally]:
    """Count right decisions `(n,)` per label and attribute."""
    data, group = study.data, 2 * labels(texts) + attributes(texts)
    return [
        tally(group_name(label, attribute), group == 2 * y + a, before, after)
        for y, label in enumerate(data.labels)
        for a, attribute in enumerate(data.attributes)
    ]


def _by_side(study: Study, y: Tensor, first: Tensor, before: Tensor, after: Tensor) -> list[Tally]:
    """Count them per label, of texts (the first half) and of twins apart, each as it first stands there."""
    twin = torch.arange(len(y)) >= len(y) // 2
    return [
        tally(f"{name}, {side}", inside, before, after)
        for label, name in enumerate(study.data.labels)
        for side, there in (("as it was", ~twin), ("edited", twin))
        if bool((inside := first & (y == label) & there).any())
    ]


def tally(name: str, inside: Tensor, before: Tensor, after: Tensor) -> Tally:
    """Count right decisions, bool `(n,)` before and after, of the texts that are inside."""
    return Tally(
        name=name,
        texts=int(inside.sum()),
        before=int(before[inside].sum()),
        after=int(after[inside].sum()),
        both=int((before & after)[inside].sum()),
    )


def _told_by_examples(study: Study, choice: Choice) -> str:
    """Say what was measured instead, and why it does not settle it."""
    said = "no text holds one label with the other's attribute: it cannot be told whether this held"
    first, chosen = choice.points[0], choice.point
    if study.data.attribute and first.leak is not None and chosen.leak is not None:
        said += (
            f". On the attribute's examples the decision follows it by {chosen.leak:.2f} instead of "
            f"{first.leak:.2f}, but the ambiguous texts may carry it otherwise"
        )
    return said + _left(choice)


def _left(choice: Choice) -> str:
    """Say how far off what is known of the attribute must be for the rest to be the attribute too."""
    if not choice.erased or choice.final.left is None:
        return ""
    angle = degrees(asin(sqrt(min(max(choice.final.left, 0.0), 1.0))))
    return (
        f". Of what tells the labels apart {choice.final.left:.0%} is left to the head: were the attribute "
        f"{angle:.0f} degrees off what was told of it, that would be the attribute as well"
    )

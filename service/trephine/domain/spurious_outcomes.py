"""Whether a removal held: measured on texts in which label and attribute come apart, or not measured at all.

A decision that was freed on the attribute's examples, or on ambiguous texts, may follow the attribute on
every text that matters. Only what was measured on crossed texts can PASS; doubt is INCONCLUSIVE. Twins
cross what their edit reaches and nothing else: they can show that a removal failed, not that it held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from trephine.domain.findings import Figure, Verdict
from trephine.domain.shares import Interval, against, difference, least, rivals, share

CHANCE = 0.5
"""Below it a group is decided by its attribute rather than by its label."""
SETTLES = "a test or validation split with texts of all four groups"
UNSEEN = "as far as the edits go: cues that twins share are not seen"


class Ground(StrEnum):
    """Texts on which label and attribute come apart. The first that there are decide."""

    TEST = "test"
    """The test split, with all four groups; nothing was chosen by it."""
    VALIDATION = "validation"
    """The validation split, or where none was given what is held out of the ambiguous set, with all four
    groups; the number of features and the head were chosen by it."""
    TWINS = "twins"
    """Held-out ambiguous texts and their twins: per label, either side. Never a PASS: where a cue besides the
    edited one goes with the attribute, the decision may follow that."""
    NOTHING = "nothing"
    """No text holds one label with the other label's attribute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Right decisions on the texts of one group, of the original and of what ships."""

    name: str
    """As it is shown."""
    texts: int
    before: int
    after: int
    both: int | None = None
    """Right before and after; None: not kept, and taken for as few as there can be."""

    @property
    def against(self) -> float:
        """How far the two go against each other, -1 to 0: by it a difference varies more than by chance."""
        fewest = max(self.before + self.after - self.texts, 0)
        return against(self.texts, self.before, self.after, fewest if self.both is None else self.both)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalOutcome:
    """A verdict on a removal, and by how much."""

    verdict: Verdict
    """PASS: the worst group gained, and is decided by the label more often than not, each with its interval.
    FAIL: the same interval excludes one of the two. INCONCLUSIVE: neither, nothing was measured, or it would
    be a PASS by twins alone."""
    ground: Ground
    texts: int
    """Of the smallest group; 0 on no ground."""
    before: Figure | None
    """Accuracy of the worst group as the original decides. Its interval is that of the least of all groups,
    each with Wilson's: a group of few texts is not forgotten where these are right."""
    after: Figure | None
    """The same of what ships."""
    gain: Figure | None
    """Their difference, with Newcombe's interval: the wider one of paired and of unpaired shares, by the
    groups that may be the worst both times. On a validation split, or what is held out for one, its lower
    bound and that of `after` are of the best of all that were compared."""
    why: str
    settles: str
    """What would settle a doubt; empty where there is none."""


def unmeasured(why: str, settles: str = SETTLES) -> RemovalOutcome:
    """Return the outcome of what no text could show."""
    return RemovalOutcome(
        verdict=Verdict.INCONCLUSIVE,
        ground=Ground.NOTHING,
        texts=0,
        before=None,
        after=None,
        gain=None,
        why=why,
        settles=settles,
    )


def outcome_on(
    ground: Ground, groups: Sequence[Tally], *, chosen_by: bool = True, given: bool = True, tried: int = 1
) -> RemovalOutcome:
    """Judge by the worst group before and the worst one after.

    Args:
        ground: Where it was measured.
        groups: Decisions per group, one or more; none is empty.
        chosen_by: False: of held-out texts and twins only the texts took part in the choice; of a held-out
            part with all groups only texts in which the attribute goes with the label.
        given: False: there is no validation split, and texts of the ambiguous set are held out for one.
        tried: Numbers of features and heads that were compared on these very texts, of which this is the
            best: that is luck in part, and the lower bounds are of the best of so many.
    """
    first, last = _rivals(groups)
    befores = [share(one.before, one.texts, least_of=first) for one in groups]
    afters = [share(one.after, one.texts, best_of=tried, least_of=last) for one in groups]
    before, after = _worst(groups, befores), _worst(groups, afters)
    gain, texts = _gain(groups, tried), min(one.texts for one in groups)
    measured = _verdict(after, gain)
    short = ground is Ground.TWINS and measured is Verdict.PASS
    verdict = Verdict.INCONCLUSIVE if short else measured
    place = _PLACES[ground]
    if ground is Ground.TWINS and not chosen_by:
        place = _APART
    if ground is Ground.VALIDATION and not given:
        place = _HELD_OUT if chosen_by else _AMONG_HELD_OUT
    if tried > 1:
        place = f"{place} ({tried} in all, and lower bounds are of the best of so many)"
    limiting = _limiting(measured, groups, afters)
    why = _why(measured, place, texts, before, after, gain)
    if limiting is not None:
        why += f": {_little(measured, groups[limiting], afters[limiting])}"
    limited = None if limiting is None else groups[limiting]
    return RemovalOutcome(
        verdict=verdict,
        ground=ground,
        texts=texts,
        before=before,
        after=after,
        gain=gain,
        why=f"{why}, {UNSEEN}" if short else why,
        settles=_settles(ground, texts, limited) if verdict is Verdict.INCONCLUSIVE else "",
    )


def _worst(groups: Sequence[Tally], shares: Sequence[Interval]) -> Figure:
    """Return the least accurate group under its name, with the bounds of the least of all groups."""
    bounds = least(shares)
    name = groups[_place(groups, shares)].name
    return Figure(name=name, value=bounds.value, low=bounds.low, high=bounds.high, unit="share")


def _place(groups: Sequence[Tally], shares: Sequence[Interval]) -> int:
    """Return the place of the least accurate group, of ties the one with the fewest texts."""
    return min(range(len(groups)), key=lambda place: (shares[place].value, groups[place].texts))


def _rivals(groups: Sequence[Tally]) -> tuple[int, int]:
    """Return how many groups may be the worst one before, and after."""
    before = rivals([(one.before, one.texts) for one in groups])
    return before, rivals([(one.after, one.texts) for one in groups])


def _gain(groups: Sequence[Tally], tried: int) -> Figure:
    """Hold the worst group after against the worst one before.

    Either is that by bad luck in part, so that bounds hold for whichever group it is (Bonferroni): of four
    that are alike the worst before is below what all are, and one of them after would seem to have gained.
    """
    first, last = _rivals(groups)
    befores = [
        share(one.before, one.texts, best_of=last, against_best_of=tried, least_of=first) for one in groups
    ]
    afters = [share(one.after, one.texts, best_of=tried * first, least_of=last) for one in groups]
    before, after = least(befores), least(afters)
    opposed = [
        one.against
        for one, then, now in zip(groups, befores, afters, strict=True)
        if then.low <= before.high and now.low <= after.high  # it may be the worst one both times
    ]
    found = difference(after, before, min(opposed, default=0.0))
    return Figure(name="gain", value=found.value, low=found.low, high=found.high, unit="share")


def _limiting(measured: Verdict, groups: Sequence[Tally], afters: Sequence[Interval]) -> int | None:
    """Return the place of the group that bounds the worst one, where that is another one.

    A failure is bounded from above, a doubt from below; at a pass no group is in question.
    """
    if measured is Verdict.PASS:
        return None
    worst = _place(groups, afters)
    bounds = [one.high if measured is Verdict.FAIL else one.low for one in afters]
    place = min(range(len(bounds)), key=lambda one: (bounds[one], one != worst))
    return None if place == worst else place


def _little(measured: Verdict, group: Tally, after: Interval) -> str:
    """Say what the group may be at that limits the worst one, where that is another one."""
    bound = (
        f"is at most at {after.high:.1%}" if measured is Verdict.FAIL else f"may be as low as {after.low:.1%}"
    )
    return f"{group.name}, with {group.after} of {group.texts} right, {bound}"


def _bounds(figure: Figure) -> tuple[float, float]:
    """Return an interval; of one that was not computed all that a share can be."""
    return (0.0 if figure.low is None else figure.low), (1.0 if figure.high is None else figure.high)


def _verdict(after: Figure, gain: Figure) -> Verdict:
    (least, most), (lost, gained) = _bounds(after), _bounds(gain)
    if lost > 0 and least > CHANCE:
        return Verdict.PASS
    if gained < 0 or most < CHANCE:
        return Verdict.FAIL
    return Verdict.INCONCLUSIVE


def _settles(ground: Ground, texts: int, weakest: Tally | None) -> str:
    """Say what is missing; of twins no number would do."""
    if ground is Ground.TWINS:
        return SETTLES
    of = f", above all of {weakest.name}" if weakest else ""
    apart = ", best in a test split, which nothing is chosen by" if ground is Ground.VALIDATION else ""
    return f"more texts of every group than {texts}{of}{apart}"


def _why(verdict: Verdict, place: str, texts: int, before: Figure, after: Figure, gain: Figure) -> str:
    lost, gained = _bounds(gain)
    said = (
        f"{place}, with {texts} text{'' if texts == 1 else 's'} or more per group, the worst group goes from "
        f"{before.value:.1%} to {after.value:.1%} "
        f"({100 * gain.value:+.1f} points, {100 * lost:+.1f} to {100 * gained:+.1f})"
    )
    if verdict is Verdict.PASS:
        return said
    if verdict is Verdict.FAIL:
        worse = "worse than before" if gained < 0 else "decided against its label more often than not"
        return f"{said}: {worse}"
    if lost <= 0:
        return f"{said}, which may be no gain"
    return f"{said}, which may still be the attribute deciding"


_CHOSEN = "which the number of features and the head were chosen by"
_CHOSEN_AMONG = "among those that the number of features and the head were chosen by"
_PLACES = {
    Ground.TEST: "on the test split",
    Ground.VALIDATION: f"on the validation split, {_CHOSEN}",
    Ground.TWINS: f"on held-out texts and their twins, {_CHOSEN_AMONG}",
}
_HELD_OUT = f"on the held-out part of the ambiguous set, {_CHOSEN}"
_AMONG_HELD_OUT = f"on the held-out part of the ambiguous set, {_CHOSEN_AMONG}"
_APART = f"on held-out texts, {_CHOSEN}, and on their twins"

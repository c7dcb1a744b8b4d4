"""Whether a removal held: measured on texts in which label and attribute come apart, or not measured at all.

A decision that was freed on the attribute's examples, or on ambiguous texts, may follow the attribute on
every text that matters. Only what was measured on crossed texts can PASS; doubt is INCONCLUSIVE. Twins
cross what their edit reaches and nothing else: they can show that a removal failed, not that it held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from trephine.domain.findings import Figure, Verdict
from trephine.domain.shares import Interval, against, difference, least, share

CHANCE = 0.5
"""Below it a group is decided by its attribute rather than by its label."""
SETTLES = "a test or validation split with texts of all four groups"
UNSEEN = "as far as the edits go: cues that twins share are not seen"


class Ground(StrEnum):
    """Texts on which label and attribute come apart. The first that there are decide."""

    TEST = "test"
    """The test split, with all four groups; nothing was chosen by it."""
    VALIDATION = "validation"
    """The validation split, with all four groups; the number of features and the head were chosen by it."""
    TWINS = "twins"
    """Held-out ambiguous texts and their twins: per label, either side. Never a PASS: where a cue besides the
    edited one goes with the attribute, the decision may follow that."""
    NOTHING = "nothing"
    """No text holds one label with the other label's attribute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Right decisions on the texts of one group, of the original and of what ships."""

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
    groups that may be the worst both times."""
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


def outcome_on(ground: Ground, groups: Mapping[str, Tally], *, chosen_by: bool = True) -> RemovalOutcome:
    """Judge by the worst group before and the worst one after.

    Args:
        ground: Where it was measured.
        groups: Decisions by the name of their group; none is empty.
        chosen_by: False: of held-out texts and twins only the texts took part in the choice.
    """
    befores = {name: share(one.before, one.texts) for name, one in groups.items()}
    afters = {name: share(one.after, one.texts) for name, one in groups.items()}
    before, after = (_worst(groups, shares) for shares in (befores, afters))
    lowest = least(list(befores.values())), least(list(afters.values()))
    opposed = [
        one.against
        for name, one in groups.items()
        if befores[name].low <= lowest[0].high and afters[name].low <= lowest[1].high
    ]
    change = difference(lowest[1], lowest[0], min(opposed, default=0.0))
    gain = Figure(name="gain", value=change.value, low=change.low, high=change.high, unit="share")
    texts = min(one.texts for one in groups.values())
    measured = _verdict(after, gain)
    short = ground is Ground.TWINS and measured is Verdict.PASS
    verdict = Verdict.INCONCLUSIVE if short else measured
    place = _PLACES[ground] if chosen_by or ground is not Ground.TWINS else _APART
    limiting = _limiting(measured, after, afters)
    why = _why(measured, place, texts, before, after, gain)
    if limiting:
        why += f": {_little(measured, limiting, groups[limiting], afters[limiting])}"
    return RemovalOutcome(
        verdict=verdict,
        ground=ground,
        texts=texts,
        before=before,
        after=after,
        gain=gain,
        why=f"{why}, {UNSEEN}" if short else why,
        settles=_settles(ground, texts, limiting) if verdict is Verdict.INCONCLUSIVE else "",
    )


def _worst(groups: Mapping[str, Tally], shares: Mapping[str, Interval]) -> Figure:
    """Return the least accurate group under its name, of ties the one with the fewest texts.

    Its bounds are those of the least of all groups.
    """
    name = min(shares, key=lambda one: (shares[one].value, groups[one].texts))
    bounds = least(list(shares.values()))
    return Figure(name=name, value=bounds.value, low=bounds.low, high=bounds.high, unit="share")


def _limiting(measured: Verdict, worst: Figure, afters: Mapping[str, Interval]) -> str:
    """Return the group that bounds the worst one where that is another one, or else nothing.

    A failure is bounded from above, a doubt from below; at a pass no group is in question.
    """
    if measured is Verdict.PASS:
        return ""
    bound = {name: one.high if measured is Verdict.FAIL else one.low for name, one in afters.items()}
    name = min(bound, key=lambda one: (bound[one], one != worst.name))
    return "" if name == worst.name else name


def _little(measured: Verdict, name: str, group: Tally, after: Interval) -> str:
    """Say what the group may be at that limits the worst one, where that is another one."""
    bound = f"at most {after.high:.1%}" if measured is Verdict.FAIL else f"as low as {after.low:.1%}"
    may = "is at" if measured is Verdict.FAIL else "may be"
    return f"{name}, with {group.after} of {group.texts} right, {may} {bound}"


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


def _settles(ground: Ground, texts: int, weakest: str) -> str:
    """Say what is missing; of twins no number would do."""
    if ground is Ground.TWINS:
        return SETTLES
    of = f", above all of {weakest}" if weakest else ""
    return f"more texts of every group than {texts}{of}"


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
_APART = f"on held-out texts, {_CHOSEN}, and on their twins"

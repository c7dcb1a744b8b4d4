"""Whether a removal held: measured on texts in which label and attribute come apart, or not measured at all.

A decision that was freed on the attribute's examples, or on ambiguous texts, may follow the attribute on
every text that matters. Only what was measured on crossed texts can PASS; doubt is INCONCLUSIVE. Twins
cross what their edit reaches and nothing else: they can show that a removal failed, not that it held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import hypot, sqrt

from trephine.domain.findings import Figure, Verdict

_Z = 1.959963984540054
"""Of two-sided intervals of 95 %."""
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
    """Accuracy of the worst group as the original decides, with Wilson's interval."""
    after: Figure | None
    """The same of what ships."""
    gain: Figure | None
    """Their difference, with Newcombe's interval of unpaired shares, which is wider than a paired one."""
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
    before = _worst({name: (one.before, one.texts) for name, one in groups.items()})
    after = _worst({name: (one.after, one.texts) for name, one in groups.items()})
    gain, texts = _newcombe(before, after), min(one.texts for one in groups.values())
    measured = _verdict(after, gain)
    short = ground is Ground.TWINS and measured is Verdict.PASS
    verdict = Verdict.INCONCLUSIVE if short else measured
    place = _PLACES[ground] if chosen_by or ground is not Ground.TWINS else _APART
    return RemovalOutcome(
        verdict=verdict,
        ground=ground,
        texts=texts,
        before=before,
        after=after,
        gain=gain,
        why=_why(measured, place, texts, before, after, gain) + (f", {UNSEEN}" if short else ""),
        settles=_settles(ground, texts) if verdict is Verdict.INCONCLUSIVE else "",
    )


def wilson(hits: int, texts: int) -> tuple[float, float]:
    """Return Wilson's (1927) interval of a share; it does not close where every text is right."""
    share, spread = hits / texts, _Z * _Z / texts
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * sqrt(share * (1 - share) / texts + spread / (4 * texts)) / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _worst(shares: Mapping[str, tuple[int, int]]) -> Figure:
    """Return the least accurate group under its own name; of ties the one with the fewest texts."""
    name = min(shares, key=lambda one: (shares[one][0] / shares[one][1], shares[one][1]))
    hits, texts = shares[name]
    low, high = wilson(hits, texts)
    return Figure(name=name, value=hits / texts, low=low, high=high, unit="share")


def _newcombe(before: Figure, after: Figure) -> Figure:
    """Return `after` less `before`, with Newcombe's (1998) hybrid score interval of two shares."""
    (low, high), (first, last) = _bounds(after), _bounds(before)
    gain = after.value - before.value
    return Figure(
        name="gain",
        value=gain,
        low=gain - hypot(after.value - low, last - before.value),
        high=gain + hypot(high - after.value, before.value - first),
        unit="share",
    )


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


def _settles(ground: Ground, texts: int) -> str:
    """Say what is missing; of twins no number would do."""
    return SETTLES if ground is Ground.TWINS else f"more texts of every group than {texts}"


def _why(verdict: Verdict, place: str, texts: int, before: Figure, after: Figure, gain: Figure) -> str:
    lost, gained = _bounds(gain)
    said = (
        f"{place}, with {texts} texts or more per group, the worst group goes from "
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

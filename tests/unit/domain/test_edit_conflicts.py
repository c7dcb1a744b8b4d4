"""Which edits cannot act together, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trephine.domain.edit_conflicts import ConflictKind, EditConflict, EditInUse, find_conflicts, joined
from trephine.domain.edit_diff import ChangeKind, diff
from trephine.domain.edit_order import LayerPlaces
from trephine.domain.edit_strength import at_strength
from trephine.domain.edits import Edit, EditSet
from trephine.domain.interventions import (
    Ablate,
    Add,
    AddNormScaled,
    Clamp,
    Condition,
    DirectionTarget,
    ErrorTerm,
    FeatureTarget,
    Intervention,
    Mode,
    Operation,
    PatternMode,
    Phase,
    ProjectOut,
    Scale,
    Selector,
    SetTo,
)
from trephine.domain.selector_overlap import overlap
from trephine.domain.sites import NEURONS, FeatureRef, Site, SiteKind

STREAM = Site(kind=SiteKind.RESID_POST, layer=1)
MLP_IN, MLP_OUT = (Site(kind=kind, layer=1) for kind in (SiteKind.MLP_IN, SiteKind.MLP_OUT))
PLACES = {
    ("tc", 1): LayerPlaces(source=MLP_IN, outputs=(MLP_OUT,)),
    ("tc2", 1): LayerPlaces(source=MLP_IN, outputs=(MLP_OUT,)),
    ("sae", 1): LayerPlaces(source=STREAM, outputs=(STREAM,)),
}


def feature(index: int, operation: Operation | None = None, name: str = NEURONS, **rest: Any) -> Intervention:
    """Change a feature of layer 1; ablate it if nothing else is said."""
    ref = FeatureRef(replacement=name, layer=1, index=index)
    return Intervention(target=FeatureTarget(feature=ref), operation=operation or Ablate(), **rest)


def along(vector: tuple[float, ...], operation: Operation, kind: SiteKind = STREAM.kind, layer: int = 1):
    """Change the component along a vector."""
    target = DirectionTarget(site=Site(kind=kind, layer=layer), vector=vector)
    return Intervention(target=target, operation=operation)


def edit(name: str, *interventions: Intervention, **fields: Any) -> EditInUse:
    """An edit at strength 1."""
    given = {
        "version": 1, "content_hash": name, "reason": "", "author": "", "model": "tiny",
        "weight_hash": "w" * 64, "evidence": (), "create_time": "", **fields,
    }  # fmt: skip
    stored = Edit(name=name, interventions=interventions, **given)
    return EditInUse(edit=stored, strength=1.0, interventions=interventions)


def conflicts(one: Intervention, other: Intervention) -> tuple[EditConflict, ...]:
    """Of two edits with one intervention each."""
    return find_conflicts([edit("a", one), edit("b", other)], PLACES)


def when(name: str, index: int) -> Condition:
    """Where a feature of layer 1 is active."""
    return Condition(feature=FeatureRef(replacement=name, layer=1, index=index), at_least=0.5)


FROZEN = Mode(patterns=PatternMode.FROZEN)
FOUND = [
    (feature(3), feature(3, SetTo(value=1.0)), ConflictKind.VALUES),
    (feature(3), feature(3, mode=Mode(strength=0.5)), ConflictKind.VALUES),
    (feature(3, condition=when(NEURONS, 4)), feature(3), ConflictKind.VALUES),
    (along((1.0, 0.0), Add(amount=1.0)), along((2.0, 0.0), Add(amount=1.0)), ConflictKind.VALUES),
    *(
        (along((1.0, 2.0), operation), along((-2.0, -4.0), operation), ConflictKind.VALUES)
        for operation in (
            SetTo(value=3.0), Clamp(low=1.0), Clamp(high=1.0), Clamp(low=-1.0, high=2.0),
            Add(amount=1.0), AddNormScaled(fraction=0.5),
        )
    ),
    (along((1.0, 0.0), Add(amount=1.0)), along((-1.0, 0.0), Add(amount=-1.0)), ConflictKind.TWICE),
    (along((1.0, 0.0), Scale(factor=2.0)), along((-1.0, 0.0), Scale(factor=2.0)), ConflictKind.TWICE),
    (feature(3, Scale(factor=2.0)), feature(3, Scale(factor=2.0)), ConflictKind.TWICE),
    (along((1.0, 0.0), Add(amount=1.0)), along((1.0, 0.0), Add(amount=1.0)), ConflictKind.TWICE),
    (feature(3, SetTo(value=1.0), mode=Mode(strength=0.5)),) * 2 + (ConflictKind.TWICE,),
    (feature(3, ProjectOut()), feature(4, ProjectOut()), ConflictKind.ORDER),
    (along((1.0, 0.0), Ablate()), along((1.0, 1.0), Add(amount=1.0)), ConflictKind.ORDER),
    (along((1.0, 0.0), AddNormScaled(fraction=1.0)), along((0.0, 1.0), Ablate()), ConflictKind.ORDER),
    (along((1.0, 0.0), Ablate(), SiteKind.RESID_PRE, 2), along((1.0, 1.0), Ablate()), ConflictKind.ORDER),
    (along((1.0, 0.0), Ablate(), SiteKind.EMBED, 0), along((1.0, 1.0), Ablate(), SiteKind.RESID_PRE, 0),
     ConflictKind.ORDER),
    (feature(3, condition=when(NEURONS, 4)), feature(4), ConflictKind.ORDER),
    (feature(3, name="sae"), along((1.0, 0.0), Add(amount=1.0)), ConflictKind.ORDER),
    (feature(3, name="tc"), along((1.0, 0.0), Ablate(), SiteKind.MLP_OUT), ConflictKind.ORDER),
    (feature(3, name="tc", error_term=ErrorTerm.DROP), feature(3, name="tc2"), ConflictKind.ORDER),
    (feature(3, name="tc", error_term=ErrorTerm.DROP), feature(4, name="tc"), ConflictKind.ERROR_TERM),
    (feature(3, mode=FROZEN), feature(4), ConflictKind.PATTERNS),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "kind"), FOUND)
def test_every_kind_is_found_in_either_order(one, other, kind):
    """The conflict names both edits, versions and interventions, whichever comes first."""
    (found,) = conflicts(one, other)
    assert found.kind is kind
    assert (found.first, found.second) == ("a@1", "b@1")
    assert (found.first_intervention, found.second_intervention) == (0, 0)
    assert found.target
    assert found.positions.startswith("every position")
    assert str(found).startswith(f"a@1 and b@1 conflict on {found.target} at every position: ")
    assert [one.kind for one in conflicts(other, one)] == [kind]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (feature(3), feature(3)),
        (feature(3, Clamp(low=0.0, high=1.0)), feature(3, Clamp(low=0.0, high=1.0))),
        (feature(3), feature(4, Scale(factor=2.0))),
        (feature(3), replace(feature(3), target=feature(4, name="tc").target)),
        (along((1.0, 0.0), Ablate()), along((0.0, 3.0), Ablate())),
        *(
            (along((1.0, 0.0), one), along((-2.0, 0.0), other))
            for one, other in (
                (Ablate(), Ablate()),
                (ProjectOut(), ProjectOut()),
                (SetTo(value=0.0), SetTo(value=0.0)),
                (SetTo(value=3.0), SetTo(value=-3.0)),
                (Clamp(low=1.0), Clamp(high=-1.0)),
                (Clamp(low=-1.0, high=1.0), Clamp(low=-1.0, high=1.0)),
                (Clamp(low=-1.0, high=2.0), Clamp(low=-2.0, high=1.0)),
            )
        ),
        (along((1.0, 0.0), Add(amount=1.0)), along((1.0, 1.0), Add(amount=1.0))),
        (along((1.0, 0.0), Ablate()), along((1.0, 1.0), Ablate(), SiteKind.MLP_OUT)),
        (feature(3, name="tc"), feature(4, name="tc")),
        (feature(3, name="tc"), feature(3, name="tc2")),
        (feature(3, name="tc", error_term=ErrorTerm.DROP), feature(4, name="tc", error_term=ErrorTerm.DROP)),
        (feature(3, name="sae"), feature(4, name="sae")),
        (feature(3, name="tc"), along((1.0, 0.0), Ablate(), SiteKind.MLP_IN)),
    ],
)
def test_what_can_be_swapped_is_no_conflict(one, other):
    """Equal operations that change nothing twice, other coordinates, shifts, orthogonal directions."""
    assert conflicts(one, other) == ()


@pytest.mark.parametrize(
    ("one", "other", "where"),
    [
        (Selector(), Selector(), "every position"),
        (Selector(positions=(1, 2)), Selector(positions=(2, 3)), "positions 2"),
        (Selector(positions=(1,)), Selector(positions=(2,)), None),
        (Selector(positions=(1,)), Selector(positions=(-1,)), "positions -1, 1"),
        (Selector(positions=(-1,)), Selector(positions=(-2,)), None),
        (Selector(positions=(1, 2)), Selector(exclude_positions=(2,)), "positions 1"),
        (Selector(positions=(2,)), Selector(exclude_positions=(2,)), None),
        (Selector(tokens=(5, 6)), Selector(tokens=(6,)), "every position with tokens 6"),
        (Selector(tokens=(6,)), Selector(positions=(2,)), "positions 2 if they hold tokens 6"),
        (Selector(tokens=(5,)), Selector(exclude_tokens=(5,)), None),
        (Selector(tokens=(5,)), Selector(tokens=(6,)), None),
        (Selector(phases=(Phase.PROMPT,)), Selector(phases=(Phase.GENERATION,)), None),
        (Selector(phases=(Phase.PROMPT,)), Selector(), "every position of the prompt"),
    ],
)
def test_selectors_that_never_meet_cannot_conflict(one, other, where):
    """What cannot be told without a text counts as meeting: position 1 may be the last one."""
    assert overlap(one, other) == overlap(other, one) == where
    found = conflicts(feature(3, selector=one), feature(3, SetTo(value=1.0), selector=other))
    assert [conflict.positions for conflict in found] == ([] if where is None else [where])


def test_whole_edits_can_be_in_each_others_way():
    """Other weights, or another set under the same name: said once, not per intervention."""
    here, there = edit("a", feature(3), feature(4)), edit("b", feature(3), weight_hash="v" * 64)
    (found,) = find_conflicts([here, there], {})
    assert (found.kind, found.target, found.first_intervention) == (ConflictKind.WEIGHTS, "", -1)
    assert str(found) == (
        "a@1 and b@1 conflict: they were made for different weights, wwwwwwwwwwww of tiny and "
        "vvvvvvvvvvvv of tiny"
    )
    sets = [edit(n, feature(3, name="tc"), sets=(EditSet(name="tc", content_hash=n * 64),)) for n in "ab"]
    assert [one.kind for one in find_conflicts(sets, PLACES)] == [ConflictKind.SET]


def test_every_two_of_several_are_compared():
    """The third edit conflicts with the first only, by its second intervention."""
    found = find_conflicts(
        [edit("a", feature(3)), edit("b", feature(4)), edit("c", feature(5), feature(3, SetTo(value=1.0)))],
        {},
    )
    assert [(one.first, one.second, one.second_intervention) for one in found] == [("a@1", "c@1", 1)]
    assert found[0].target == "neurons:1:3"
    assert found[0].why == "one does ablate, the other one set(value=1.0)"


def test_opposite_directions_are_said_to_be():
    """Equal words for what is unequal would be no help."""
    (found,) = conflicts(along((1.0, 0.0), SetTo(value=3.0)), along((-1.0, 0.0), SetTo(value=3.0)))
    assert found.why == "one does set(value=3.0), the other one set(value=3.0) along the opposite direction"


def test_strength_decides_whether_values_differ():
    """Half of an ablation is another value than an ablation, and twice half is done twice."""
    half = at_strength((feature(3),), 0.5)[0]
    assert [one.kind for one in conflicts(feature(3), half)] == [ConflictKind.VALUES]
    assert [one.kind for one in conflicts(half, half)] == [ConflictKind.TWICE]


def test_what_does_nothing_is_in_no_ones_way():
    """At strength 0 an edit changes no value; error terms and patterns are of a row all the same."""

    def idle(one: Intervention, other: Intervention) -> list[ConflictKind]:
        still, there = edit("a", one), edit("b", other)
        still = replace(still, strength=0.0, interventions=at_strength(still.interventions, 0.0))
        found, turned = (
            [each.kind for each in find_conflicts(pair, PLACES)] for pair in ([still, there], [there, still])
        )
        assert found == turned
        return found

    assert idle(feature(3), feature(3, SetTo(value=1.0))) == []
    assert idle(feature(3), feature(4, condition=when(NEURONS, 3))) == []
    assert idle(feature(3, name="sae"), along((1.0, 0.0), Add(amount=1.0))) == []
    dropped = feature(4, name="tc", error_term=ErrorTerm.DROP)
    assert idle(feature(3, name="tc"), dropped) == [ConflictKind.ERROR_TERM]
    assert idle(feature(3, mode=FROZEN), feature(5)) == [ConflictKind.PATTERNS]


def test_what_edits_have_in_common_is_joined_once():
    """Order is kept; what would add up stays (it is a conflict), what changes nothing twice does not."""
    one, other = edit("a", feature(3), feature(4)), edit("b", feature(4), feature(5, Add(amount=1.0)))
    assert joined([one, other]) == (feature(3), feature(4), feature(5, Add(amount=1.0)))


def test_a_diff_says_what_became_of_every_intervention():
    """Matched by target: kept, changed (and in what), removed, added; order and other fields apart."""
    first = edit("a", feature(1), feature(2), feature(3), reason="old").edit
    second = edit(
        "a", feature(3), feature(2, label="x", mode=FROZEN), feature(9), reason="new", version=2
    ).edit
    found = diff(first, replace(second, content_hash="other"))
    assert [one.kind for one in found.changes] == [ChangeKind.REMOVED, ChangeKind.CHANGED, ChangeKind.ADDED]
    assert found.changes[0].before == feature(1)
    assert found.changes[1].fields == ("mode", "label")
    assert found.changes[2].after == feature(9)
    assert (found.unchanged, found.reordered, found.fields) == (1, False, ("reason",))
    assert not found.same_content
    same = diff(first, replace(first, interventions=(feature(2), feature(1), feature(3))))
    assert (same.changes, same.unchanged, same.reordered, same.same_content) == ((), 3, True, True)

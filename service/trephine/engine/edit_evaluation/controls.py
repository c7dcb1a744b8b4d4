"""The edit beside matched random features, and beside those of another layer: effect and damage.

On target sets it is the effect that is compared, on retain sets the damage. Controls outnumber the edit a
hundredfold, so they run on a part of every set, and the edit is compared with them on that very part.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.control_counts import acting, reached
from trephine.domain.edit_evaluation import (
    ControlComparison,
    ControlMatching,
    EvaluateEdit,
    EvaluationArm,
    FeatureControls,
    SetResult,
    SetRole,
)
from trephine.domain.interventions import DirectionTarget, FeatureTarget, Intervention, SiteTarget
from trephine.domain.sites import SiteKind
from trephine.engine.edit_evaluation.figures import damages, statistic_name, statistics
from trephine.engine.edit_evaluation.matching import (
    Draws,
    Target,
    draw_stand_ins,
    features_of,
    targets_of,
)
from trephine.engine.edit_evaluation.reading import Arm, Readings, read_units
from trephine.engine.edit_evaluation.standins import stand_in
from trephine.engine.edit_evaluation.telling import told
from trephine.engine.edit_evaluation.units import TextUnit, Unit, UnitSet
from trephine.engine.edit_evaluation.uses import Place, Uses, measure_uses
from trephine.engine.edits.controls import place_of
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import covered_layers
from trephine.engine.runs.retain import RetainText

_FEWEST_UNITS = 8
_PARTS_OF_DEPTH = (2, 3, 5, 10, 30)
"""Of the covered layers: how far away a wrong layer is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """What is run beside the edit."""

    random: tuple[Arm, ...]
    wrong_layer: tuple[Arm, ...]
    matching: ControlMatching


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """Other layers for every layer that the edit changes, the farthest first."""

    layers: tuple[Mapping[Place, int], ...]
    notes: tuple[str, ...] = ()


def draw_controls(
    hosted: HostedModel, retain: RetainText, command: EvaluateEdit
) -> Generator[Progress, None, Controls]:
    """Measure how features are used, and draw stand-ins."""
    interventions, options = command.edit.interventions, command.controls
    targets = targets_of(interventions)
    places = tuple(dict.fromkeys(place_of(feature) for feature in features_of(targets)))
    sites = tuple(sorted({one.site for one in targets if isinstance(one, DirectionTarget)}))
    elsewhere = _elsewhere(hosted, interventions, places)
    wanted = [*places, *((name, to) for one in elsewhere.layers for (name, _), to in one.items())]
    measuring = measure_uses(hosted, retain, list(dict.fromkeys(wanted)), sites)
    uses, activations = yield from told(measuring, "use on the retain text", len(retain.windows))
    here = {place: place[1] for place in places}
    drawn = there = Draws(sets=(), factor=0.0)
    moved: Mapping[Place, int] = {}
    whole = _notes_of_sites(interventions)
    if not whole:  # what has no stand-in would be missing from every control
        drawn = draw_stand_ins(
            targets, uses, activations, here, options, sets=options.sets, seed=command.seed
        )
        there, moved = draw_elsewhere(targets, uses, elsewhere, options, seed=command.seed + 1)
    return Controls(
        random=_arms(interventions, drawn, uses),
        wrong_layer=_moved(hosted, _arms(interventions, there, uses), interventions),
        matching=ControlMatching(
            matched=len(targets) - len(drawn.unmatched),
            unmatched=drawn.unmatched,
            factor=drawn.factor,
            wrong_layer_factor=there.factor,
            wrong_layers=tuple(f"{n}:{a} -> {b}" for (n, a), b in moved.items()),
            notes=(
                *drawn.notes,
                *whole,
                *elsewhere.notes,
                *(f"other layers: {note}" for note in there.notes),
            ),
        ),
    )


def compare(
    hosted: HostedModel, units: UnitSet, controls: Controls, command: EvaluateEdit
) -> Generator[Progress, None, tuple[ControlComparison, ...]]:
    """Run the edit and its controls on some units of a set: its effect on a target set, its damage elsewhere.

    The units are drawn by the seed, until there are enough tokens and enough units.
    """
    chosen = controlled_part(units, command.controls, command.seed)
    beside = (*controls.random, *controls.wrong_layer)
    if chosen is None or not beside:
        return ()
    arms = [Arm(interventions=command.edit.interventions), *beside]
    reading = read_units(hosted, chosen.units, arms)
    readings = yield from told(reading, f"controls on {units.name}", len(chosen.units))
    count = len(controls.random)
    found: list[ControlComparison] = []
    for statistic, values in compared_by(units.role, readings).items():
        effect, *others = values.tolist()
        groups = (
            (EvaluationArm.RANDOM, others[:count]),
            (EvaluationArm.WRONG_LAYER, others[count:]),
        )
        found += [_comparison(arm, statistic, effect, tuple(group), chosen) for arm, group in groups if group]
    return tuple(found)


def compared_by(role: SetRole, readings: Readings) -> dict[str, Tensor]:
    """Return what the edit and its controls are compared by on a set, each `(arms,)`, by name."""
    if role is SetRole.TARGET:
        return {statistic_name(readings): statistics(readings)}
    return damages(readings)


def controlled_part(units: UnitSet, controls: FeatureControls, seed: int) -> UnitSet | None:
    """Draw the units that controls run on; None: no control is to run on this set.

    Texts of retain sets are cut to an eighth of the tokens, so that they are of eight texts and not of two.
    """
    if units.role is SetRole.TARGET:
        return subset(units, controls.tokens, seed)
    if not controls.of_retain:
        return None
    cut = replace(units, units=tuple(_cut(unit, controls.retain_cut) for unit in units.units))
    return subset(cut, controls.of_retain, seed)


def p_value(statistic: str, effect: float, values: Sequence[float]) -> float:
    """Return (1 + #{controls that do as much}) / (sets + 1) (Davison and Hinkley 1997), of those that act."""
    counted = acting(statistic, values) if acting(statistic, [effect]) else values
    return (1 + reached(statistic, effect, counted)) / (len(counted) + 1)


def _comparison(
    arm: EvaluationArm, statistic: str, effect: float, values: tuple[float, ...], chosen: UnitSet
) -> ControlComparison:
    p = p_value(statistic, effect, values)
    return ControlComparison(
        arm=arm,
        statistic=statistic,
        effect=effect,
        values=values,
        p_value=p,
        adjusted_p_value=p,
        units=len(chosen.units),
        tokens=chosen.tokens,
    )


def _cut(unit: Unit, tokens: int) -> Unit:
    return TextUnit(unit.ids[:tokens]) if isinstance(unit, TextUnit) else unit


def holm(comparisons: Sequence[ControlComparison]) -> tuple[ControlComparison, ...]:
    """Adjust the p-values of several sets for there being several (Holm 1979), in their order."""
    order = sorted(range(len(comparisons)), key=lambda i: comparisons[i].p_value)
    adjusted, largest = list(comparisons), 0.0
    for rank, number in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * comparisons[number].p_value))
        adjusted[number] = replace(comparisons[number], adjusted_p_value=largest)
    return tuple(adjusted)


def adjusted_for_sets(results: Sequence[SetResult]) -> list[SetResult]:
    """Adjust the p-values of every kind of controls over the sets of a role.

    Effects are compared by one figure a set. Damages are compared by several, which say the same of one set;
    each is adjusted for the sets alone.
    """
    families: dict[tuple[SetRole, EvaluationArm, str], list[ControlComparison]] = {}
    for one in results:
        for comparison in one.controls:
            families.setdefault(_family(one.role, comparison), []).append(comparison)
    after = {family: iter(holm(members)) for family, members in families.items()}
    return [
        replace(one, controls=tuple(next(after[_family(one.role, c)]) for c in one.controls))
        for one in results
    ]


def _family(role: SetRole, comparison: ControlComparison) -> tuple[SetRole, EvaluationArm, str]:
    """Target sets of texts and of items stand in one family, whatever their effect is measured in."""
    return role, comparison.arm, comparison.statistic if role is SetRole.RETAIN else ""


def subset(units: UnitSet, tokens: int, seed: int) -> UnitSet:
    """Draw units until they have enough tokens; at least 8, or all."""
    order = torch.randperm(len(units.units), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen: list[int] = []
    have = 0
    for number in order:
        if have >= tokens and len(chosen) >= _FEWEST_UNITS:
            break
        chosen.append(number)
        have += units.units[number].tokens
    return replace(units, units=tuple(units.units[number] for number in sorted(chosen)))


def _elsewhere(
    hosted: HostedModel, interventions: Sequence[Intervention], places: Sequence[Place]
) -> Elsewhere:
    """Move all layers by the same number of those that their set covers, round the end, far ones first.

    How much features write grows with depth, so the farthest layer may have nothing like them.
    """
    if any(_reads_another(one) for one in interventions):
        return Elsewhere(layers=(), notes=("no other layer: a condition reads another feature",))
    covered = {place: covered_layers(hosted, place[0]) for place in places}
    fewest = min(map(len, covered.values()), default=0)
    if fewest == 1:
        return Elsewhere(layers=(), notes=("no other layer: a set covers one layer only",))
    nowhere = _no_place_for_directions(hosted, interventions)
    if nowhere:
        return Elsewhere(layers=(), notes=(f"no other layer: {nowhere}",))
    shifts = dict.fromkeys(max(1, fewest // part) for part in _PARTS_OF_DEPTH)
    return Elsewhere(
        layers=tuple(
            {place: of[(of.index(place[1]) + shift) % len(of)] for place, of in covered.items()}
            for size in shifts
            for shift in (-size, size)
            if fewest
        )
    )


def _no_place_for_directions(hosted: HostedModel, interventions: Sequence[Intervention]) -> str:
    """Say why directions cannot be moved to another layer; empty if they can, or there are none."""
    own = {one.target for one in interventions if isinstance(one.target, DirectionTarget)}
    if any(target.site.kind is SiteKind.EMBED for target in own):
        return "a direction is at the embedding, which is before the first layer and nowhere else"
    if own and hosted.info.n_layers == 1:
        return "the model has one layer"
    if own and {_in_another_layer(hosted, target) for target in own} <= own:
        return "the edit has the same directions in every layer that they would be moved to"
    return ""


def _in_another_layer(hosted: HostedModel, target: DirectionTarget) -> DirectionTarget:
    """Return a direction at the same site half of the depth away, round the end."""
    n_layers = hosted.info.n_layers
    layer = (target.site.layer + n_layers // 2) % n_layers
    return replace(target, site=replace(target.site, layer=layer))


def _reads_another(one: Intervention) -> bool:
    own = one.target.feature if isinstance(one.target, FeatureTarget) else None
    return one.condition is not None and one.condition.feature != own


def draw_elsewhere(
    targets: Sequence[Target],
    uses: Uses,
    elsewhere: Elsewhere,
    controls: FeatureControls,
    *,
    seed: int,
) -> tuple[Draws, Mapping[Place, int]]:
    """Draw in the farthest layers that have enough like every feature, else in those that have most.

    Directions are kept as they are, to be put at the same site of another layer.
    """
    nowhere: Mapping[Place, int] = {}
    features = [target for target in targets if isinstance(target, FeatureTarget)]
    kept: dict[Target, Target] = {one: one for one in targets if isinstance(one, DirectionTarget)}
    sets = controls.wrong_layer_sets
    if not sets or elsewhere.notes:
        return Draws(sets=(), factor=0.0), nowhere
    wanted = sets if features else 1
    best, chosen = Draws(sets=(), factor=0.0, notes=("none has features that are used like these",)), nowhere
    for layers in elsewhere.layers or (nowhere,):
        drawn = draw_stand_ins(features, uses, {}, layers, controls, sets=wanted, seed=seed)
        if not drawn.unmatched and len(drawn.sets) > len(best.sets):
            best, chosen = drawn, layers
        if len(best.sets) == wanted:
            break
    return replace(best, sets=tuple({**one, **kept} for one in best.sets)), chosen


def _moved(
    hosted: HostedModel, arms: Sequence[Arm], interventions: Sequence[Intervention]
) -> tuple[Arm, ...]:
    """Put directions, as they are, at the same site of another layer."""
    own = {one.target.site: one.target for one in interventions if isinstance(one.target, DirectionTarget)}
    if not own or not arms:
        return tuple(arms)

    def moved(one: Intervention, given: Intervention) -> Intervention:
        if not isinstance(given.target, DirectionTarget):
            return one
        return replace(one, target=_in_another_layer(hosted, given.target))

    return tuple(
        Arm(
            interventions=tuple(
                moved(one, given) for one, given in zip(arm.interventions, interventions, strict=True)
            )
        )
        for arm in arms
    )


def _arms(interventions: Sequence[Intervention], drawn: Draws, uses: Uses) -> tuple[Arm, ...]:
    return tuple(Arm(interventions=stand_in(interventions, one, uses)) for one in drawn.sets)


def _notes_of_sites(interventions: Sequence[Intervention]) -> tuple[str, ...]:
    whole = sum(isinstance(one.target, SiteTarget) for one in interventions)
    if not whole:
        return ()
    return (f"no controls: {whole} interventions are on whole activations, which nothing stands in for",)

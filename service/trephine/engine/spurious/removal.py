"""RemoveSpuriousFeatures: what decides, what that rests on, what of it is spurious, what is left without."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import compress
from time import monotonic

from trephine.domain.commands import Progress
from trephine.domain.interventions import Ablate, FeatureTarget, Intervention
from trephine.domain.sites import NEURONS
from trephine.domain.spurious_arms import BASELINES, Arm, ArmOutcome, shipped
from trephine.domain.spurious_outcomes import Ground, RemovalOutcome
from trephine.domain.spurious_removal import (
    Judge,
    JudgedFeature,
    RemoveSpuriousFeatures,
    SpuriousRemoval,
    Standing,
)
from trephine.engine.dataset_circuits.caveats import path_caveats
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session
from trephine.engine.replacements.contexts import beginning_caveats, degraded_caveats
from trephine.engine.replacements.sets import require_set
from trephine.engine.spurious.arms import measure_arms
from trephine.engine.spurious.choosing import Choice, choose
from trephine.engine.spurious.erasing import refuse_labelled_examples
from trephine.engine.spurious.evidence import exact_effects, firings_of
from trephine.engine.spurious.examples import (
    AMBIGUOUS_SET,
    UNKNOWN,
    Example,
    attributes,
    in_groups,
    labels,
)
from trephine.engine.spurious.judgement import FEWEST
from trephine.engine.spurious.judging import Candidate, Judged, judge_features
from trephine.engine.spurious.metrics import halves
from trephine.engine.spurious.outcome import outcome_of
from trephine.engine.spurious.reading import reading_caveats, with_special_tokens
from trephine.engine.spurious.repeats import once
from trephine.engine.spurious.study import Study, open_study

_ILLUSTRATED = 24
"""Features of largest effect whose strongest places are shown, beside those that go and those named."""
_NOTHING_KNOWN = "nothing is known of the attribute"
_ORDER = {Standing.SPURIOUS: 0, Standing.UNDECIDED: 1, Standing.TASK: 2}


def remove_spurious_features(
    session: Session, command: RemoveSpuriousFeatures
) -> Generator[Progress | None, None, SpuriousRemoval]:
    """Judge, choose and measure; a forward pass or a block of a sweep per quantum.

    Raises:
        TrephineError: Naming the text, the label or the option that cannot be used.
    """
    started, hosted = monotonic(), session.require_model().pinned()
    study = yield from open_study(hosted, command)
    yield from refuse_labelled_examples(study)
    judged = yield from judge_features(study)
    _override(study, judged.candidates)
    yield from exact_effects(study, judged.candidates)
    choice = yield from choose(study, judged.candidates)
    for one in choice.removed:
        one.removed = True
    features = yield from _features(study, judged)
    measured = yield from measure_arms(study, judged, choice)
    outcome = yield from outcome_of(study, choice, measured)
    special_tokens = with_special_tokens(hosted, command.decision)
    return SpuriousRemoval(
        labels=study.data.labels,
        attributes=study.data.attributes,
        pairing=_pairing(study),
        decision=command.decision,
        replacement=command.replacement,
        set_hash=_set_hash(hosted, command.replacement),
        options=command.options,
        estimator=command.estimator,
        judges=judged.judges,
        considered=study.space.count,
        features=features,
        choices=tuple(replace(one, taken=one is choice.point) for one in choice.points),
        criterion=choice.criterion,
        chosen=len(choice.removed),
        why=choice.why,
        arms=measured.arms,
        scores=measured.scores,
        interventions=_interventions(choice),
        head=choice.head.weights(study.data.labels, special_tokens=special_tokens),
        original_head=measured.original.weights(study.data.labels, special_tokens=special_tokens),
        texts=(len(study.data.training), len(study.data.held_out), len(study.data.test)),
        caveats=(
            *_caveats(study, judged, choice),
            *_judged_by_its_ground(study, judged, outcome),
            *_of_the_head(study, choice),
            *_as_good(measured.arms),
            *_as_controlled(measured.arms),
            *_unmatched(measured.unmatched, len(choice.removed)),
        ),
        seconds=monotonic() - started,
        model=hosted.info.name,
        weight_hash=hosted.info.weight_hash,
        seed=command.seed,
        outcome=outcome,
    )


def _set_hash(hosted: HostedModel, name: str) -> str:
    return "" if name == NEURONS else require_set(hosted, name).admitted.content_hash


def _judged_by_its_ground(study: Study, judged: Judged, outcome: RemovalOutcome) -> tuple[str, ...]:
    """Say so where texts that judged features tell whether these were the right ones."""
    if outcome.ground is not Ground.VALIDATION or Judge.GROUPS not in judged.judges:
        return ()
    return (
        f"features were judged by texts of the {study.part}, too, which the outcome is measured on: its "
        "bounds count the heads that were compared there, not the features. A test split is free of that",
    )


def _of_the_head(study: Study, choice: Choice) -> tuple[str, ...]:
    """Say whose work it is, the head's or that of the features that are gone."""
    if not (study.command.erase and study.trains and choice.removed):
        return ()
    if choice.erased:
        return (
            "what was chosen by is the work of the head, trained with no weight along what was told of the "
            "attribute, rather than of the removal: the arm with every feature in place shows what they add",
        )
    if any(point.erased for point in choice.points):
        if choice.by_twins:
            return _one_sided(study)
        if not choice.by_cost:
            return ()
        return (
            "a head without the attribute was trained, too, and is not taken: no held-out texts tell whether "
            "it follows the attribute less. Give a validation split of all four groups",
        )
    twins = sum(one.twin is not None for one in study.everything)
    if choice.by_twins:
        return (
            f"the head was trained again as it is: of {twins} texts with a twin fewer than {FEWEST} are left "
            "once a part is held out, too few for a head without the attribute; give twice as many",
        )
    return (f"the head was trained again as it is: {_untold(study)}",)


def _one_sided(study: Study) -> tuple[str, ...]:
    """Say that twins of one label alone cannot show that a head without the attribute is better."""
    of = [one.label for one in study.everything if one.twin is not None]
    for label, name in enumerate(study.data.labels):
        if of.count(label) < 2:
            return (
                "a head without the attribute was trained, too, and is not taken: of the texts that have a "
                f"twin {of.count(label) or 'none'} is of {name}, and one label alone does not tell whether "
                "it is better. Give texts of either label twins, four or more of each",
            )
    return ()


def _untold(study: Study) -> str:
    """Say why no head without the attribute could be trained, and what would help."""
    given = "Give examples of the attribute or twins, and it is also trained without the attribute"
    if in_groups(study.fitted):
        return (
            f"of the texts that it is trained on fewer than {FEWEST} are of one of the four groups, too few "
            f"for a head without the attribute. {given}; or more texts of that group"
        )
    if study.command.validation and in_groups(study.data.held_out):
        return (
            "the validation split alone tells the attribute from the label, and it chooses: a head that was "
            f"trained by it would be compared with others on its own texts. {given}; or move {FEWEST} texts "
            "or more of every group to the ambiguous set"
        )
    return f"nothing tells the attribute from the label at its site. {given}"


def _as_good(arms: Sequence[ArmOutcome]) -> tuple[str, ...]:
    """Say what does as well without a feature: a removal is to be worth more than what is simpler."""
    worst = {one.arm: one.figure("worst_group") for one in arms}
    ships = worst.get(shipped(arms))
    if ships is None or shipped(arms) is Arm.ORIGINAL or ships.value <= 0:
        return ()  # a worst group of which nothing is right is matched by all, and none of it is fair
    names = [
        f"{words} ({found.value:.1%})"
        for arm, words in BASELINES.items()
        if (found := worst.get(arm)) is not None and found.value >= ships.value
    ]
    if not names:
        return ()
    return (
        f"without any feature removed the worst group is decided as well by {' and '.join(names)} as by what "
        f"ships ({ships.value:.1%}): where the head is all that must be fair, that is simpler",
    )


_CONTROLS = {
    Arm.REMOVED: (Arm.RANDOM, "with as many random features removed"),
    Arm.REFITTED: (Arm.RANDOM_REFITTED, "with as many random features removed and the head trained again"),
    Arm.ERASED: (Arm.ERASED_ALONE, "by such a head with every feature in place"),
}
"""What ships, and the arm that is the same but for the features that went, in words."""


def _as_controlled(arms: Sequence[ArmOutcome]) -> tuple[str, ...]:
    """Say so where the same without the features that went does as well: no gain is their work then."""
    if shipped(arms) not in _CONTROLS:
        return ()
    control, words = _CONTROLS[shipped(arms)]
    worst = {one.arm: one.figure("worst_group") for one in arms}
    ships, other = worst.get(shipped(arms)), worst.get(control)
    if ships is None or other is None or other.value < ships.value:
        return ()
    return (
        f"the worst group is decided as well {words} ({other.value:.1%}) as by what ships "
        f"({ships.value:.1%}): that the features that went add anything to it was not seen",
    )


def _unmatched(count: int, removed: int) -> tuple[str, ...]:
    if not count:
        return ()
    return (
        f"{count} of {removed} removed features have no random one beside them, since too few of their "
        "layers are neither removed nor judged spurious: the random arms are of fewer and show less",
    )


def _override(study: Study, candidates: Sequence[Candidate]) -> None:
    """Let a person's word stand above ours."""
    said = {one.feature: one for one in study.command.overrides}
    for candidate in candidates:
        override = said.get(candidate.feature)
        if override is None:
            continue
        ours = candidate.standing
        candidate.standing = Standing.SPURIOUS if override.remove else Standing.TASK
        candidate.override = override.reason
        candidate.why = f"a person's word: {override.reason} (ours: {ours.value}, {candidate.why})"


def _features(study: Study, judged: Judged) -> Generator[Progress | None, None, tuple[JudgedFeature, ...]]:
    ordered = sorted(judged.candidates, key=_place)
    strongest = sorted(judged.candidates, key=lambda one: -abs(one.effect))[:_ILLUSTRATED]
    removed = [one for one in ordered if one.removed]
    named = [one for one in ordered if one.override]
    shown = list({one.node: one for one in (*named, *removed, *strongest)}.values())
    found = yield from firings_of(study, shown)
    firings = {one.node: places for one, places in zip(shown, found, strict=True)}
    return tuple(
        JudgedFeature(
            feature=one.feature,
            standing=one.standing,
            score=one.score,
            why=one.why,
            effect=one.effect,
            exact=one.exact,
            attribute_probe=one.attribute_probe,
            evidence=one.evidence,
            firings=firings.get(one.node, ()),
            override=one.override,
            removed=one.removed,
        )
        for one in ordered
    )


def _place(one: Candidate) -> tuple[bool, bool, int, float]:
    """Named by a person, removed, then by standing; spurious ones by what they do with the attribute."""
    size = one.attribute_effect if one.standing is Standing.SPURIOUS else one.effect
    return not one.override, not one.removed, _ORDER[one.standing], -abs(size)


def _interventions(choice: Choice) -> tuple[Intervention, ...]:
    ordered = sorted(choice.removed, key=lambda one: one.feature)
    return tuple(
        Intervention(target=FeatureTarget(feature=one.feature), operation=Ablate(), label="spurious")
        for one in ordered
    )


def _pairing(study: Study) -> str:
    data = study.data
    if not data.attributes:
        return "the attribute is not known"
    pairs = ", ".join(f"{y} with {a}" for y, a in zip(data.labels, data.attributes, strict=True))
    if data.told_by != AMBIGUOUS_SET:
        return f"taken as {pairs}: the ambiguous set does not tell which attribute goes with which label"
    return f"{pairs}; P({data.attributes[1]}) differs by {data.pairing:.2f} between the labels"


def _caveats(study: Study, judged: Judged, choice: Choice) -> tuple[str, ...]:
    said = [
        *study.doubts,
        *study.data.repeated,
        *degraded_caveats(study.hosted, (study.command.replacement,)),
    ]
    data = study.data
    if judged.judges == (Judge.CLUSTERS,):
        said.append(
            f"{_known_too_little(study)}: features are called spurious for being unstable over clusters that "
            "were made of their own effects, which is a guess: what tells a label in some texts alone is "
            "unstable, too. Give examples of the attribute, twins or environments"
        )
    if not judged.judges:
        said.append("no judge had enough texts: every feature is undecided")
    if judged.judges == (Judge.COUNTERFACTUALS,):
        said.append("counterfactual edits show only what they change: cues that twins share are not seen")
    if data.attributes and data.told_by != AMBIGUOUS_SET:
        said.append(
            "which attribute goes with which label is not told by the ambiguous set; it is taken from "
            f"{data.told_by or 'the order in which they appear, as nothing tells it'}"
        )
    if judged.measured_texts < study.command.budget.effect_texts:
        said.append(f"effects rest on {judged.measured_texts} ambiguous texts")
    if not data.test:
        said.append("without a test split there is no worst group")
    said += _of_the_path(study)
    if choice.by_groups:
        said += _left_out(data.held_out, study.part, "the worst group that was chosen by is")
    said += _left_out(data.test, "test split", "its figures are")
    groups = in_groups(data.test)
    groups = tuple(compress(groups, once([one.ids for one in groups]).tolist()))
    if groups and not halves(2 * labels(groups) + attributes(groups)):
        said.append(
            "a group of the test split has one text, and probes there are trained on half of every group and "
            "measured on the rest: there is no fresh probe of the attribute, no SCR and no TPP; give two of "
            "every group, better eight"
        )
    first = [example.text for example in data.training[:64]]
    said += reading_caveats(study.hosted, study.command.decision, first)
    for example in data.training[:64]:
        said += beginning_caveats(study.hosted, (study.command.replacement,), example.ids)
    return tuple(dict.fromkeys(said))


def _known_too_little(study: Study) -> str:
    """Say what is known of the attribute, though it is too little to judge by."""
    texts = study.data.training
    known = sum(one.attribute != UNKNOWN for one in texts)
    twins = sum(one.twin is not None for one in texts)
    named = {one.environment for one in texts} - {None}
    said = [
        f"the attribute of {known} texts, which are not {FEWEST} of every group" if known else "",
        f"{twins} texts with a twin, fewer than {FEWEST} of them different" if twins else "",
        f"{len(named)} environments, of which no two have {FEWEST} texts of either label" if named else "",
    ]
    told = "; ".join(filter(None, said))
    return f"too little is known of the attribute to judge by ({told})" if told else _NOTHING_KNOWN


def _of_the_path(study: Study) -> list[str]:
    command = study.command
    if command.replacement != NEURONS:
        return []
    return path_caveats(study.hosted, command.estimator, command.gradient_steps)


def _left_out(texts: Sequence[Example], split: str, what: str) -> list[str]:
    """Say how many texts of a split are in no group, where others are."""
    known = len(in_groups(texts))
    if known in (0, len(texts)):
        return []
    return [
        f"the attribute of {len(texts) - known} of {len(texts)} texts of the {split} is not known: "
        f"{what} of the other {known}"
    ]


HANDLERS: dict[type, Handler] = {RemoveSpuriousFeatures: remove_spurious_features}

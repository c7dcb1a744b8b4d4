"""A removal's decision list as one self-contained page without any script: a row per feature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import PurePath

from jinja2 import Environment
from markupsafe import Markup

from trephine.domain.findings import Figure, Verdict
from trephine.domain.spurious_arms import BASELINES, Arm, ArmOutcome
from trephine.domain.spurious_groups import group_name, group_part
from trephine.domain.spurious_heads import (
    ClassifierHead,
    DecisionHead,
    Pooling,
    ProbeHead,
    RewardHead,
    TokenHead,
)
from trephine.domain.spurious_removal import (
    ChoicePoint,
    Firing,
    JudgedFeature,
    RemovalOptions,
    SpuriousRemoval,
    Standing,
)
from trephine.pages.embed import asset, content_policy, printable

ARMS = {
    Arm.ORIGINAL: "original",
    Arm.REMOVED: "removed",
    Arm.REFITTED: "removed, head trained again",
    Arm.ERASED: "removed, head trained without the attribute",
    Arm.ERASED_ALONE: "no feature removed, head trained without it",
    Arm.RANDOM: "random features",
    Arm.RANDOM_REFITTED: "random, head trained again",
    Arm.LEACE: "attribute erased at the head by LEACE",
    Arm.INLP: "attribute erased at the head by INLP",
    Arm.TOKEN_DELETION: "tokens that tell the attribute deleted",
}
FIGURES = {
    "ambiguous_accuracy": "accuracy on ambiguous texts",
    "label_accuracy": "label accuracy, groups weighing the same",
    "attribute_agreement": "decision agrees with the attribute (50 %: not at all)",
    "worst_group": "worst group",
    "pair_accuracy": "pairs whose better text is decided higher",
    "worst_pairs": "worst kind of pairs, by the attributes of the two",
    "attribute_probe": "a fresh probe of the attribute",
    "flip_rate": "decisions that a counterfactual edit changes",
}
STANDINGS = {
    Standing.SPURIOUS: "spurious",
    Standing.UNDECIDED: "undecided (kept)",
    Standing.TASK: "task",
}
VERDICTS = {
    Verdict.PASS: "it held",
    Verdict.FAIL: "it did not hold",
    Verdict.INCONCLUSIVE: "it cannot be told whether it held",
    Verdict.NOT_APPLICABLE: "nothing to hold",
}
_LISTED = 400
"""Features in the list, and all that go or that a person named; the rest are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRow:
    """One figure, a cell per arm."""

    title: str
    group: tuple[str, ...]
    """Label and attribute, of the figure of a group; each is shown by itself, whatever way it is written."""
    cells: tuple[Figure | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmTable:
    """Arms beside each other."""

    title: str
    arms: tuple[str, ...]
    rows: tuple[ArmRow, ...]


def spurious_html(
    removal: SpuriousRemoval, *, name: str, edit: str, create_time: str, unmade: str = ""
) -> str:
    """Return the page: what came of it, the decision list, what was tried, caveats.

    Args:
        removal: The report.
        name: Its resource name.
        edit: That was made of it; empty: none.
        create_time: Of the report.
        unmade: An edit that could not be made of it, as a caveat says; empty: none.
    """
    listed = max(_LISTED, sum(one.removed or bool(one.override) for one in removal.features))
    return _TEMPLATES.from_string(asset("spurious.html")).render(
        removal=removal,
        name=name,
        edit=edit,
        unmade=unmade,
        create_time=create_time,
        features=removal.features[:listed],
        left_out=len(removal.features) - listed,
        counts=[(STANDINGS[one], _count(removal, one)) for one in Standing],
        tables=_tables(removal),
        verdict=VERDICTS[removal.outcome.verdict],
        choices=[(one, _head(removal, one)) for one in removal.choices],
        standings=STANDINGS,
        decision=_decision(removal.decision),
        asked="" if removal.options is None else _asked(removal.options),
        policy=content_policy(),
        style=Markup(asset("look.css") + asset("audit.css") + asset("spurious.css")),  # noqa: S704  our own files
    )


def _count(removal: SpuriousRemoval, standing: Standing) -> int:
    return sum(one.standing is standing for one in removal.features)


def _tables(removal: SpuriousRemoval) -> list[ArmTable]:
    """Lay out the arms; what is done without any feature stands apart: all at once are wider than a page."""
    apart = [one for one in removal.arms if one.arm in BASELINES]
    found = [_table("What came of it", removal, [one for one in removal.arms if one not in apart])]
    return [*found, _table("Without any feature removed", removal, apart)] if apart else found


def _table(title: str, removal: SpuriousRemoval, arms: Sequence[ArmOutcome]) -> ArmTable:
    ships = removal.ships if removal.chosen else None
    titles = tuple(ARMS[one.arm] + (" (ships)" if one.arm is ships else "") for one in arms)
    return ArmTable(title=title, arms=titles, rows=tuple(_rows(removal, arms)))


def _rows(removal: SpuriousRemoval, arms: Sequence[ArmOutcome]) -> Sequence[ArmRow]:
    groups = {
        f"group {group_name(label, attribute)}": (group_part(label), group_part(attribute))
        for label in removal.labels
        for attribute in removal.attributes
    }
    names = dict.fromkeys(figure.name for one in arms for figure in one.figures)
    ordered = [*(name for name in FIGURES if name in names), *(name for name in names if name not in FIGURES)]
    return [
        ArmRow(
            title=FIGURES.get(name, name),
            group=groups.get(name, ()),
            cells=tuple(one.figure(name) for one in arms),
        )
        for name in ordered
    ]


def _head(removal: SpuriousRemoval, point: ChoicePoint) -> str:
    """Say which head so many features were tried with."""
    if point.erased:
        return "without the attribute"
    trained = point.trained
    if trained is None:  # an older report: where nothing was taken, it does not tell
        gone = point.count or any(one.removed and one.override for one in removal.features)
        trained = bool(gone) and removal.original_head != removal.head
    return "free" if trained else "as it was"


def _asked(options: RemovalOptions) -> str:
    """Say in words what was asked for: what a run needs to come to the same report."""
    rules, budget = options.judging, options.budget
    layers = "all layers" if options.layers is None else f"layers {_listed(options.layers)}"
    head = "the head kept as it is"
    if options.refit:
        without = "and without the attribute" if options.erase else "as it is"
        head = f"the head trained again {without}"
    said = [
        f"features of {layers}{'' if options.steps is None else f', {options.steps} steps'}",
        f"{budget.candidates} judged on {budget.effect_texts} texts of a kind",
        f"spurious from a share of {rules.spurious_above:g}, of the task up to {rules.task_below:g}, with "
        f"{rules.false_discoveries:g} false discoveries; {rules.clusters} clusters where nothing else tells",
        f"{_listed(budget.counts)} to go, heads compared on {budget.fit_texts} texts, {head}",
        f"{budget.exact} ablated alone, {budget.random_sets} random sets, {options.resamples} resamples",
    ]
    if options.neutral_examples:
        said.append("examples that hold neither label")
    if options.attribute_name:
        said.append(f"the lexicon of {options.attribute_name}")
    if options.swaps:
        said.append(f"a lexicon of {len(options.swaps)} entries")
    return "; ".join(said)


def _decision(head: DecisionHead) -> str:
    """Say in words what decides."""
    match head:
        case ProbeHead():
            site = "the final norm's output" if head.layer is None else f"the stream after layer {head.layer}"
            tokens = "at the last token" if head.pooling is Pooling.LAST else "over tokens, mean"
            on = ", trained on pairs" if head.pairs else ""
            return f"a probe of {site} {tokens}{on}, penalty {head.penalty:g}"
        case TokenHead():
            named = ", ".join(f"{one.label}={one.token!r}" for one in head.tokens)
            return f"the model itself by label tokens ({named}) in the template {head.template!r}"
        case ClassifierHead():
            return f"the classifier {PurePath(head.folder).name}"
        case RewardHead():
            at = "the most accurate one" if head.threshold is None else f"{head.threshold:g}"
            name = PurePath(head.folder).name
            return f"the reward {name}, {head.positive_label} above its threshold ({at})"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _number(value: float | None) -> str:
    return f"{value:.3g}" if value is not None and isfinite(value) else "–"


def _share(value: float | None) -> str:
    return f"{100 * value:.1f} %" if value is not None and isfinite(value) else "–"


def _address(feature: JudgedFeature) -> str:
    """Write a feature as an override file takes it."""
    return printable(str(feature.feature))


def _tokens(feature: JudgedFeature) -> list[str]:
    return list(dict.fromkeys(printable(firing.token.strip() or "␣") for firing in feature.firings))


def _before(firing: Firing) -> str:
    return printable(firing.text.removesuffix(firing.token))


def _sentence(text: str) -> str:
    return printable(text[:1].upper() + text[1:])


_TEMPLATES = Environment(autoescape=True, trim_blocks=True)
_TEMPLATES.filters |= {
    "shown": printable,
    "number": _number,
    "share": _share,
    "address": _address,
    "tokens": _tokens,
    "before": _before,
    "sentence": _sentence,
}

"""Utility: an edit beside its controls, what becomes of it in weights and under attack, and SHIFT."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.dataset_tasks import BEGIN
from benchmarks.edits import MORE, PLURAL, PROMPT, PUSH, SINGULAR
from benchmarks.export_features import Drawn, Texts, draw, firing, split
from benchmarks.export_parents import Distances, Parent
from benchmarks.removal import attack_one, dense_windows
from benchmarks.replacements import NAME
from benchmarks.scorecard.entries import (
    Entry,
    at_least,
    at_most,
    by_chance,
    counted,
    of_standing,
    together,
)
from benchmarks.scorecard.subject import DICTIONARIES, Subject
from benchmarks.shift_arms import Bench, Margins, leace, oracle, original, removal, token_deletion
from benchmarks.shift_figures import AGREEMENT_WITHIN, WORST_WITHIN, Interval, Table, decided
from benchmarks.shift_tasks import Sizes as TextSizes
from benchmarks.shift_tasks import tasks
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import DiscoverCircuit, Node, NodeKind
from trephine.domain.edit_evaluation import (
    ChoiceItem,
    EditEvaluation,
    EvaluateEdit,
    EvaluationArm,
    EvaluationBounds,
    EvaluationSet,
    FeatureControls,
    PromptingOptions,
    SetResult,
    SetRole,
)
from trephine.domain.edits import Edit
from trephine.domain.findings import Figure, Verdict
from trephine.domain.interventions import Add, FeatureTarget, Intervention
from trephine.domain.sites import FeatureRef
from trephine.engine.edit_evaluation.evaluate import evaluate_edit
from trephine.engine.graphs.discover import discover_circuit
from trephine.engine.models.quanta import finish

LEAST_RECOVERY = 0.99
RESAMPLES = 1000
_WORDS = {"removed": Verdict.PASS, "suppressed": Verdict.FAIL}

# --- an edit beside its controls -----------------------------------------------------------------


def edits(subject: Subject) -> Iterator[Entry]:
    """Push verbs towards the plural by the feature that a circuit says pushes most."""
    sizes, hosted = subject.sizes, subject.hosted
    discover = DiscoverCircuit(
        prompt=PROMPT,
        target=LogitTarget(token=PLURAL, against=SINGULAR),
        replacement=NAME,
        max_feature_nodes=sizes.nodes,
        verify_nodes=0,
    )
    pushes = _strongest(finish(discover_circuit(hosted, discover)).nodes)
    edit = Edit(
        name="plural",
        version=1,
        content_hash="",
        interventions=(Intervention(target=FeatureTarget(feature=pushes), operation=Add(amount=PUSH)),),
        reason="the scorecard",
        author="",
        evidence=(),
        model=hosted.info.name,
        weight_hash=hosted.info.weight_hash,
        create_time="",
    )
    command = EvaluateEdit(
        edit=edit,
        sets=(_singular(subject.data, sizes.items),),
        controls=FeatureControls(sets=sizes.controls, tokens=64, retain_tokens=256),
        prompting=PromptingOptions(prompts=MORE, always=True),
        seed=sizes.seed,
    )
    yield from _evaluated(finish(evaluate_edit(subject.session, command)), pushes)


def _strongest(nodes: tuple[Node, ...]) -> FeatureRef:
    """Return the feature that pushes most; the first two layers tell words apart."""
    effects: dict[tuple[int, int], float] = {}
    for node in nodes:
        if node.kind is NodeKind.FEATURE and node.layer > 1:
            key = (node.layer, node.feature)
            effects[key] = effects.get(key, 0.0) + node.effect
    layer, index = max(effects, key=effects.__getitem__)
    return FeatureRef(replacement=NAME, layer=layer, index=index)


def _singular(data: Path, count: int) -> EvaluationSet:
    lines = (data / "agreement" / "simple.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["case"] == "singular"]
    items = tuple(
        ChoiceItem(
            prompt=f"{BEGIN}{row['clean_prefix']}",
            choices=(row["patch_answer"], row["clean_answer"]),
            answer=0,
        )
        for row in rows[:: max(1, len(rows) // count)][:count]
    )
    return EvaluationSet(name="singular subjects", role=SetRole.TARGET, items=items)


def _evaluated(found: EditEvaluation, feature: FeatureRef) -> Iterator[Entry]:
    target, retain = (next(one for one in found.sets if one.role is role) for role in _ROLES)
    of, bounds = f"{feature.layer}:{feature.index} pushed by {PUSH:g}", EvaluationBounds()
    p_values = [each.adjusted_p_value for each in target.controls if each.statistic == "log_odds_change"]
    effect = _figure(target, EvaluationArm.EDIT, "log_odds_change")
    yield Entry(
        figure="change of the plural's log-odds, nats",
        of=of,
        value=effect,
        beside=(
            replace(_figure(target, EvaluationArm.NO_OP, "log_odds_change"), name="no-op"),
            *(_spread(target, arm, "log_odds_change") for arm in _CONTROLS),
        ),
        bar=f"at least {bounds.min_log_odds:g}, and more than matched features and another layer, by p",
        verdict=together([at_least(effect, bounds.min_log_odds), by_chance(p_values)]),
        how=f"{target.units} held-out contexts; p after Holm {', '.join(f'{p:.3g}' for p in p_values)}",
    )
    damage = _figure(retain, EvaluationArm.EDIT, "kl")
    yield Entry(
        figure="damage to other text, KL in nats a token",
        of=of,
        value=damage,
        beside=(
            replace(_figure(retain, EvaluationArm.NO_OP, "kl"), name="no-op"),
            *(_spread(retain, arm, "kl") for arm in _CONTROLS),
        ),
        bar=f"at most {bounds.max_retain_kl:g}",
        verdict=at_most(damage, bounds.max_retain_kl),
        how=f"the built-in retain text, {retain.tokens} tokens",
    )
    prompting = found.prompting
    if prompting is not None and prompting.differences:
        yield Entry(
            figure="damage of the prompt at the same behaviour less the edit's, KL in nats a token",
            of=of,
            value=prompting.differences[0],
            bar="above 0",
            verdict=of_standing(prompting.standing),
            how=f"{prompting.chosen}, of {len(prompting.candidates)} prompts the one nearest in behaviour; "
            f"{prompting.why}",
        )


_ROLES = (SetRole.TARGET, SetRole.RETAIN)
_CONTROLS = (EvaluationArm.RANDOM, EvaluationArm.WRONG_LAYER)


def _figure(one: SetResult, arm: EvaluationArm, name: str) -> Figure:
    found = one.arm(arm)
    figures = () if found is None else found.figures
    return next((each for each in figures if each.name == name), Figure(name=name, value=float("nan")))


def _spread(one: SetResult, arm: EvaluationArm, statistic: str) -> Figure:
    """Median of the control sets, with the range of their values."""
    named = [each for each in one.controls if each.arm is arm and each.statistic == statistic]
    name = f"{arm.value.replace('_', ' ')}, median and range"
    if not named or not named[0].finite_values:
        return Figure(name=name, value=float("nan"))
    values = named[0].finite_values
    return Figure(name=name, value=named[0].quantiles[1], low=min(values), high=max(values))


# --- in weights ----------------------------------------------------------------------------------


def exports(subject: Subject) -> Iterator[Entry]:
    """Export ablations by three tiers, reload them with stock transformers, and attack one of them."""
    hosted, sizes = subject.hosted, subject.sizes
    text = subject.text.read_text(encoding="utf-8")
    texts = split(hosted, text, measured=sizes.windows)
    drawn = draw(hosted, texts, 3, sizes.seed)
    with torch.no_grad(), tempfile.TemporaryDirectory(prefix="trephine-scorecard-") as scratch:
        parent = Parent(hosted, "float32", texts, Path(scratch) / "parent")
        fires = firing(hosted, texts.measured, [each.feature for each in drawn])
        for each in drawn:
            found = parent.distances([each.feature], fires[each.feature])
            yield recovered(each, found)
    with torch.no_grad():
        yield _attacked(subject, texts, text, drawn[len(drawn) // 2].feature)


def recovered(drawn: Drawn, found: Distances) -> Entry:
    """Hold an export of one ablation to its bar."""
    graft = _recovery("graft", found)
    return Entry(
        figure="share of an ablation that the exported weights carry where the feature fires",
        of=f"{drawn.feature.layer}:{drawn.feature.index}",
        value=graft,
        beside=tuple(_recovery(tier, found) for tier in ("ridge", "projection", "no-op")),
        bar=f"graft at least {LEAST_RECOVERY:g}",
        verdict=at_least(graft, LEAST_RECOVERY),
        how=f"stock transformers in a clean process, float32, {int(found.fires.sum())} firing tokens of text "
        f"that nothing was fitted on; ablation KL {drawn.kl:.2g} nats",
    )


def _recovery(tier: str, found: Distances) -> Figure:
    """1 - KL(intervened || exported) / KL(intervened || unedited); windows are resampled whole."""
    left, edit = (_by_window(each, found.fires) for each in (found.exports[tier], found.edit))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(edit), (RESAMPLES, len(edit)), generator=generator)
    low, high = (1 - left[drawn].sum(1) / edit[drawn].sum(1)).quantile(
        torch.tensor([0.025, 0.975], dtype=torch.float64)
    )
    return Figure(name=tier, value=float(1 - left.sum() / edit.sum()), low=float(low), high=float(high))


def _by_window(divergence: Tensor, fires: Tensor) -> Tensor:
    """Sum over the firing tokens of each window, `(n_windows,)`."""
    return (divergence * fires).unflatten(0, (-1, 128)).sum(1)


def _attacked(subject: Subject, texts: Texts, text: str, feature: FeatureRef) -> Entry:
    windows = dense_windows(subject.hosted, text, [feature], 8192)[0][feature]
    part = Texts(fit=texts.fit[:8], measured=[])
    found = attack_one(subject.hosted, part, windows, feature, attacks="decided")
    worst = max(found.figures, key=lambda each: each.excess.value, default=None)
    value = Figure(name="excess", value=float("nan"))
    if worst is not None:
        excess = worst.excess
        value = Figure(name="excess", value=excess.value, low=excess.low, high=excess.high)
    return Entry(
        figure="share of the ablated behaviour that attacks bring back, beyond unrelated behaviours",
        of=f"{feature.layer}:{feature.index}, grafted",
        value=value,
        beside=()
        if worst is None
        else (
            counted("behaviour back", worst.returned.value),
            counted("unrelated ones back", worst.unrelated.value),
        ),
        bar='the word is "removed"',
        verdict=_WORDS.get(found.verdict, Verdict.INCONCLUSIVE),
        how=f'the word is "{found.verdict}": {found.why}; {found.n_tokens} tokens',
    )


# --- spurious features ---------------------------------------------------------------------------


def spurious(subject: Subject) -> Iterator[Entry]:
    """Remove gender from a head that tells professions apart, with nobody judging features."""
    sizes, task = subject.sizes, tasks(subject.data)["biographies"]
    texts = TextSizes(test=sizes.spurious_texts)
    bench = Bench(hosted=subject.hosted, task=task, draw=task.draw(sizes.seed, texts), seed=sizes.seed)
    with torch.no_grad():
        arms: dict[str, Margins] = {
            "original": original(bench),
            "LEACE": leace(bench),
            "token deletion": token_deletion(bench),
            "oracle": oracle(bench),
        }
    for of, name in DICTIONARIES.items():
        found = removal(bench, name)
        arms |= {_ours(of): found["removed, erased"], f"random, {of}": found["random, refitted"]}
    test = bench.draw.test
    table = Table(
        {arm: [decided(margins)] for arm, margins in arms.items()},
        [[one.label for one in test]],
        [[one.attribute for one in test]],
    )
    for of in DICTIONARIES:
        yield from fair(table, of, sizes.spurious_texts)


def _ours(of: str) -> str:
    return f"removed, {of}"


def fair(table: Table, of: str, texts: int) -> Iterator[Entry]:
    """Hold the removal with a dictionary to the oracle."""
    how = f"biographies, {texts} test texts per group, one seed; 600 texts in which gender is the profession"
    others = ("original", "oracle", "LEACE", "token deletion", f"random, {of}")
    for name, within in (("worst group", WORST_WITHIN), ("agreement", AGREEMENT_WITHIN)):
        gap = _of(table.difference(_ours(of), "oracle", name), "less the oracle's")
        better = at_least(gap, -within) if name == "worst group" else at_most(gap, within)
        yield Entry(
            figure=f"{_SHIFT[name]} after removal",
            of=of,
            value=_of(table.figure(_ours(of), name), name),
            beside=(gap, *(_of(table.figure(arm, name), arm) for arm in others)),
            bar=f"within {100 * within:.0f} points of the oracle",
            verdict=better,
            how=how,
        )


_SHIFT = {"worst group": "accuracy of the worst group", "agreement": "agreement of decisions with gender"}


def _of(interval: Interval, name: str) -> Figure:
    return Figure(name=name, value=interval.value, low=interval.low, high=interval.high)

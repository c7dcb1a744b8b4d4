"""Groups of circuits: whether found ones are better than any of their sizes, and what their picture shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from benchmarks.group_scores import PROMPTS, discovered, grouped
from benchmarks.planted_groups import planted, recovered
from benchmarks.scorecard.entries import Entry, at_least, counted, mean_of, together
from benchmarks.scorecard.subject import DICTIONARIES, Subject
from trephine.app.circuits.group_scores import score_groups
from trephine.domain.circuit_annotations import AutomaticGroups
from trephine.domain.findings import Figure, Verdict
from trephine.domain.group_scores import ControlRange, GroupingScores, GroupQuality, ScoredQuality
from trephine.domain.standings import Standing

EDGES = AutomaticGroups(basis="edges")
_PLANTED, _NOISE, _RECOVERED = 5, 0.3, 0.9
_SEEDS = range(_PLANTED)
_LEVEL = 0.05


def groups(subject: Subject) -> Iterator[Entry]:
    """Group circuits by their edges, beside random partitions and ones by place; planted circuits first."""
    yield planted_groups()
    prompts = PROMPTS[: subject.sizes.prompts]
    for of, name in DICTIONARIES.items():
        found = []
        for prompt, target, against in prompts:
            circuit = discovered(subject.hosted, prompt, target, against, name)
            alike = grouped(circuit, EDGES, None)
            found += [score_groups(circuit, alike)] if alike else []
        for quality in (GroupQuality.SOURCES, GroupQuality.SHOWN):
            yield quality_entry(of, quality, found, len(prompts))


def planted_groups() -> Entry:
    """Find groups whose members are known."""
    values = []
    for seed in _SEEDS:
        truth = planted(noise=_NOISE, seed=seed)
        values.append(recovered(truth, [group.nodes for group in grouped(truth.circuit, EDGES, None)]))
    value = Figure(name="mutual information", value=fmean(values), low=min(values), high=max(values))
    return Entry(
        figure="planted groups that are found again, adjusted mutual information",
        of="planted circuits",
        value=value,
        beside=(counted("by chance", 0.0),),
        bar=f"at least {_RECOVERED:g} in every circuit",
        verdict=at_least(value, _RECOVERED),
        how=f"{_PLANTED} circuits whose edges differ by a factor of e to the {_NOISE:g}; mean and range",
    )


def quality_entry(of: str, quality: GroupQuality, found: Sequence[GroupingScores], prompts: int) -> Entry:
    """Hold one figure of the groupings against partitions by chance and by place."""
    scored = [each for one in found for each in one.whole if each.quality is quality]
    verdict = _verdict(scored)
    before, after = (
        sum(one.before.nodes for one in found),
        sum(one.after.nodes for one in found),
    )
    return Entry(
        figure=f"{quality.value} of found groups{' (less is better)' * quality.less_is_better}",
        of=of,
        value=mean_of("found", [counted("found", each.value) for each in scored]),
        beside=(
            _control("random groups", [each.random for each in scored]),
            _control("groups by layer", [each.by_layer for each in scored]),
        ),
        bar="better than both, by p, on every prompt; FAIL where one is worse by p over so many figures",
        verdict=verdict if len(scored) == prompts else together([verdict, Verdict.INCONCLUSIVE]),
        how=f"groups by edges, {len(scored)} of {prompts} prompts have some, {before} nodes become {after}; "
        "groups of the same sizes beside them, means over prompts of medians and of 95 % of the draws",
    )


def _verdict(scored: Sequence[ScoredQuality]) -> Verdict:
    """PASS where every circuit beats both controls; worse in one is chance unless its p says so for all."""
    if scored and all(each.standing is Standing.BEATS for each in scored):
        return Verdict.PASS
    worst = min((one.p_worse for each in scored for one in (each.random, each.by_layer)), default=1.0)
    return Verdict.FAIL if worst <= _LEVEL / max(1, 2 * len(scored)) else Verdict.INCONCLUSIVE


def _control(name: str, drawn: Sequence[ControlRange]) -> Figure:
    if not drawn:
        return Figure(name=name, value=float("nan"))
    return Figure(
        name=name,
        value=fmean(each.median for each in drawn),
        low=fmean(each.low for each in drawn),
        high=fmean(each.high for each in drawn),
    )

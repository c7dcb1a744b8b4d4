"""Are found groups better than any groups? `python -m benchmarks.group_scores --transcoders SET`.

Planted circuits first, whose groups are known: adjusted mutual information of what is found by edges. Then
five prompts of SmolLM2 over transcoders and over neurons, 256 feature nodes each: groups by directions and by
edges, at the threshold that is unset (0.5) and at the one that leaves 0.8 of the path mass in sight. Each
figure of a grouping stands beside 199 random partitions of the same sizes within the same layers and
positions, and beside 199 by position and layer alone; whole layers as groups are another picture to set them
against. Last, what ablating the 12 most influential groups of each does beside their members one at a time.

A table's cell is the grouping's / the random partitions' median [95 % of them] / the partitions' by layer,
means over prompts; then in how many prompts it beats both controls, and in how many a control is better.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from benchmarks.discovery_cell import SET, load
from benchmarks.group_additivity import Ablations, ablated, relative_error, strongest
from benchmarks.planted_groups import planted, recovered
from trephine.app.circuits.circuit_grouping import THRESHOLDS, found_groups
from trephine.app.circuits.circuit_pruning import kept_nodes, pruned_circuit
from trephine.app.circuits.circuits import StoredCircuit
from trephine.app.circuits.group_controls import Places, random_partitions
from trephine.app.circuits.group_measures import Flow, measure, partition_of
from trephine.app.circuits.group_scores import score_groups
from trephine.app.models.models import Models
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuit_annotations import AutomaticGroups, GroupingBasis, NodeGroup
from trephine.domain.circuit_queries import Pruning
from trephine.domain.circuits import Circuit, DiscoverCircuit, NodeKind
from trephine.domain.errors import NothingMatchedError
from trephine.domain.group_scores import GroupingScores, GroupQuality, ScoredQuality
from trephine.domain.sites import NEURONS
from trephine.domain.standings import Standing
from trephine.engine.edits.directions import compare
from trephine.engine.graphs.discover import discover_circuit
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.server.places import default_cache

PROMPTS = (
    ("The capital of France is", " Paris", " Rome"),
    ("The opposite of hot is", " cold", " small"),
    ("The teacher beside the truck", " has", " have"),
    ("After Mary and Daniel went to the house, Daniel gave a basketball to", " Mary", " Daniel"),
    ("The trip lasted from the year 1482 to the year 14", "9", "7"),
)
OVER = ((SET, "transcoders"), (NEURONS, "neurons"))
NODES, GROUPS, SHOWN = 256, 12, 0.8
BASES: tuple[GroupingBasis, ...] = ("directions", "edges")
WAYS = tuple(
    (basis, threshold, AutomaticGroups(basis=basis, min_shown=shown))
    for basis in BASES
    for threshold, shown in (("0.5", None), (f"{SHOWN:g} shown", SHOWN))
)
_SEEDS, _NOISES = range(5), (0.0, 0.3, 0.5, 1.0)
_FEW_DRAWS = 29
"""Random partitions at each threshold of the grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One grouping of one circuit."""

    over: str
    basis: str
    threshold: str
    circuit: Circuit
    groups: tuple[NodeGroup, ...]
    """None where no features are alike."""
    scores: GroupingScores | None


class _Engine:
    """Answers as an engine of the model would, in this process."""

    def __init__(self, hosted: HostedModel) -> None:
        self._session = cast(Session, SimpleNamespace(require_model=lambda: hosted))

    async def run(self, command: Any) -> Any:
        return finish(compare(self._session, command))


def models_of(hosted: HostedModel | None) -> Models:
    """A model's engine where the use case looks for it."""
    found = SimpleNamespace(
        shelf=lambda name: SimpleNamespace(sets={}), engine=lambda name: _Engine(cast(HostedModel, hosted))
    )
    return cast(Models, found)


def grouped(circuit: Circuit, how: AutomaticGroups, hosted: HostedModel | None) -> tuple[NodeGroup, ...]:
    """Find groups as the service does; none where no features are alike."""
    stored = StoredCircuit(name="circuits/bench", create_time="", circuit=circuit)
    try:
        return tuple(asyncio.run(found_groups(stored, how, models_of(hosted))))
    except NothingMatchedError:
        return ()


def planted_lines() -> Iterator[str]:
    """Yield how well planted groups are found by their edges."""
    yield "| noise of edges (standard deviation of the logarithm) | threshold 0.5 | chosen: 0.8 shown |"
    yield "|---|---|---|"
    for noise in _NOISES:
        cells = []
        for how in (AutomaticGroups(basis="edges"), AutomaticGroups(basis="edges", min_shown=SHOWN)):
            truths = [planted(noise=noise, seed=seed) for seed in _SEEDS]
            found = [
                recovered(truth, [group.nodes for group in grouped(truth.circuit, how, None)])
                for truth in truths
            ]
            cells.append(f"{np.mean(found):.2f} (least {min(found):.2f})")
        yield f"| {noise:g} | {' | '.join(cells)} |"


def discovered(hosted: HostedModel, prompt: str, target: str, against: str, kind: str) -> Circuit:
    """The circuit whose features are grouped."""
    command = DiscoverCircuit(
        prompt=prompt,
        target=LogitTarget(token=target, against=against),
        replacement=kind,
        max_feature_nodes=NODES,
        verify_nodes=0,
    )
    return finish(discover_circuit(hosted, command))


def pruned(circuit: Circuit) -> Circuit:
    """What `circuits prune` leaves of it."""
    return pruned_circuit(circuit, kept_nodes(circuit, Pruning(), frozenset()))[0]


def scored(hosted: HostedModel, circuit: Circuit, over: str) -> Iterator[Scored]:
    """Yield every way of grouping one circuit."""
    for basis, threshold, how in WAYS:
        groups = grouped(circuit, how, hosted)
        yield Scored(
            over=over,
            basis=basis,
            threshold=threshold,
            circuit=circuit,
            groups=groups,
            scores=score_groups(circuit, groups) if groups else None,
        )


def additivity(hosted: HostedModel, one: Scored) -> tuple[Ablations, Ablations]:
    """Ablate the strongest groups, and random ones of their sizes and windows."""
    groups = [group.nodes for group in one.groups]
    partition = partition_of(len(one.circuit.nodes), groups)
    (drawn,) = random_partitions(Places(one.circuit, partition), partition, draws=1, seed=1)
    chosen = strongest(one.circuit, groups, GROUPS)
    random = [np.flatnonzero(drawn.label == place).tolist() for place in chosen]
    found, control = ablated(hosted, one.circuit, [[groups[place] for place in chosen], random])
    return found, control


# --- tables ----------------------------------------------------------------------------------------------

_NAMES = {
    GroupQuality.SOURCES: "lumpability of sources",
    GroupQuality.GOALS: "of goals",
    GroupQuality.EFFECT_SIGN: "sign of effects",
    GroupQuality.EDGE_SIGN: "sign of edges",
    GroupQuality.SHOWN: "path mass shown",
}


def size_lines(rows: Sequence[Scored]) -> Iterator[str]:
    """Yield how much smaller the pictures are, and the verdicts."""
    yield "| over | by | threshold | groups | features in them | nodes | edges | shown | verdicts |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for key, several in _ways(rows):
        known = [one for one in several if one.scores is not None]
        found = [one.scores for one in known if one.scores is not None]
        if not found:
            yield f"| {' | '.join(key)} | none | | | | | |"
            continue
        before, after = [one.before for one in found], [one.after for one in found]
        verdicts = [one.standing for one in found]
        counted = (f"{verdicts.count(s)} {s.value}" for s in Standing if s in verdicts)
        yield (
            f"| {' | '.join(key)} | {np.mean([len(one.groups) for one in known]):.0f} | "
            f"{np.mean([sum(len(g.nodes) for g in one.groups) for one in known]):.0f} of "
            f"{np.mean([_features(one.circuit) for one in known]):.0f} | "
            f"{np.mean([x.nodes for x in before]):.0f} -> {np.mean([x.nodes for x in after]):.0f} | "
            f"{np.mean([x.edges for x in before]):,.0f} -> {np.mean([x.edges for x in after]):,.0f} | "
            f"{_span([1 - s.inside - s.cancelled for s in found])} | {', '.join(counted)} |"
        )


def quality_lines(rows: Sequence[Scored]) -> Iterator[str]:
    """Yield every figure beside its controls."""
    yield f"| over | by | threshold | {' | '.join(_NAMES.values())} |"
    yield "|---" * (3 + len(_NAMES)) + "|"
    for key, several in _ways(rows):
        cells = []
        for quality in _NAMES:
            found = [
                each
                for one in several
                if one.scores is not None
                for each in one.scores.whole
                if each.quality is quality
            ]
            cells.append(_cell(found) if found else "")
        yield f"| {' | '.join(key)} | {' | '.join(cells)} |"


def layer_lines(circuits: Sequence[tuple[str, Circuit]]) -> Iterator[str]:
    """Yield what the picture shows in which all features of a layer at a position are one node."""
    yield "| over | nodes | lumpability of sources | of goals | path mass shown |"
    yield "|---|---|---|---|---|"
    for over in dict.fromkeys(over for over, _ in circuits):
        own, nodes = [circuit for name, circuit in circuits if name == over], []
        figures: list[dict[GroupQuality, float]] = []
        for circuit in own:
            cells: dict[tuple[int, int], list[int]] = {}
            for index, node in enumerate(circuit.nodes):
                if node.kind is NodeKind.FEATURE:
                    cells.setdefault((node.layer, node.position), []).append(index)
            groups = [members for members in cells.values() if len(members) > 1]
            figures.append(measure(Flow.of(circuit), partition_of(len(circuit.nodes), groups)).whole)
            nodes.append(len(circuit.nodes) - sum(len(members) - 1 for members in groups))
        asked = (GroupQuality.SOURCES, GroupQuality.GOALS, GroupQuality.SHOWN)
        means = (f"{np.mean([one[quality] for one in figures]):.2f}" for quality in asked)
        before = np.mean([len(circuit.nodes) for circuit in own])
        yield f"| {over} | {before:.0f} -> {np.mean(nodes):.0f} | {' | '.join(means)} |"


def threshold_lines(circuits: Sequence[tuple[str, Circuit]], hosted: HostedModel) -> Iterator[str]:
    """Yield what each threshold of the grid shows, and its lumpability beside random partitions' median."""
    yield "| over | by | threshold | merged | shown | random | sources: random less found | goals |"
    yield "|---|---|---|---|---|---|---|---|"
    ways = [(over, basis) for over in dict.fromkeys(over for over, _ in circuits) for basis in BASES]
    for over, basis in ways:
        own = [circuit for name, circuit in circuits if name == over]
        for threshold in THRESHOLDS:
            how = AutomaticGroups(basis=basis, min_similarity=threshold)
            found = [_gains(circuit, grouped(circuit, how, hosted)) for circuit in own]
            rows = np.array([one for one in found if one is not None])
            if len(rows):
                merged, shown, random, sources, goals = rows.mean(0)
                yield (
                    f"| {over} | {basis} | {threshold:g} ({len(rows)} of {len(own)}) | {merged:.0f} | "
                    f"{shown:.2f} | {random:.2f} | {sources:+.3f} ({rows[:, 3].min():+.3f} to "
                    f"{rows[:, 3].max():+.3f}) | {goals:+.3f} |"
                )


def _gains(circuit: Circuit, groups: Sequence[NodeGroup]) -> tuple[float, float, float, float, float] | None:
    if not groups:
        return None
    partition = partition_of(len(circuit.nodes), [group.nodes for group in groups])
    flow, places = Flow.of(circuit), Places(circuit, partition)
    found = measure(flow, partition).whole
    drawn = random_partitions(places, partition, draws=_FEW_DRAWS, seed=0)
    random = [measure(flow, draw).whole for draw in drawn]
    medians = {quality: float(np.median([one[quality] for one in random])) for quality in found}
    return (
        sum(len(group.nodes) - 1 for group in groups),
        found[GroupQuality.SHOWN],
        medians[GroupQuality.SHOWN],
        medians[GroupQuality.SOURCES] - found[GroupQuality.SOURCES],
        medians[GroupQuality.GOALS] - found[GroupQuality.GOALS],
    )


def _features(circuit: Circuit) -> int:
    return sum(node.kind is NodeKind.FEATURE for node in circuit.nodes)


def _ways(rows: Sequence[Scored]) -> Iterator[tuple[tuple[str, str, str], list[Scored]]]:
    for key in dict.fromkeys((one.over, one.basis, one.threshold) for one in rows):
        yield key, [one for one in rows if (one.over, one.basis, one.threshold) == key]


def _cell(found: Sequence[ScoredQuality]) -> str:
    value, median, low, high, layer = np.mean(
        [(x.value, x.random.median, x.random.low, x.random.high, x.by_layer.median) for x in found], axis=0
    )
    standings = [one.standing for one in found]
    return (
        f"{value:.2f} / {median:.2f} [{low:.2f}, {high:.2f}] / {layer:.2f}; "
        f"{standings.count(Standing.BEATS)} better, {standings.count(Standing.DOES_NOT_BEAT)} worse"
    )


def _span(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _print(title: str, lines: Iterator[str]) -> None:
    sys.stdout.write(f"**{title}**\n\n" + "\n".join(lines) + "\n\n")
    sys.stdout.flush()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=default_cache() / "models" / "smollm2")
    parser.add_argument("--thresholds", action="store_true", help="Print what every threshold does, only.")
    parser.add_argument(
        "--pruned",
        action="store_true",
        help="Group what pruning leaves (0.8 of nodes, 0.98 of edges); ablate nothing.",
    )
    given = parser.parse_args()
    if given.thresholds:
        hosted = load(str(given.model), str(given.transcoders))
        found = [(over, discovered(hosted, *prompt, kind)) for kind, over in OVER for prompt in PROMPTS]
        _print("Thresholds, means over prompts that have groups", threshold_lines(found, hosted))
        return
    _print("Planted groups found by their edges: adjusted mutual information", planted_lines())
    hosted = load(str(given.model), str(given.transcoders))
    rows: list[Scored] = []
    circuits: list[tuple[str, Circuit]] = []
    apart: dict[tuple[str, str, str], list[tuple[Ablations, Ablations]]] = {}
    for kind, over in OVER:
        for prompt, target, against in PROMPTS:
            circuit = discovered(hosted, prompt, target, against, kind)
            circuit = pruned(circuit) if given.pruned else circuit
            circuits.append((over, circuit))
            for one in scored(hosted, circuit, over):
                rows.append(one)
                if one.groups and not given.pruned:
                    apart.setdefault((over, one.basis, one.threshold), []).append(additivity(hosted, one))
                words = "no groups" if one.scores is None else one.scores.verdict
                sys.stderr.write(f"{over}, {prompt!r}, {one.basis}, {one.threshold}: {words}\n")
    _print("Pictures", size_lines(rows))
    _print("Figures beside controls", quality_lines(rows))
    _print("Whole layers as groups, at each position", layer_lines(circuits))
    if given.pruned:
        return
    lines = ["| over | by | threshold | found groups | random groups |", "|---|---|---|---|---|"]
    for key, pairs in apart.items():
        both = (relative_error([pair[side] for pair in pairs]) for side in (0, 1))
        lines.append(f"| {' | '.join(key)} | {' | '.join(both)} |")
    _print("Ablating a group, and its members one at a time: relative error of the sum", iter(lines))


if __name__ == "__main__":
    main()

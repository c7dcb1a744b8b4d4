"""What a reader of a dataset circuit must know, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import isfinite, isnan

from trephine.domain.dataset_circuits import (
    ContextCircuit,
    DiscoverDatasetCircuit,
    Estimator,
    NodeAblation,
    PositionRule,
    Subsampling,
)
from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import SiteKind
from trephine.engine.dataset_circuits.clustering import FEWEST_TO_GROUP, Clusters
from trephine.engine.dataset_circuits.contexts import Context, patch_of
from trephine.engine.dataset_circuits.edges import has_edges
from trephine.engine.dataset_circuits.faithfulness import FLOOR, GOAL
from trephine.engine.dataset_circuits.places import NodeKind
from trephine.engine.dataset_circuits.selection import certified_edits, part_size
from trephine.engine.dataset_circuits.space import NodeSpace
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.contexts import beginning_caveats, degraded_caveats
from trephine.engine.replacements.sets import layer_info

_STREAM = {SiteKind.RESID_PRE, SiteKind.RESID_MID, SiteKind.RESID_POST, SiteKind.EMBED}
_ERROR = {
    ErrorTerm.LIVE: "stay live: y + (f' - f) W_dec, whatever the set does not reconstruct passes untouched",
    ErrorTerm.FROZEN: "are the clean run's, even where every node is ablated",
    ErrorTerm.DROP: "are replaced by the ablation's own baseline, as nodes are",
}

COVERAGE = {2: 0.52, 3: 0.78, 4: 0.82, 5: 0.84, 6: 0.87, 7: 0.88, 8: 0.89, 9: 0.90, 10: 0.90, 11: 0.90}
"""How often a 95 % interval of faithfulness holds the truth, by held-out contexts: few hardly vary.

From 5,000 simulated sets of Gaussian contexts each; 0.92 of 12, 0.93 of 24, 0.94 of 50.
"""


def certificate(rule: Subsampling, contexts: int, shared: str, *, grouped: bool, could_fail: bool) -> str:
    """Say what stability means here, and what it does not.

    Args:
        rule: How it was measured.
        contexts: Training contexts.
        shared: Through what one context's effects depend on the others (`effects_shared`).
        grouped: True if contexts were put into clusters.
        could_fail: False where no circuit leaves a node with an effect out.
    """
    if not rule.draws:
        return "Stability was not measured."
    if not could_fail:
        return (
            "Stability says nothing and no exchange of a training context is certified: every node with an "
            "effect is selected, so that selection could not fail."
        )
    size = part_size(contexts, rule)
    most = certified_edits(1.0, rule.draws, contexts, size)
    if shared:
        edits = f"No exchange of a training context is certified, since it changes every draw: {shared}."
    elif most:
        edits = (
            f"A node that every draw selects keeps a majority of draws if up to {most} of the {contexts} "
            "training contexts are exchanged (95 % confidence, for one node alone)."
        )
    else:
        edits = (
            "Draws this few or large certify no exchange of a training context: draw more, or smaller parts."
        )
    groups = " In clusters that is within a cluster, whose members are taken as given." if grouped else ""
    return (
        f"A node is stable if all {contexts} training contexts, and at least {rule.keep:.0%} of {rule.draws} "
        f"random parts of {size} of them, select it by the same rule; on every other node that any of them "
        f"selects we abstain. {edits}{groups} This is about the data that the circuit was found on, not the "
        "mechanism: it proves no causal claim."
    )


def path_caveats(hosted: HostedModel, estimator: Estimator, steps: int) -> list[str]:
    """Say where integrated gradients to zero have no limit: a layer goes there whole, before a norm."""
    path = estimator is Estimator.INTEGRATED_GRADIENTS
    if not path or all(block.mlp_post_norm is None for block in hosted.architecture.blocks):
        return []
    times = sum(1 / step for step in range(1, steps + 1))
    return [
        "of neurons that a norm follows, as in this model, integrated gradients say no more than attribution "
        "patching: the norm undoes what scales all of a layer's down, so that effects grow with the steps "
        f"(with {steps} they are {times:.2f} times those of that); choose it instead"
    ]


def caveats(
    hosted: HostedModel,
    command: DiscoverDatasetCircuit,
    space: NodeSpace,
    contexts: Sequence[Context],
    circuits: Sequence[ContextCircuit],
    clusters: Clusters | None,
    *,
    whole: Sequence[ContextCircuit],
    measured: int | None,
) -> tuple[str, ...]:
    """List them.

    Args:
        hosted: The model.
        command: What was asked.
        space: The nodes there are.
        contexts: Of both splits.
        circuits: What was found.
        clusters: How contexts were grouped, if they were.
        whole: The circuits that leave no node with an effect out.
        measured: Nodes that exact patching measured; None: effects are of another estimator.
    """
    return (
        f"Nodes are {', '.join(dict.fromkeys(place.owner for place in space.places))}; {_never(space)} and "
        "position 0 are never ablated. Faithfulness is of what remains when all other nodes are.",
        *_of_sets(hosted, command, space),
        *_of_exact_patching(space, measured),
        *_of_data(command, contexts),
        *_of_path(hosted, command, space, contexts),
        *_of_selection(whole),
        *_of_controls(space, circuits),
        *_of_circuits(command, circuits, space.count),
        *_of_few(circuits),
        *_of_clusters(command, clusters),
        *(
            ()
            if has_edges(space)
            else (
                "Edges are found for neurons, heads, transcoders and dictionaries of attention outputs only.",
            )
        ),
        *(() if hosted.architecture.logit_softcap is None else ("The metric is read before the soft cap.",)),
    )


def _never(space: NodeSpace) -> str:
    """Name the parts of the model that have no nodes at all."""
    written = {site.kind for place in space.places for site in place.written}
    if written & _STREAM:
        return "embeddings"
    missing = [
        name
        for name, kind in (("attention", SiteKind.ATTN_OUT), ("MLPs", SiteKind.MLP_OUT))
        if kind not in written
    ]
    return ", ".join([*missing, "embeddings"])


def _of_sets(hosted: HostedModel, command: DiscoverDatasetCircuit, space: NodeSpace) -> list[str]:
    names = dict.fromkeys(place.set_name for place in space.places if place.is_of_set)
    if not names:
        return []
    are_nodes = space.has(NodeKind.ERROR)
    found = [f"Error terms {'are nodes' if are_nodes else _ERROR[command.error_term]}."]
    if (are_nodes or command.error_term is not ErrorTerm.LIVE) and _has_skip(hosted, space):
        found.append(
            "Skip paths follow the current input and are no nodes: they stay where all nodes and error terms "
            "are ablated, in m(0) as well."
        )
    found += degraded_caveats(hosted, names)
    firsts = {tuple(hosted.encode(example.clean)[:1]) for example in command.training}
    for first in sorted(firsts)[:1]:
        found += beginning_caveats(hosted, list(names), first)
    return found


def _has_skip(hosted: HostedModel, space: NodeSpace) -> bool:
    return any(p.is_of_set and layer_info(hosted, p.set_name, p.layer).has_skip for p in space.places)


def _of_path(
    hosted: HostedModel, command: DiscoverDatasetCircuit, space: NodeSpace, contexts: Sequence[Context]
) -> list[str]:
    if not space.has(NodeKind.NEURON) or patch_of(command, contexts) is not NodeAblation.ZERO:
        return []
    return [
        f"{said[0].upper()}{said[1:]}." for said in path_caveats(hosted, command.estimator, command.steps)
    ]


def _of_exact_patching(space: NodeSpace, measured: int | None) -> list[str]:
    """Say how many nodes were measured, and what the others are taken for."""
    if measured is None:
        return []
    if measured == space.count:
        return [f"Exact patching measured all {measured} nodes."]
    return [
        f"Exact patching measured the {measured} nodes that attribution patching ranks highest; the other "
        f"{space.count - measured} count as 0."
    ]


def _of_selection(whole: Sequence[ContextCircuit]) -> list[str]:
    """Say where no node had to be preferred to another, so that nothing about selection is evidence."""
    return [
        f"{circuit.label}: the budget takes every node that has an effect, {len(circuit.nodes)} of them, so "
        "that selection could not fail: being selected again from parts of the data is no evidence, and "
        "nothing is certified. "
        + (
            "A part leaves a node out only where it has no effect there at all."
            if circuit.n_abstained
            else "Stability was left out."
        )
        for circuit in whole
    ]


def _of_controls(space: NodeSpace, circuits: Sequence[ContextCircuit]) -> list[str]:
    """Say which nodes of a circuit its random circuits have as well: there are no others to draw there."""
    found = []
    for circuit in circuits:
        shared, nodes = _shared(space, circuit), len(circuit.nodes)
        if not shared or not any(measured.random for measured in circuit.faithfulness):
            continue
        if sum(shared.values()) == nodes:
            found.append(
                f"{circuit.label}: it has all nodes of every layer (and position) that it has any of: each "
                "random circuit is the circuit itself. They are no control, and there is no p."
            )
            continue
        told = ", ".join(f"{count} of {owner}" for owner, count in shared.items())
        found.append(
            f"{circuit.label}: {sum(shared.values())} of its {nodes} nodes are in every random circuit too "
            f"({told}), since there are no others of their kind at that layer (and position). What these "
            "carry, random circuits carry as well: p and their figures are about the other nodes."
        )
    return found


def _shared(space: NodeSpace, circuit: ContextCircuit) -> Counter[str]:
    """Count nodes, by owner, whose layer (and position) the circuit has whole: every draw has them."""
    widths = {(place.owner, place.layer): place.width for place in space.places}
    groups = Counter((node.replacement, node.layer, node.position) for node in circuit.nodes)
    found: Counter[str] = Counter()
    for (owner, layer, _), count in groups.items():
        if count == widths[owner, layer]:
            found[owner] += count
    return found


def _of_data(command: DiscoverDatasetCircuit, contexts: Sequence[Context]) -> list[str]:
    found = []
    uneven = sum(c.twin is not None and len(c.twin) != len(c.ids) for c in contexts)
    if uneven:
        found.append(
            f"{uneven} pairs differ in length; their activations are aligned from the end of the contexts."
        )
    if command.positions is PositionRule.SUMMED and NodeAblation.MEAN in (command.patch, *command.ablations):
        found.append("Means are over all positions but the first, since positions are summed.")
    first = sum(c.twin is not None and c.twin[0] != c.ids[0] for c in contexts)
    if first:
        found.append(
            f"{first} pairs differ in their first token, where no node lies: begin with a common token."
        )
    return found


def _of_circuits(
    command: DiscoverDatasetCircuit, circuits: Sequence[ContextCircuit], nodes: int
) -> list[str]:
    found = []
    for circuit in circuits:
        for measured in circuit.faithfulness:
            whole, empty = measured.whole, measured.empty
            told = f"{circuit.label}, {measured.ablation.value} ablation"
            if not all(map(isfinite, (whole.value, empty.value, measured.circuit.metric))):
                found.append(
                    f"{told}: the metric is {whole.value:.3g}, {empty.value:.3g} with all nodes ablated and "
                    f"{measured.circuit.metric:.3g} with the circuit alone. What is no number says nothing: "
                    "inconclusive. The ablated model overflows its dtype; load it as float32, or ablate "
                    "otherwise."
                )
            elif isnan(measured.circuit.faithfulness.value):
                found.append(
                    f"{told}: with all nodes ablated the metric is {empty.value:.3g} against "
                    f"{whole.value:.3g}, the same within {FLOOR:.0%}: there is nothing that a circuit could "
                    "have a share of. Inconclusive: ablate otherwise, or more."
                )
            elif None not in (whole.low, empty.high) and (empty.high or 0) >= (whole.low or 0):
                found.append(
                    f"{told}: with all nodes ablated the metric is {empty.value:.2f} against "
                    f"{whole.value:.2f}; the intervals touch, so that shares mean little."
                )
            last = measured.curve[-1] if measured.curve else None
            if last is not None and last.faithfulness.value < GOAL:
                found.append(
                    f"{told}: all {last.nodes} nodes with an effect reach {last.faithfulness.value:.2f}."
                    + _short(command, last.nodes, nodes)
                )
        if not circuit.faithfulness:
            found.append(f"{circuit.label}: fewer than two held-out contexts, so that nothing was measured.")
    return found


def _of_few(circuits: Sequence[ContextCircuit]) -> list[str]:
    """Say of which circuits intervals are too short: resampling a few contexts hardly varies them."""
    counts = {circuit.label: measured.examples for circuit in circuits for measured in circuit.faithfulness}
    return [
        f"{label}: measured on {few} held-out contexts. A 95 % interval of so few is too short: in "
        f"simulations it held the truth in {COVERAGE[few]:.0%} of sets. Give 24 or more."
        for label, few in counts.items()
        if few in COVERAGE
    ]


def _short(command: DiscoverDatasetCircuit, kept: int, nodes: int) -> str:
    """Say what the strongest nodes leave out, all together."""
    why = ""
    if kept < nodes and command.estimator is Estimator.EXACT and command.exact_nodes < nodes:
        why += " The others are ablated too, and were not measured: ask for more `exact_nodes`."
    elif kept < nodes:
        why += (
            " The others are ablated too, but the patch leaves them as they are, so that none is ranked: "
            "patch with what is ablated with."
        )
    if command.error_term is not ErrorTerm.LIVE:
        why += f" Error terms are not the model's own (`{command.error_term.value}`), whatever is kept."
    return why


def _of_clusters(command: DiscoverDatasetCircuit, clusters: Clusters | None) -> list[str]:
    if clusters is None:
        return []
    if clusters.count < command.clusters:
        return [
            f"{command.clusters} clusters were asked for and {clusters.count} found: the effects of the "
            "contexts point in no more directions."
        ]
    few = len(clusters.assignment)
    if clusters.count == 1 and few < FEWEST_TO_GROUP:
        return [f"{few} contexts are too few to look for groups in: give at least {FEWEST_TO_GROUP}."]
    if clusters.count == 1:
        return ["No grouping of the contexts beats clouds without groups: they are one cluster."]
    own, theirs = clusters.silhouette, clusters.null_silhouette
    if not own > theirs:
        return [
            f"{clusters.count} clusters were asked for. Their silhouette is {own:.2f}, that of clouds with "
            f"no groups up to {theirs:.2f}: they may be cuts through one group."
        ]
    return []

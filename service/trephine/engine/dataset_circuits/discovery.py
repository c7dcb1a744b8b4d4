"""DiscoverDatasetCircuit: from contexts to nodes, edges, stability, clusters, held-out figures."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from time import monotonic

import torch
from torch import Tensor

from trephine.domain.circuits import GraphSet
from trephine.domain.commands import Progress
from trephine.domain.dataset_circuits import (
    Clustering,
    ContextCircuit,
    DatasetCircuit,
    DatasetEdge,
    DiscoverDatasetCircuit,
    Estimator,
    Faithfulness,
    NodeAblation,
    PositionRule,
)
from trephine.domain.interventions import ErrorTerm
from trephine.engine.dataset_circuits.averaging import Averages, average_effects
from trephine.engine.dataset_circuits.caveats import caveats, certificate
from trephine.engine.dataset_circuits.checking import space_of
from trephine.engine.dataset_circuits.clustering import Clusters, cluster_contexts
from trephine.engine.dataset_circuits.contexts import Context, effects_shared, patch_of, read_splits
from trephine.engine.dataset_circuits.describing import Describer
from trephine.engine.dataset_circuits.edges import find_edges, has_edges
from trephine.engine.dataset_circuits.estimators import EffectEstimator, estimator_of
from trephine.engine.dataset_circuits.faithfulness import measure_faithfulness, to_measure
from trephine.engine.dataset_circuits.packs import Pack, donor_ids, packs
from trephine.engine.dataset_circuits.patches import States, dataset_means
from trephine.engine.dataset_circuits.selection import (
    Stability,
    leaves_out,
    ranked,
    selected,
    stability_of,
    subsamples,
)
from trephine.engine.dataset_circuits.space import NodeSpace
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session
from trephine.engine.replacements.sets import require_set

_LISTED = 512
"""Nodes abstained on that are listed, the likeliest; all are counted."""
_SHOWN = 5
"""Contexts shown per cluster."""

Steps = Generator[Progress | None, None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Study:
    """A request made ready."""

    hosted: HostedModel
    command: DiscoverDatasetCircuit
    space: NodeSpace
    training: list[Context]
    held_out: list[Context]
    patch: NodeAblation
    means: States

    def packs(self, contexts: Sequence[Context], only: Sequence[int] | None = None) -> list[Pack]:
        """Pack contexts, or `only` some of them, with what they resample from among all of them."""
        kept = self.command.positions is PositionRule.KEPT
        donors = donor_ids(contexts, seed=self.command.seed, same_length=kept)
        chosen = range(len(contexts)) if only is None else only
        rows = [(contexts[i], donors[i]) for i in chosen]
        return list(packs([c for c, _ in rows], [d for _, d in rows], self.hosted.model.device))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The contexts that one circuit is of."""

    label: str
    members: Tensor
    """bool `(n_training,)`."""
    held_out: Tensor
    """bool `(n_held_out,)`."""
    shown: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The circuit of a part."""

    circuit: ContextCircuit
    could_fail: bool
    """False where selection left no node with an effect out, and had none to leave out."""


def discover_dataset_circuit(
    session: Session, command: DiscoverDatasetCircuit
) -> Generator[Progress | None, None, DatasetCircuit]:
    """Find and measure the circuits of a dataset; a forward pass or a block of a sweep per quantum.

    Raises:
        TrephineError: Naming the context and column that cannot be used, or the option.
    """
    started = monotonic()
    study = yield from _prepare(session.require_model().pinned(), command)
    everything = _Part(
        label="all",
        members=torch.ones(len(study.training), dtype=torch.bool),
        held_out=torch.ones(len(study.held_out), dtype=torch.bool),
        shown=(),
    )
    candidates = yield from _candidates(study)
    estimator = estimator_of(
        study.hosted, study.space, command.estimator, steps=command.steps, candidates=candidates
    )
    averages = yield from _averages(study, estimator, [everything], "effects")
    circuits = [(yield from _circuit(study, everything, averages.parts))]
    clusters: Clusters | None = None
    if command.clusters != 1:
        clusters = yield from cluster_contexts(averages.sketches, command.clusters, command.seed)
        if clusters.count > 1:
            circuits += yield from _of_clusters(study, estimator, averages, clusters)
    measured = None if candidates is None else len(candidates)
    return _result(study, circuits, clusters, measured, monotonic() - started)


def _prepare(
    hosted: HostedModel, command: DiscoverDatasetCircuit
) -> Generator[Progress | None, None, _Study]:
    yield Progress(stage="contexts", done=0, total=1)
    training, held_out = read_splits(hosted, command)
    yield Progress(stage="contexts", done=1, total=1)
    space, patch = space_of(hosted, command, training), patch_of(command, training)
    study = _Study(
        hosted=hosted,
        command=command,
        space=space,
        training=training,
        held_out=held_out,
        patch=patch,
        means=(),
    )
    if NodeAblation.MEAN not in (patch, *command.ablations):
        return study
    errors = command.error_term is not ErrorTerm.LIVE and space.has_sets
    yield Progress(stage="means", done=0, total=1)
    means = yield from dataset_means(hosted, space, study.packs(training), errors=errors)
    return _Study(
        hosted=hosted,
        command=command,
        space=space,
        training=training,
        held_out=held_out,
        patch=patch,
        means=means,
    )


def _candidates(study: _Study) -> Generator[Progress | None, None, Tensor | None]:
    """Return the nodes that exact patching measures, int64 `(n,)`; None: all are measured, otherwise."""
    command, hosted, space = study.command, study.hosted, study.space
    if command.estimator is not Estimator.EXACT:
        return None
    first = estimator_of(hosted, space, Estimator.ATTRIBUTION_PATCHING, steps=1, candidates=None)
    everyone = torch.ones(1, len(study.training), dtype=torch.bool)
    found = yield from _average(study, first, everyone, "candidates")
    return ranked(found.parts[0])[: command.exact_nodes]


def _averages(
    study: _Study, estimator: EffectEstimator, parts: Sequence[_Part], stage: str
) -> Generator[Progress | None, None, Averages]:
    """Average over every part and its subsamples: `1 + draws` rows per part."""
    rule, rows = study.command.stability, []
    for part in parts:
        rows.append(part.members[None])
        inside = part.members.nonzero()[:, 0]
        if rule.draws and len(inside) > 1:
            drawn = torch.zeros(rule.draws, len(part.members), dtype=torch.bool)
            drawn[:, inside] = subsamples(len(inside), rule, study.command.seed)
            rows.append(drawn)
    return (yield from _average(study, estimator, torch.cat(rows), stage))


def _average(
    study: _Study, estimator: EffectEstimator, parts: Tensor, stage: str
) -> Generator[Progress | None, None, Averages]:
    return (
        yield from average_effects(
            study.hosted,
            study.space,
            study.packs(study.training),
            parts,
            estimator,
            patch=study.patch,
            means=study.means,
            seed=study.command.seed,
            stage=stage,
        )
    )


def _of_clusters(
    study: _Study, estimator: EffectEstimator, averages: Averages, clusters: Clusters
) -> Generator[Progress | None, None, list[_Found]]:
    """Find a circuit per cluster; held-out contexts go to the nearest centre by their effects."""
    held_out = yield from average_effects(
        study.hosted,
        study.space,
        study.packs(study.held_out),
        torch.ones(1, len(study.held_out), dtype=torch.bool),
        estimator,
        patch=study.patch,
        means=study.means,
        seed=study.command.seed,
        stage="held-out clusters",
    )
    assigned = clusters.assign(held_out.sketches)
    parts = [
        _Part(
            label=f"cluster {k + 1}",
            members=clusters.assignment == k,
            held_out=assigned == k,
            shown=_nearest(averages, clusters, k),
        )
        for k in range(clusters.count)
    ]
    found = yield from _averages(study, estimator, parts, "effects of clusters")
    circuits, start = [], 0
    for part in parts:
        draws = study.command.stability.draws if int(part.members.sum()) > 1 else 0
        circuits.append((yield from _circuit(study, part, found.parts[start : start + 1 + draws])))
        start += 1 + draws
    return circuits


def _nearest(averages: Averages, clusters: Clusters, k: int) -> tuple[int, ...]:
    near = averages.sketches @ clusters.centres[k] / averages.sketches.norm(dim=1).clamp_min(1e-12)
    order = near.masked_fill(clusters.assignment != k, -torch.inf).argsort(descending=True, stable=True)
    count = min(_SHOWN, int((clusters.assignment == k).sum()))
    return tuple(order[:count].tolist())


def _circuit(study: _Study, part: _Part, effects: Tensor) -> Generator[Progress | None, None, _Found]:
    """Select nodes by the first row of `effects (1 + draws, n_nodes)`, judge them by the others, measure."""
    command, mean, contexts = study.command, effects[0], int(part.members.sum())
    nodes = selected(mean, command.size)
    could_fail = leaves_out(mean, nodes, command.size)
    stability = yield from _stability(study, effects, could_fail=could_fail)
    edges = yield from _edges(study, part, nodes)
    faithfulness = yield from _faithfulness(study, part, mean, nodes, stability)
    certifies = could_fail and not effects_shared(command, study.training)
    describe = Describer(
        study.space, mean, stability, command.stability, contexts=contexts, certifies=certifies
    )
    circuit = ContextCircuit(
        label=part.label,
        training=contexts,
        held_out=int(part.held_out.sum()),
        contexts=tuple(study.training[i].text for i in part.shown),
        choices=tuple(command.training[i].choice for i in part.shown),
        effect_share=float(mean[nodes].abs().sum() / mean.abs().sum().clamp_min(1e-30)),
        nodes=describe(nodes),
        abstained=() if stability is None else describe(stability.abstained[:_LISTED]),
        edges=edges,
        faithfulness=faithfulness,
        n_abstained=0 if stability is None else len(stability.abstained),
    )
    return _Found(circuit=circuit, could_fail=could_fail)


def _stability(
    study: _Study, effects: Tensor, *, could_fail: bool
) -> Generator[None, None, Stability | None]:
    """Judge nodes by the draws; None without draws, and where these select everything that could be."""
    if len(effects) < 2:
        return None
    command = study.command
    found = yield from stability_of(effects[0], effects[1:], command.size, command.stability)
    # A node that nothing could displace is no stable one; what some draw has no effect of is abstained on.
    return found if could_fail or len(found.abstained) else None


def _edges(
    study: _Study, part: _Part, nodes: Tensor
) -> Generator[Progress | None, None, tuple[DatasetEdge, ...]]:
    size = study.command.size
    if not size.edge_nodes or not len(nodes) or not has_edges(study.space):
        return ()
    members = part.members.nonzero()[:, 0].tolist()[: size.edge_examples]
    return (
        yield from find_edges(
            study.hosted,
            study.space,
            study.packs(study.training, members),  # patched as they were for their effects
            nodes[: size.edge_nodes],
            patch=study.patch,
            means=study.means,
            stage=f"edges of {part.label}",
        )
    )


def _faithfulness(
    study: _Study, part: _Part, mean: Tensor, nodes: Tensor, stability: Stability | None
) -> Generator[Progress | None, None, tuple[Faithfulness, ...]]:
    members = part.held_out.nonzero()[:, 0].tolist()
    if len(members) < 2:
        return ()
    command = study.command
    core = None if stability is None else stability.stable
    return (
        yield from measure_faithfulness(
            study.hosted,
            study.space,
            study.packs(study.held_out, members),  # resampled from as in "all", and as clusters were told
            to_measure(
                study.space,
                mean,
                nodes,
                core,
                command.size,
                command.seed,
                all_told=command.estimator is not Estimator.EXACT,
            ),
            study.means,
            ablations=command.ablations,
            error_term=command.error_term,
            size=command.size,
            seed=command.seed,
            stage=f"faithfulness of {part.label}",
        )
    )


def _result(
    study: _Study, found: Sequence[_Found], clusters: Clusters | None, measured: int | None, seconds: float
) -> DatasetCircuit:
    command, info = study.command, study.hosted.info
    contexts, circuits = (*study.training, *study.held_out), [one.circuit for one in found]
    whole = [one.circuit for one in found if not one.could_fail]
    clustering = None
    if clusters is not None:
        clustering = Clustering(
            clusters=clusters.count,
            silhouette=clusters.silhouette,
            null_silhouette=clusters.null_silhouette,
            sizes=tuple(torch.bincount(clusters.assignment, minlength=clusters.count).tolist()),
            assignment=tuple(clusters.assignment.tolist()),
        )
    return DatasetCircuit(
        replacement=command.replacement,
        beside=command.beside,
        estimator=command.estimator,
        positions=command.positions,
        patch=study.patch,
        error_term=command.error_term,
        training=len(study.training),
        held_out=len(study.held_out),
        candidates=study.space.count,
        circuits=tuple(circuits),
        clustering=clustering,
        certificate=certificate(
            command.stability,
            len(study.training),
            effects_shared(command, study.training),
            grouped=len(circuits) > 1,
            could_fail=len(whole) < len(circuits),
        ),
        caveats=caveats(
            study.hosted, command, study.space, contexts, circuits, clusters, whole=whole, measured=measured
        ),
        seconds=seconds,
        model=info.name,
        weight_hash=info.weight_hash,
        seed=command.seed,
        sets=_sets(study),
        layers=tuple(sorted(set(study.space.layers))),
    )


def _sets(study: _Study) -> tuple[GraphSet, ...]:
    names = dict.fromkeys(place.set_name for place in study.space.places if place.is_of_set)
    return tuple(
        GraphSet(name=name, content_hash=require_set(study.hosted, name).admitted.content_hash)
        for name in names
    )


HANDLERS: dict[type, Handler] = {DiscoverDatasetCircuit: discover_dataset_circuit}

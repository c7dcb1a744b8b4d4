"""From a prompt and a target to a circuit over loaded replacement sets."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Protocol

from torch import Tensor

from trephine.domain.circuits import (
    Circuit,
    CircuitFigures,
    DiscoverCircuit,
    EstimateQuality,
    GraphSet,
    HierarchicalFigures,
)
from trephine.domain.commands import Progress
from trephine.domain.sites import NEURONS, Site, SiteKind
from trephine.engine.attribution.assembly import NodeOrder, assemble, order_nodes
from trephine.engine.attribution.estimates import Predicted, feature_ablation, verify_estimates
from trephine.engine.attribution.expansion import Expansion
from trephine.engine.attribution.finite_runs import require_finite
from trephine.engine.attribution.nodes import NodeFacts, describe_nodes, directions_of
from trephine.engine.attribution.operators import FrozenOperators, capture, stored_bytes
from trephine.engine.attribution.targets import Explained, target_caveats
from trephine.engine.attribution.totals import sweep_paths
from trephine.engine.graphs.actives import ActiveFeatures, activate
from trephine.engine.graphs.basis import FeatureBasis
from trephine.engine.graphs.effects import Effects, effects_on, path_effects
from trephine.engine.graphs.hierarchical import grow, hierarchy_caveats, through_features
from trephine.engine.graphs.linearised import is_linearised
from trephine.engine.graphs.open_layers import open_layers, unopened_caveats
from trephine.engine.graphs.scores import graph_scores
from trephine.engine.graphs.target_kinds import explained
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.memory import MemoryMeter
from trephine.engine.replacements.contexts import beginning_caveats, degraded_caveats
from trephine.engine.replacements.sets import require_set


class Question(Protocol):
    """A validated request."""

    @property
    def command(self) -> DiscoverCircuit:
        """What was asked."""
        ...

    @property
    def ids(self) -> list[int]:
        """The prompt."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Graph:
    """One prompt's graph while it is worked on."""

    hosted: HostedModel
    question: Question
    explained: Explained
    operators: FrozenOperators
    active: ActiveFeatures
    expansion: Expansion
    hierarchy: HierarchicalFigures | None
    order: NodeOrder
    effects: Effects
    """By the exact gradient."""
    shares: Tensor
    """float32 `(n_pos,)`, effects of tokens along all paths through the model's own MLPs, by the half rule: a
    gradient does not tell what the removal of an embedding does."""
    paths: Tensor
    """float32 `(n_cells,)`, effects of features along the graph's paths."""


def discover_with_sets(hosted: HostedModel, question: Question) -> Generator[Progress | None, None, Circuit]:
    """Find a circuit over sets' features; one block of a sweep, or one batch of ablations, per quantum.

    Raises:
        UnsupportedOptionError: If no attribution law holds for a layer of the set.
    """
    started, command = monotonic(), question.command
    yield Progress(stage="forward", done=0, total=1)
    operators = capture(hosted.model, hosted.architecture, question.ids)
    require_finite(operators)
    meter = MemoryMeter(operators.device, held=stored_bytes(operators))
    yield Progress(stage="forward", done=1, total=1)
    layers = open_layers(hosted, command.sets, command.layers)
    active = yield from activate(hosted, operators, layers)
    what = explained(hosted, operators, question, active)
    effects = yield from effects_on(hosted, operators, active, what.cotangents(live=True))
    shares = yield from sweep_paths(operators, what.cotangents(live=False))
    basis = FeatureBasis(
        hosted=hosted,
        operators=operators,
        active=active,
        explained=what,
        meter=meter,
        max_nodes=command.max_feature_nodes,
    )
    hierarchy, expansion = yield from grow(
        basis, partial(through_features, hosted, operators, active, what), what, operators, command
    )
    graph = _Graph(
        hosted=hosted,
        question=question,
        explained=what,
        operators=operators,
        active=active,
        expansion=expansion,
        hierarchy=hierarchy,
        order=order_nodes(expansion),
        effects=effects,
        shares=shares.tokens,
        paths=path_effects(expansion.rows, active, what.gains),
    )
    return (yield from _circuit(graph, meter, started))


def _circuit(graph: _Graph, meter: MemoryMeter, started: float) -> Generator[Progress | None, None, Circuit]:
    hosted, question, command = graph.hosted, graph.question, graph.question.command
    edges, rows = assemble(
        graph.expansion, graph.order, edge_mass=command.edge_mass, max_edges=command.max_edges_per_row
    )
    meter.sample()
    nodes = yield from describe_nodes(
        hosted, question, graph.explained, graph.expansion, graph.order, _facts(graph)
    )
    quality = yield from _verify(graph)
    meter.sample()
    return Circuit(
        prompt=command.prompt,
        tokens=hosted.tokens(question.ids),
        targets=tuple(target.about for target in graph.explained.targets),
        asked=command.target,
        replacement=command.replacement,
        edge_rule="relp_half" if graph.active.is_estimated() else "exact",
        nodes=nodes,
        edges=edges,
        rows=rows,
        quality=quality,
        figures=_figures(graph, monotonic() - started, meter.extra_bytes),
        model=hosted.info.name,
        weight_hash=hosted.info.weight_hash,
        layers=tuple(sorted({layer.ref.layer for layer in graph.active.layers})),
        set_hash=_content_hash(hosted, command.replacement),
        beside=tuple(
            GraphSet(name=name, content_hash=_content_hash(hosted, name)) for name in command.beside
        ),
        caveats=_caveats(graph, quality),
    )


def _content_hash(hosted: HostedModel, name: str) -> str:
    return "" if name == NEURONS else require_set(hosted, name).admitted.content_hash


def _facts(graph: _Graph) -> NodeFacts:
    features, active = graph.order.features, graph.active
    covered = {site for layer in active.layers for site in layer.info.sites_out}
    return NodeFacts(
        features=active.refs(features),
        activation=active.activation[features],
        effect=graph.effects.features[features],
        directions=partial(directions_of, graph.hosted),
        errors=[(site, _error_name(site, site in covered)) for site in active.error_sites],
        error_effect=graph.effects.errors,
        token_effect=graph.shares,
    )


def _error_name(site: Site, covered: bool) -> str:
    if not covered and site.kind is SiteKind.MLP_OUT:
        return f"MLP {site.layer} (not covered)"
    return f"error of {site.kind.value} {site.layer}"


def _verify(graph: _Graph) -> Generator[Progress | None, None, EstimateQuality | None]:
    command, question = graph.question.command, graph.question
    if not command.verify_nodes:
        return None
    cells = graph.order.features
    columns = (graph.active.position[cells], graph.effects.features[cells], graph.paths[cells])
    nodes = [
        Predicted(feature=feature, position=position, effect=effect, by_half_rule=path)
        for feature, position, effect, path in zip(
            graph.active.refs(cells), *(column.tolist() for column in columns), strict=True
        )
    ]
    ablation = feature_ablation(graph.hosted, question.ids, graph.explained)
    return (
        yield from verify_estimates(
            nodes, ablation, n_tokens=len(question.ids), count=command.verify_nodes, seed=command.seed
        )
    )


def _figures(graph: _Graph, seconds: float, extra_bytes: int) -> CircuitFigures:
    influence = graph.expansion.influence
    selected = float(influence.neurons[graph.order.features].sum())
    return CircuitFigures(
        baseline=graph.explained.baseline,
        selected_share=min(1.0, selected / influence.all_neurons) if influence.all_neurons > 0 else 0.0,
        error_share=float(influence.errors.sum()),
        active_features=graph.active.count,
        selected_features=len(graph.order.features),
        seconds=seconds,
        peak_extra_bytes=extra_bytes,
        scores=graph_scores(graph.expansion.rows, graph.order),
        hierarchy=graph.hierarchy,
    )


def _caveats(graph: _Graph, quality: EstimateQuality | None) -> tuple[str, ...]:
    influence = graph.expansion.influence
    caveats = [
        f"{float(influence.errors.sum()):.0%} of the influence enters through error nodes: what sets do "
        "not reconstruct, and MLPs that none covers. No path is followed through them.",
        f"Position 0 is an attention sink that sets are not trained on: it has no features, and "
        f"{_share_at_start(graph):.0%} of the influence enters through its error nodes.",
        "Edges are direct effects with attention patterns and norm scales frozen and active features held "
        "active (law 4); they take attention as given. A node's effect is what it writes (a feature, an "
        "error term) times the exact gradient of the real model, nothing frozen; that of a token is its "
        "share by relp_half." + ("" if quality else " Neither was measured against ablations here."),
        "Promoted and suppressed tokens are the decoder's, summed over the sites that it writes.",
    ]
    sets = [name for name in graph.question.command.sets if name != NEURONS]
    caveats = [*degraded_caveats(graph.hosted, sets), *caveats]
    caveats += beginning_caveats(graph.hosted, sets, graph.question.ids)
    opened = [each.ref for each in graph.active.layers]
    caveats += unopened_caveats(graph.question.command.sets, opened)
    if any(ref.replacement == NEURONS for ref in opened):
        caveats.append(
            "Neurons stand where no set reconstructs an MLP: they leave no error, and edges into them follow "
            "relp_half and are estimates. At position 0 these MLPs are error as a whole, as everywhere there."
        )
    if any(is_linearised(each.info) for each in graph.active.layers):
        caveats.append(
            "Edges into features of MLP outputs go through the MLP linearised by the half rule: they sum to "
            "the feature's pre-activation and are estimates. Other edges are exact."
        )
    if graph.active.cuts:
        caveats.append("Paths end at dictionaries on the residual stream: what they read below is not shown.")
    if any(each.info.has_skip for each in graph.active.layers):
        caveats.append("Skip paths are followed as part of the network, not as features.")
    caveats += [*target_caveats(graph.explained), *hierarchy_caveats(graph.hierarchy)]
    if graph.explained.softcap:
        caveats.append("Logits are read before the model's soft cap.")
    if graph.hosted.info.dtype == "bfloat16":
        caveats.append("Weights are bfloat16: rows sum to their targets up to the forward pass's rounding.")
    return tuple(caveats)


def _share_at_start(graph: _Graph) -> float:
    errors = graph.expansion.influence.errors
    return float(errors.reshape(-1, graph.active.n_pos)[:, 0].sum())

"""DiscoverCircuit: from a prompt and a target to a circuit, over neurons or loaded sets."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic

import torch
from torch import Tensor

from trephine.domain.circuits import (
    CheckDiscovery,
    Circuit,
    CircuitFigures,
    DiscoverCircuit,
    EstimateQuality,
)
from trephine.domain.commands import Progress
from trephine.domain.errors import InvalidRequestError, LayerOutOfRangeError, TrephineError
from trephine.domain.sites import NEURONS, FeatureRef, Site, SiteKind
from trephine.domain.tokens import Tokens
from trephine.engine.attribution.assembly import NodeOrder, assemble, order_nodes
from trephine.engine.attribution.estimates import Predicted, neuron_ablation, verify_estimates
from trephine.engine.attribution.expansion import Expansion, NeuronBasis
from trephine.engine.attribution.finite_runs import require_finite
from trephine.engine.attribution.nodes import NodeFacts, describe_nodes, directions_of
from trephine.engine.attribution.operators import FrozenOperators, capture, stored_bytes
from trephine.engine.attribution.targets import Explained, target_caveats
from trephine.engine.attribution.totals import Totals, sweep_gradient, sweep_paths
from trephine.engine.graphs.discovery import discover_with_sets
from trephine.engine.graphs.hierarchical import grow, hierarchy_caveats
from trephine.engine.graphs.hierarchical_neurons import through_neurons
from trephine.engine.graphs.open_layers import open_layers
from trephine.engine.graphs.target_checks import check_target
from trephine.engine.graphs.target_kinds import explained
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.memory import MemoryMeter
from trephine.engine.models.session import Handler, Session
from trephine.engine.replacements.sets import covered_layers

_FEWEST_TOKENS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A validated request."""

    command: DiscoverCircuit
    ids: list[int]


def discover(session: Session, command: DiscoverCircuit) -> Generator[Progress | None, None, Circuit]:
    """Find a circuit; one layer of a sweep, or one batch of ablations, per quantum.

    Raises:
        InvalidRequestError: Of a kind that names the field, for anything that cannot be asked.
    """
    return discover_circuit(session.require_model(), command)


def discover_circuit(
    hosted: HostedModel, command: DiscoverCircuit
) -> Generator[Progress | None, None, Circuit]:
    """Do the work of `discover` on a hosted model."""
    started, hosted = monotonic(), hosted.pinned()
    question = validate(hosted, command)
    if command.replacement != NEURONS:
        return (yield from discover_with_sets(hosted, question))
    yield Progress(stage="forward", done=0, total=1)
    operators = capture(hosted.model, hosted.architecture, question.ids, command.layers)
    require_finite(operators)
    meter = MemoryMeter(operators.device, held=stored_bytes(operators))
    yield Progress(stage="forward", done=1, total=1)
    what = explained(hosted, operators, question)
    totals = yield from sweep_gradient(operators, what.cotangents(live=True))
    half_rule = yield from sweep_paths(operators, what.cotangents(live=False))
    basis = NeuronBasis(operators=operators, explained=what, meter=meter)
    hierarchy, expansion = yield from grow(
        basis, partial(through_neurons, operators, what), what, operators, command
    )
    order = order_nodes(expansion)
    edges, rows = assemble(expansion, order, edge_mass=command.edge_mass, max_edges=command.max_edges_per_row)
    meter.sample()
    facts = _facts(hosted, operators, expansion, order, totals, shares=half_rule.tokens)
    nodes = yield from describe_nodes(hosted, question, what, expansion, order, facts)
    quality = yield from _verify(hosted, question, what, expansion, order, (totals, half_rule))
    meter.sample()
    circuit = Circuit(
        prompt=command.prompt,
        tokens=hosted.tokens(question.ids),
        targets=tuple(target.about for target in what.targets),
        asked=command.target,
        replacement=command.replacement,
        edge_rule="relp_half",
        nodes=nodes,
        edges=edges,
        rows=rows,
        quality=quality,
        figures=replace(
            _figures(what, operators, expansion, order, monotonic() - started, meter.extra_bytes),
            hierarchy=hierarchy,
        ),
        model=hosted.info.name,
        weight_hash=hosted.info.weight_hash,
        layers=tuple(number for number, covered in enumerate(operators.covered) if covered),
        caveats=(
            *_caveats(hosted, what, operators, expansion, order, quality),
            *hierarchy_caveats(hierarchy),
        ),
    )
    return circuit


def check(session: Session, command: CheckDiscovery) -> Generator[Progress | None, None, Tokens]:
    """Refuse what `discover` would refuse, without running the model.

    Raises:
        TrephineError: As `validate`.
    """
    hosted = session.require_model()
    question = validate(hosted, command.command)
    yield None
    return Tokens(tokens=hosted.tokens(question.ids))


def validate(hosted: HostedModel, command: DiscoverCircuit) -> Question:
    """Check a request against the model and resolve its tokens.

    Raises:
        ReplacementNotFoundError: For a replacement set that is not loaded.
        LayerOutOfRangeError: For a layer that the model or the set does not have.
        EmptyPromptError, PromptTooLongError, TargetNotOneTokenError: For the texts.
        UnsupportedOptionError: If no attribution law holds for a layer of the set, or for the target's site.
        InvalidRequestError: For a prompt of one token, or limits out of their domain.
    """
    _check_limits(hosted, command)
    if command.replacement != NEURONS:
        open_layers(hosted, command.sets, command.layers, choosable=True)
    ids = _encoded(hosted, command.prompt)
    if len(ids) < _FEWEST_TOKENS:
        raise InvalidRequestError(
            "the prompt is one token long: position 0 is an attention sink and explains nothing on its own; "
            "use at least two tokens",
            field="prompt",
        )
    check_target(hosted, command, len(ids))
    return Question(command=command, ids=ids)


def _encoded(hosted: HostedModel, prompt: str) -> list[int]:
    try:
        return hosted.encode(prompt)
    except TrephineError as error:
        raise error.with_field("prompt") from None


def _check_limits(hosted: HostedModel, command: DiscoverCircuit) -> None:
    n_layers = hosted.architecture.n_layers
    covered = sorted({n for name in command.sets for n in covered_layers(hosted, name)})
    if command.layers == ():
        raise InvalidRequestError("an empty list covers no layer; leave it out to cover all", field="layers")
    for layer in command.layers or ():
        if not 0 <= layer < n_layers:
            raise LayerOutOfRangeError(
                f"layer {layer} does not exist: the model has layers 0 to {n_layers - 1}",
                field="layers",
                layer=layer,
            )
        if layer not in covered:
            raise LayerOutOfRangeError(
                f"replacement set {' and '.join(command.sets)} does not cover layer {layer}; it has "
                f"{', '.join(map(str, covered))}. Name one of these, leave layers out to take all, or load a "
                "set that covers it",
                field="layers",
                layer=layer,
            )
    if command.max_edges_per_row < 1:
        raise InvalidRequestError("max_edges_per_row must be at least 1", field="max_edges_per_row")
    if command.verify_nodes < 0:
        raise InvalidRequestError(
            "verify_nodes must not be negative; 0 skips verification", field="verify_nodes"
        )


def _facts(
    hosted: HostedModel,
    operators: FrozenOperators,
    expansion: Expansion,
    order: NodeOrder,
    totals: Totals,
    *,
    shares: Tensor,
) -> NodeFacts:
    """Take everything by the exact gradient, and tokens by shares: a gradient does not tell their removal."""
    places = zip(*(column.tolist() for column in expansion.cells.split(order.features)), strict=True)
    return NodeFacts(
        features=expansion.cells.refs(order.features),
        activation=torch.tensor(
            [float(operators.layers[layer].activation[position, index]) for layer, position, index in places]
        ),
        effect=totals.neurons.flatten()[order.features],
        directions=partial(directions_of, hosted),
        errors=[
            (Site(kind=SiteKind.MLP_OUT, layer=number), f"MLP {number} (opaque)")
            for number in range(len(operators.layers))
        ],
        error_effect=totals.errors.flatten(),
        token_effect=shares,
    )


def _verify(
    hosted: HostedModel,
    question: Question,
    what: Explained,
    expansion: Expansion,
    order: NodeOrder,
    both: tuple[Totals, Totals],
) -> Generator[Progress | None, None, EstimateQuality | None]:
    command = question.command
    if not command.verify_nodes:
        return None
    columns = [column.tolist() for column in expansion.cells.split(order.features)]
    estimates = [t.neurons.flatten()[order.features].tolist() for t in both]
    nodes = [
        Predicted(
            feature=FeatureRef(layer=layer, index=index), position=position, effect=effect, by_half_rule=half
        )
        for layer, position, index, effect, half in zip(*columns, *estimates, strict=True)
    ]
    return (
        yield from verify_estimates(
            nodes,
            neuron_ablation(hosted, question.ids, what),
            n_tokens=len(question.ids),
            count=command.verify_nodes,
            seed=command.seed,
        )
    )


def _figures(
    what: Explained,
    operators: FrozenOperators,
    expansion: Expansion,
    order: NodeOrder,
    seconds: float,
    extra_bytes: int,
) -> CircuitFigures:
    influence = expansion.influence
    selected = float(influence.neurons[order.features].sum())
    return CircuitFigures(
        baseline=what.baseline,
        selected_share=min(1.0, selected / influence.all_neurons) if influence.all_neurons > 0 else 0.0,
        error_share=float(influence.errors.sum()),
        active_features=sum(
            int(layer.activation.count_nonzero())
            for layer, covered in zip(operators.layers, operators.covered, strict=True)
            if covered
        ),
        selected_features=len(order.features),
        seconds=seconds,
        peak_extra_bytes=extra_bytes,
    )


def _caveats(
    hosted: HostedModel,
    what: Explained,
    operators: FrozenOperators,
    expansion: Expansion,
    order: NodeOrder,
    quality: EstimateQuality | None,
) -> tuple[str, ...]:
    influence = expansion.influence
    _, position, _ = expansion.cells.split(order.features)
    at_start = int((position == 0).sum())
    selected = float(influence.neurons[order.features].sum())
    sink_share = float(influence.neurons[order.features[position == 0]].sum()) / selected if selected else 0.0
    caveats = [
        f"Position 0 is an attention sink: {at_start} of {len(order.features)} selected neurons and "
        f"{sink_share:.0%} of their influence are there. Removing them tends to damage the model everywhere.",
        "Edges follow relp_half: they sum to each activation, with attention patterns and norm scales "
        "frozen, and are estimates of what an ablation does. A node's effect is what it writes (a neuron, an "
        "opaque MLP) times the exact gradient, nothing frozen; that of a token is its share by relp_half."
        + ("" if quality else " Neither was measured against ablations here."),
        "Edges take attention patterns as given: why a head looked where it looked is not explained.",
        "Promoted and suppressed tokens are the decoder's; where the activation is negative they swap roles.",
    ]
    uncovered = [number for number, covered in enumerate(operators.covered) if not covered]
    if uncovered:
        caveats.append(
            f"The MLPs of {len(uncovered)} layers are opaque; {float(influence.errors.sum()):.0%} of the "
            "influence enters through these error nodes, and no path is followed through them."
        )
    caveats += target_caveats(what)
    if what.softcap:
        caveats.append("Logits are read before the model's soft cap.")
    if hosted.info.dtype == "bfloat16":
        caveats.append("Weights are bfloat16: rows sum to their targets up to the forward pass's rounding.")
    return tuple(caveats)


HANDLERS: dict[type, Handler] = {DiscoverCircuit: discover, CheckDiscovery: check}
"""Commands of this module."""

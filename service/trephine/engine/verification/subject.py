"""A circuit as something to be examined: its prompt, its features, what they become when they are ablated."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.circuit_sets import require_same_set
from trephine.domain.circuits import Circuit, DiscoverCircuit, NodeKind
from trephine.domain.errors import ParentChangedError, ReplacementNotFoundError, UnsupportedOptionError
from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import NEURONS, LayerRef, Site, SiteKind
from trephine.domain.verification import Substitute, VerificationOptions, ablated_features
from trephine.engine.attribution.finite_runs import require_finite
from trephine.engine.attribution.operators import FrozenOperators, capture
from trephine.engine.attribution.places import clean_value
from trephine.engine.attribution.targets import Explained
from trephine.engine.attribution.totals import sweep_gradient
from trephine.engine.graphs.actives import ActiveFeatures, activate
from trephine.engine.graphs.effects import effects_on
from trephine.engine.graphs.linearised import read_place
from trephine.engine.graphs.open_layers import info_of, layers_of, open_layers
from trephine.engine.graphs.target_kinds import explained
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import covered_layers, layer_info, opened, require_set
from trephine.engine.runs.retain import plain_runs, retain_text
from trephine.engine.verification.masks import MaskedPrompt, Substitutes
from trephine.engine.verification.paths import Graph, graph_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A circuit, the prompt that it was found on, and the features that are active there."""

    circuit: Circuit
    graph: Graph
    prompt: MaskedPrompt
    kept: tuple[int, ...]
    """Feature nodes of the pruned circuit at positions >= 1."""
    first_position: int
    """Feature nodes of it at position 0."""
    activation: dict[LayerRef, Tensor]
    """By layer of a set `(n_pos, width)`, clean activations."""
    active: dict[LayerRef, Tensor]
    """By layer of a set bool `(n_pos, width)`, the clean support up to the last target; of neurons all."""
    effect: dict[LayerRef, Tensor]
    """By layer of a set `(n_pos, width)`: activation times the exact gradient, of what is explained."""


def open_subject(
    hosted: HostedModel, options: VerificationOptions, circuit: Circuit, kept: Sequence[int]
) -> Generator[None, None, Subject]:
    """Check a circuit against the hosted model and read its prompt; one layer a quantum.

    Raises:
        ParentChangedError: If the model's weights, or its set, are not those that the circuit was found with.
        ReplacementNotFoundError: If its set is not loaded any more.
        UnsupportedOptionError: If what it explains is not known, or a feature writes several layers while the
            error term is not live.
        InvalidRequestError: If its pruned form has no feature at positions >= 1.
    """
    check_circuit(hosted, circuit)
    layers, found = opened_layers(hosted, circuit), None
    _check_error_term(hosted, layers, options.error_term)
    graph = graph_of(circuit)
    later = ablated_features(circuit, kept)
    ids = [token.id for token in circuit.tokens]
    with torch.inference_mode():
        operators = capture(hosted.model, hosted.architecture, ids)
    require_finite(operators)
    yield None
    if circuit.replacement != NEURONS:
        found = yield from activate(hosted, operators, layers)
    what = explained(hosted, operators, _Question(command=_asked(circuit), ids=ids), found)
    prompt = MaskedPrompt(
        hosted=hosted,
        ids=tuple(ids),
        layers=_below(hosted, layers, what),
        operators=operators,
        explained=what,
        error_term=options.error_term,
    )
    read = _neurons(prompt) if found is None else _features(prompt, found)
    activation, active, effect = yield from read
    last = max(circuit.positions)
    for support in active.values():
        support[last + 1 :] = False  # what comes after every target changes nothing
    return Subject(
        circuit=circuit,
        graph=graph,
        prompt=prompt,
        kept=later,
        first_position=sum(bool(graph.is_feature[node]) for node in kept) - len(later),
        activation=activation,
        active=active,
        effect=effect,
    )


def _check_error_term(hosted: HostedModel, layers: Sequence[LayerRef], error_term: ErrorTerm) -> None:
    several = [ref for ref in layers if len(info_of(hosted, ref).sites_out) > 1]
    if several and error_term is not ErrorTerm.LIVE:
        raise UnsupportedOptionError(
            f"features of {several[0].replacement} write several layers, so that no layer has a "
            "reconstruction of its own to stand in for it: verify with the error term live",
            field="error_term",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """A circuit's own question."""

    command: DiscoverCircuit
    ids: list[int]


def _asked(circuit: Circuit) -> DiscoverCircuit:
    return DiscoverCircuit(
        prompt=circuit.prompt,
        target=circuit.question(),
        positions=circuit.positions,
        replacement=circuit.replacement,
        beside=circuit.set_names[1:],
    )


def _below(hosted: HostedModel, layers: Sequence[LayerRef], what: Explained) -> tuple[LayerRef, ...]:
    """Return the layers that a target can depend on: features above it change nothing."""
    highest = max(part.place for target in what.targets for part in target.parts)
    return tuple(ref for ref in layers if read_place(info_of(hosted, ref)) < highest)


def check_circuit(hosted: HostedModel, circuit: Circuit) -> None:
    """Refuse a circuit that is not of the hosted weights, or whose set is gone.

    Raises:
        ParentChangedError: If the weights differ, or the set of that name is another one.
        ReplacementNotFoundError: If the set is not loaded.
    """
    if circuit.weight_hash != hosted.info.weight_hash:
        raise ParentChangedError(
            f"the circuit was found in weights {circuit.weight_hash[:12]} of {circuit.model}, and "
            f"{hosted.info.name} now has {hosted.info.weight_hash[:12]}; load the weights that it was found "
            "in, or discover it again",
            circuit_weights=circuit.weight_hash,
            model_weights=hosted.info.weight_hash,
        )
    for each in circuit.sets:
        if each.name == NEURONS:
            continue
        loaded = require_set(hosted, each.name)
        require_same_set(each, loaded.admitted.content_hash)
        missing = {node.layer for node in circuit.nodes if node.replacement == each.name} - set(
            loaded.covered
        )
        if missing:
            raise ReplacementNotFoundError(
                f"the loaded set {each.name!r} does not cover layer {min(missing)} of the circuit: "
                "it is another set; load the one that the circuit was found with",
                replacement=each.name,
            )


def unknown_set_caveats(circuit: Circuit) -> list[str]:
    """Say so if nothing tells the set that a circuit was found with from another of the same name."""
    if not circuit.set_is_unknown:
        return []
    unknown = [each.name for each in circuit.sets if each.name != NEURONS and not each.content_hash]
    return [
        f"The circuit was stored before circuits recorded the content of their set: that "
        f"{', '.join(map(repr, unknown))} as it is loaded now is the set that it was found with is assumed, "
        "not checked. Discover it again to be sure."
    ]


def opened_layers(hosted: HostedModel, circuit: Circuit) -> tuple[LayerRef, ...]:
    """Return the layers whose features the circuit could choose from; those of others are never ablated.

    Circuits that were stored before this was recorded show it by their error nodes, as far as these are MLPs
    as a whole: dictionaries elsewhere count as open in every layer that the set covers.
    """
    if circuit.layers is not None:
        return open_layers(hosted, circuit.set_names, circuit.layers)
    closed = {
        node.layer for node in circuit.nodes if node.kind is NodeKind.ERROR and node.label.startswith("MLP ")
    }
    layers = [
        layer
        for layer in covered_layers(hosted, circuit.replacement)
        if layer not in closed or not _writes_mlp(hosted, circuit.replacement, layer)
    ]
    return layers_of(circuit.replacement, layers)


def _writes_mlp(hosted: HostedModel, name: str, layer: int) -> bool:
    """True if an open layer of the set leaves no MLP output uncovered; dictionaries elsewhere always do."""
    site = Site(kind=SiteKind.MLP_OUT, layer=layer)
    return name == NEURONS or site in layer_info(hosted, name, layer).sites_out


Read = tuple[dict[LayerRef, Tensor], dict[LayerRef, Tensor], dict[LayerRef, Tensor]]


def _neurons(prompt: MaskedPrompt) -> Generator[None, None, Read]:
    operators = prompt.operators
    totals = yield from sweep_gradient(operators, prompt.explained.cotangents(live=True))
    activation = {ref: operators.layers[ref.layer].activation for ref in prompt.layers}
    return (
        activation,
        {ref: torch.ones_like(value, dtype=torch.bool) for ref, value in activation.items()},
        {ref: totals.neurons[ref.layer] for ref in prompt.layers},
    )


def _features(prompt: MaskedPrompt, found: ActiveFeatures) -> Generator[None, None, Read]:
    what = prompt.explained.cotangents(live=True)
    effects = yield from effects_on(prompt.hosted, prompt.operators, found, what)
    activation, active, effect = {}, {}, {}
    for layer in (one for one in found.layers if one.ref in prompt.layers):
        ref, end = layer.ref, layer.end
        shape = (len(prompt.ids), layer.info.d_sae)
        place = (layer.position.cpu(), layer.index.cpu())
        activation[ref], effect[ref] = torch.zeros(shape), torch.zeros(shape)
        active[ref] = torch.zeros(shape, dtype=torch.bool)
        activation[ref][place] = found.activation[layer.start : end]
        effect[ref][place] = effects.features[layer.start : end]
        active[ref][place] = True
    return activation, active, effect


# --- what ablated activations become ------------------------------------------------------------------


def substitutes(
    prompt: MaskedPrompt, kind: Substitute, options: VerificationOptions
) -> Generator[None, None, Substitutes | None]:
    """Work out what ablated activations become; one batch of windows, or one layer, a quantum.

    Raises:
        InvalidRequestError: If the counterfactual is not another prompt of the same length.
    """
    if kind is Substitute.ZERO:
        return None
    if kind is Substitute.MEAN:
        return (yield from _means(prompt))
    hosted, ids = prompt.hosted, counterfactual_ids(prompt, options)
    operators = capture(hosted.model, hosted.architecture, ids)
    yield None
    found = {}
    for ref in prompt.layers:
        found[ref] = _read(prompt, ref, operators)
        yield None
    return found


def counterfactual_ids(prompt: MaskedPrompt, options: VerificationOptions) -> list[int]:
    """Return its tokens.

    Raises:
        InvalidRequestError: If it is not another prompt of the same length.
    """
    ids = list(prompt.hosted.encode(options.counterfactual or ""))
    options.check_counterfactual(ids, prompt.ids)
    return ids


def _read(prompt: MaskedPrompt, ref: LayerRef, operators: FrozenOperators) -> Tensor:
    if ref.replacement == NEURONS:
        return operators.layers[ref.layer].activation
    return _encoded(prompt, ref, clean_value(operators, prompt.site_in(ref)))


def _encoded(prompt: MaskedPrompt, ref: LayerRef, x: Tensor) -> Tensor:
    with opened(prompt.hosted, ref.replacement, [ref.layer]) as resident, torch.inference_mode():
        return resident[ref.layer].encode(x.to(torch.promote_types(x.dtype, torch.float32))).activations


def _means(prompt: MaskedPrompt) -> Generator[None, None, Substitutes]:
    """Average over positions >= 1 of every window of the built-in text, float32 `(width,)` by layer."""
    hosted, retain = prompt.hosted, retain_text(prompt.hosted)
    sites = {ref: prompt.site_in(ref) for ref in prompt.layers}
    sums = {ref: torch.zeros(prompt.width(ref), dtype=torch.float64) for ref in prompt.layers}
    count = 0
    for output in plain_runs(hosted, retain, sorted(set(sites.values()))):
        yield None
        for values in output.values:
            count += len(next(iter(values.values()))) - 1
            for ref, site in sites.items():
                x = values[site][1:]
                read = x if ref.replacement == NEURONS else _encoded(prompt, ref, x)
                sums[ref] += read.double().sum(0).cpu()
            yield None
    device = prompt.operators.device
    return {ref: (total / count).float().to(device) for ref, total in sums.items()}


def ablation_words(prompt: MaskedPrompt, kind: Substitute) -> str:
    """Say which ablation, positions, freezes and error term."""
    becomes = {
        Substitute.ZERO: "set to zero",
        Substitute.MEAN: "set to their mean over positions >= 1 of the built-in text",
        Substitute.RESAMPLE: "set to their value at the same position of the counterfactual prompt",
    }[kind]
    error = (
        "neurons have no error term"
        if prompt.is_of_neurons
        else {
            ErrorTerm.LIVE: "error term live: the true output moves by (f' - f) W_dec",
            ErrorTerm.FROZEN: "error term frozen at the clean run's; position 0 keeps its true output",
            ErrorTerm.DROP: "error term dropped, also where nothing is ablated; position 0 keeps its output",
        }[prompt.error_term]
    )
    return (
        f"{becomes}, each at its own position, positions >= 1 only; attention patterns, norms and everything "
        f"above live, nothing frozen; {error}"
    )

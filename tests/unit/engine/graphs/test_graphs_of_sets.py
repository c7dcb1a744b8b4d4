"""Graphs over several sets: attention and MLPs of one layer, the stream, neurons in the gaps."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from tests.resident_sets import reside, resident_set, sae
from tests.unit.engine.graphs.test_laws_of_sets import (
    EDGES,
    IDS,
    SUMS,
    check_row,
    oracle_of,
    some_cells,
    swept,
    writes_of,
)
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuit_edges import ExplainEdges
from trephine.domain.circuits import Circuit, DiscoverCircuit, GraphSet, NodeKind
from trephine.domain.errors import InvalidRequestError, LayerOutOfRangeError, UnsupportedOptionError
from trephine.domain.sites import NEURONS, LayerRef, Site, SiteKind
from trephine.domain.targets import FeatureValue
from trephine.domain.verification import Substitute, VerificationOptions, VerifyCircuit
from trephine.engine.attribution.operators import capture
from trephine.engine.attribution.places import clean_value
from trephine.engine.attribution.readouts import logit_readout
from trephine.engine.attribution.totals import sweep_gradient
from trephine.engine.graphs.actives import activate
from trephine.engine.graphs.discover import Question, discover_circuit
from trephine.engine.graphs.effects import effects_on
from trephine.engine.graphs.hierarchical import through_features
from trephine.engine.graphs.open_layers import open_layers
from trephine.engine.graphs.sweeping import sweep_features
from trephine.engine.graphs.target_kinds import explained
from trephine.engine.graphs.targets import logit_targets
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.replacements.sets import opened
from trephine.engine.tracing.edges import explain_edges
from trephine.engine.verification.paths import graph_of
from trephine.engine.verification.verify import verify_on

PROMPT = "When Mary went to the store John gave a drink to"
CHOICE = LogitTarget(token=" Mary", against=" John")
TRANSCODERS, ATTENTION, STREAM = "set", "attention", "stream"
MIXTURES = {
    "attention": (TRANSCODERS, ATTENTION),
    "stream": (TRANSCODERS, ATTENTION, STREAM),
    "neurons": (TRANSCODERS, ATTENTION, NEURONS),
    "parallel": (TRANSCODERS, STREAM, NEURONS),
}
CASES = [
    (family, mixture)
    for family in FAMILIES
    for mixture in MIXTURES
    if family != "gpt_neox" or mixture == "parallel"  # no law for attention's output in parallel blocks
]


@pytest.fixture(autouse=True)
def _inference():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def hosting(family: str, mixture: str, dtype: torch.dtype = torch.float32) -> Any:
    """A tiny model with every set of a mixture; where neurons fill, the middle MLP alone has a transcoder."""
    hosted, sets = tiny_hosted(family, dtype=dtype), MIXTURES[mixture]
    resident_set(hosted, "skip", layers=(1,) if NEURONS in sets else None, name=TRANSCODERS)
    if ATTENTION in sets:
        resident_set(hosted, "attn_out", name=ATTENTION)
    if STREAM in sets:
        reside(hosted, [sae(hosted, Site(kind=SiteKind.RESID_POST, layer=1))], STREAM)
    return hosted


def prepared(family: str, mixture: str, dtype: torch.dtype = torch.float32) -> Any:
    """The model, its clean pass, and the active features of all sets."""
    hosted = hosting(family, mixture, dtype)
    operators = capture(hosted.model, hosted.architecture, IDS)
    layers = open_layers(hosted, MIXTURES[mixture])
    return hosted, operators, finish(activate(hosted, operators, layers, keep_first=True))


def found(family: str, mixture: str, **changes: Any) -> tuple[Any, Circuit]:
    """A circuit over the sets of a mixture."""
    hosted, (first, *others) = hosting(family, mixture), MIXTURES[mixture]
    asked = {"target": CHOICE, "max_feature_nodes": 120, "verify_nodes": 20, **changes}
    command = DiscoverCircuit(prompt=PROMPT, replacement=first, beside=tuple(others), **asked)
    return hosted, finish(discover_circuit(hosted, command))


@pytest.mark.parametrize(("family", "mixture"), CASES)
def test_every_site_is_its_features_constants_and_error(family, mixture):
    """Law 2: wherever anything writes, features, constants, skip path and error are the model's own."""
    hosted, operators, active = prepared(family, mixture)
    assert {layer.ref.replacement for layer in active.layers} == set(MIXTURES[mixture])
    for site in active.error_sites:
        parts = active.errors[site] + active.constants[site]
        for layer in active.writers(site):
            with opened(hosted, layer.ref.replacement, [layer.ref.layer]) as resident:
                writer = resident[layer.ref.layer]
            decoders = writer.decoders(layer.index.tolist(), site)
            parts = parts.index_add(0, layer.position, decoders * layer.written[:, None])
            matrix = writer.skip_matrix()
            if matrix is not None:
                parts = parts + clean_value(operators, layer.info.site_in) @ matrix.T
        torch.testing.assert_close(parts, clean_value(operators, site), rtol=0, atol=1e-5)
    for layer in active.layers:
        if layer.ref.replacement == NEURONS:  # they reconstruct their MLP: nothing is left
            assert float(active.errors[layer.info.sites_out[0]].abs().max()) < 1e-5


@pytest.mark.parametrize(("family", "mixture"), CASES)
def test_rows_sum_to_what_they_explain(family, mixture):
    """Law 3, for features of every set, neurons among them, and for logits."""
    hosted, operators, active = prepared(family, mixture)
    explained_sets = set()
    for own, targets, sums in swept(hosted, operators, active, some_cells(active, 6)):
        scale = sums.mass + sums.bias.abs()
        assert ((sums.total - targets.total).abs() / scale).max() < SUMS
        explained_sets |= {feature.replacement for feature in active.refs(own)}
    assert explained_sets == set(MIXTURES[mixture])
    targets = logit_targets(operators, [logit_readout(hosted, 44, 9)])
    sums = finish(sweep_features(hosted, operators, active, targets))
    assert ((sums.total - targets.total).abs() / sums.mass).max() < SUMS


PRECISE = [(*case, torch.float32) for case in CASES] + [
    ("gpt2", mixture, torch.float64) for mixture in MIXTURES
]


@pytest.mark.parametrize(("family", "mixture", "dtype"), PRECISE)
def test_edges_are_interventions(family, mixture, dtype):
    """Law 4: edges out of features of every set, into those of all but neurons, which are estimates."""
    hosted, operators, active = prepared(family, mixture, dtype)
    oracle, checked, sources = oracle_of(hosted, active), 0, set()
    sampled = some_cells(active, 5, seed=3)
    exact = [n for n, feature in enumerate(active.refs(sampled)) if feature.replacement != NEURONS]
    for own, targets, sums in swept(hosted, operators, active, sampled[exact]):
        for number, cell in enumerate(own.tolist()):
            row = (hosted, operators, active, oracle, targets, sums, number, cell)
            checked += check_row(*row, EDGES[dtype])
            sources |= {feature.replacement for feature in active.refs(sums.features[number].nonzero()[:, 0])}
    readout = logit_readout(hosted, 44, 9)
    row = finish(sweep_features(hosted, operators, active, logit_targets(operators, [readout]))).features[0]
    cells = row.nonzero().flatten()
    named = active.refs(cells)
    sources |= {feature.replacement for feature in named}
    cells = [
        cell
        for name in MIXTURES[mixture]
        for cell in [c for c, each in zip(cells.tolist(), named, strict=True) if each.replacement == name][:6]
    ]
    moves = [[(at, place, -v) for at, place, v in writes_of(hosted, active, cell)] for cell in cells]
    direction = readout.direction.to(row.dtype)
    removed = (oracle.read([()], None)[:, -1] - oracle.read(moves, None)[:, -1]) @ direction
    assert (removed - row[cells]).abs().max() <= EDGES[dtype] * row.abs().max()
    assert checked >= 60
    assert sources == set(MIXTURES[mixture])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_attention_feeds_the_mlp_of_its_own_layer(family):
    """Within a block, features of attention's output enter those of the MLP, and not the other way round."""
    hosted, operators, active = prepared(family, "attention")
    for layer in range(3):
        upper, lower = (
            active.layer_of(LayerRef(replacement=name, layer=layer)) for name in (TRANSCODERS, ATTENTION)
        )
        assert active.layers.index(lower) < active.layers.index(upper)
        for reader, writer, feeds in ((upper, lower, True), (lower, upper, False)):
            late = torch.arange(reader.start, reader.end)[reader.position == len(IDS) - 1]
            [(_, _, sums)] = swept(hosted, operators, active, late[:3])
            assert bool(sums.features[:, writer.start : writer.end].any()) == feeds


@pytest.mark.parametrize(
    ("family", "mixture"), [("llama", "neurons"), ("gemma2", "neurons"), ("gpt_neox", "parallel")]
)
def test_effects_are_those_of_the_sets_alone(family, mixture):
    """The real model's gradient freezes nothing: what stands beside a feature does not change its effect."""
    hosted = hosting(family, mixture)
    operators = capture(hosted.model, hosted.architecture, hosted.encode(PROMPT))
    command = DiscoverCircuit(prompt=PROMPT, target=CHOICE)
    what = explained(hosted, operators, Question(command=command, ids=hosted.encode(PROMPT)))
    cotangents = what.cotangents(live=True)
    together = finish(activate(hosted, operators, open_layers(hosted, MIXTURES[mixture])))
    effects = finish(effects_on(hosted, operators, together, cotangents)).features
    neurons = finish(sweep_gradient(operators, cotangents)).neurons
    for name in MIXTURES[mixture]:
        if name == NEURONS:
            continue
        alone = finish(activate(hosted, operators, open_layers(hosted, [name])))
        expected = finish(effects_on(hosted, operators, alone, cotangents)).features
        own = torch.cat([effects[x.start : x.end] for x in together.layers if x.ref.replacement == name])
        torch.testing.assert_close(own, expected, rtol=0, atol=0)
    seen = 0
    for layer in together.layers:
        if layer.ref.replacement == NEURONS:
            expected = neurons[layer.ref.layer][layer.position, layer.index]
            torch.testing.assert_close(effects[layer.start : layer.end], expected, rtol=1e-4, atol=1e-7)
            seen += layer.count
    assert seen > 100


@pytest.mark.parametrize(("family", "mixture"), CASES)
def test_leaves_and_what_was_stopped_are_the_whole(family, mixture):
    """The law of hierarchical attribution holds where survivors belong to several sets."""
    hosted = hosting(family, mixture)
    ids = hosted.encode(PROMPT)
    operators = capture(hosted.model, hosted.architecture, ids)
    active = finish(activate(hosted, operators, open_layers(hosted, MIXTURES[mixture])))
    what = explained(
        hosted, operators, Question(command=DiscoverCircuit(prompt=PROMPT, target=CHOICE), ids=ids)
    )
    whole = sum(t.about.share * part.total for t in what.targets for part in t.parts)
    for threshold in (0.0, 0.002):
        passed = finish(through_features(hosted, operators, active, what, threshold))
        mass = abs(passed.tokens) + abs(passed.errors) + abs(passed.constants) + passed.stopped_mass
        assert abs(passed.sum - whole) <= 1e-4 * mass
        assert {feature.replacement for feature in active.refs(passed.cells)} == set(MIXTURES[mixture])


@pytest.mark.parametrize(
    ("family", "mixture"), [("llama", "attention"), ("gpt2", "neurons"), ("gpt_neox", "parallel")]
)
def test_a_circuit_over_sets_says_what_it_spans(family, mixture):
    """Nodes of every set, each with its own; sets, hashes and layers on record; ablations agree."""
    _, circuit = found(family, mixture)
    nodes = [node for node in circuit.nodes if node.kind is NodeKind.FEATURE]
    assert {node.replacement for node in nodes} == set(MIXTURES[mixture])
    assert all(node.label.startswith("neuron ") == (node.replacement == NEURONS) for node in nodes)
    assert circuit.set_names == MIXTURES[mixture]
    assert circuit.sets == tuple(
        GraphSet(name=name, content_hash="" if name == NEURONS else name) for name in MIXTURES[mixture]
    )
    assert not circuit.set_is_unknown
    assert circuit.layers == (0, 1, 2)
    assert circuit.edge_rule == ("relp_half" if NEURONS in MIXTURES[mixture] else "exact")
    assert any("Neurons stand where" in caveat for caveat in circuit.caveats) == (
        NEURONS in circuit.set_names
    )
    assert circuit.quality is not None
    assert circuit.quality.spearman > 0.8


def test_neurons_fill_what_no_set_reconstructs():
    """They are opened in the MLPs that are left, in the layers that are asked for, and nowhere else."""
    hosted = hosting("llama", "neurons")
    layers = open_layers(hosted, (TRANSCODERS, NEURONS))
    assert [(ref.layer, ref.replacement) for ref in layers] == [(0, NEURONS), (1, TRANSCODERS), (2, NEURONS)]
    some = open_layers(hosted, (TRANSCODERS, ATTENTION, NEURONS), (1, 2))
    assert [(ref.layer, ref.replacement) for ref in some] == [
        (1, ATTENTION), (1, TRANSCODERS), (2, ATTENTION), (2, NEURONS),
    ]  # fmt: skip


def test_sets_that_open_nothing_are_named():
    """Neurons beside transcoders of every MLP asked for, and a set of other layers; else nothing is said."""
    hosted = hosting("llama", "neurons")

    def caveats(*beside: str, layers: tuple[int, ...]) -> str:
        asked = DiscoverCircuit(
            prompt=PROMPT, target=CHOICE, replacement=TRANSCODERS, beside=beside, layers=layers,
            max_feature_nodes=20, verify_nodes=0,
        )  # fmt: skip
        return " ".join(finish(discover_circuit(hosted, asked)).caveats)

    covered = caveats(NEURONS, layers=(1,))
    assert "No neuron can be in this graph" in covered
    assert "Neurons stand where" not in covered
    resident_set(hosted, "attn_out", layers=(0,), name=ATTENTION)
    assert f"No feature of {ATTENTION} can be in this graph" in caveats(ATTENTION, layers=(1,))
    whole = caveats(NEURONS, ATTENTION, layers=(0, 1))
    assert "can be in this graph" not in whole
    assert "Neurons stand where" in whole


@pytest.mark.parametrize(
    "target",
    [
        FeatureValue(layer=2, index=5, replacement=ATTENTION),
        FeatureValue(layer=2, index=7, replacement=NEURONS),
    ],
)
def test_a_feature_of_any_set_can_be_the_target(target):
    """Its own set says what is explained: the pre-activation of its encoder, or the neuron's activation."""
    hosted, circuit = found("llama", "neurons", target=target)
    operators = capture(hosted.model, hosted.architecture, [token.id for token in circuit.tokens])
    if target.replacement == NEURONS:
        expected = operators.layers[2].activation[-1, 7]
    else:
        with opened(hosted, ATTENTION, [2]) as resident:
            encoder = resident[2].encoders([5])[0]
        expected = clean_value(operators, Site(kind=SiteKind.ATTN_OUT, layer=2))[-1] @ encoder
    (explained,) = circuit.targets
    assert explained.value == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
    assert explained.replacement == target.replacement
    told = "neuron 2:7" if target.replacement == NEURONS else f"feature {ATTENTION}:2:5"
    assert explained.label == f"{told} at position {len(circuit.tokens) - 1}"
    assert circuit.quality is not None
    assert circuit.quality.spearman > 0.5


@pytest.mark.parametrize("mixture", ["stream", "neurons"])
def test_edges_between_sets_are_explained(mixture):
    """Heads, paths and the direct part of edges within and between sets add up to what is stored."""
    hosted, circuit = found("llama", mixture)
    graph = graph_of(circuit)
    stored = list(zip(graph.source.tolist(), graph.target.tolist(), strict=True))
    names = [(circuit.nodes[s].replacement, circuit.nodes[t].replacement) for s, t in stored]
    wanted = {pair: edge for edge, pair in zip(stored, names, strict=True)}
    assert len({pair for pair in wanted if all(pair)}) >= 4
    command = ExplainEdges(circuit=circuit, edges=tuple(wanted.values()), heads=200)
    for one in finish(explain_edges(Session(hosted=hosted), command)).edges:
        assert one.stored is not None
        assert one.weight == pytest.approx(one.stored, rel=1e-3, abs=1e-5)
        parts = one.direct + sum(head.weight for head in one.heads)
        assert parts == pytest.approx(one.weight, abs=1e-5)


@pytest.mark.parametrize("mixture", ["attention", "neurons"])
def test_a_circuit_over_sets_is_verified(mixture):
    """Every part of a verification, the adversary and a random dictionary per set included."""
    hosted, circuit = found("llama", mixture, verify_nodes=0)
    kept = tuple(n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.FEATURE)[:60]
    options = VerificationOptions(nodes=100, groups=6, depth_nodes=12, adversary_steps=4, bootstrap=100)
    report = finish(verify_on(hosted, VerifyCircuit(circuit=circuit, kept=kept, options=options)))
    assert report.given.replacement == " + ".join(MIXTURES[mixture])
    shown = next(a for a in report.given.agreements if a.ablations == "single nodes of the graph")
    assert shown.spearman.value > 0.8
    assert [each.substitute for each in report.given.faithfulness] == [Substitute.ZERO, Substitute.MEAN]
    assert report.given.worst_case is not None
    assert report.control is not None
    assert "'attention'" in report.control_note
    assert report.control.replacement.count("random-dictionary") == 2


def test_what_cannot_be_spanned_is_refused():
    """Two sets at one site, a set twice, neurons first, a target that is not open: each names its field."""
    hosted = hosting("llama", "attention")
    resident_set(hosted, "relu", name="other")

    def refused(error: type[Exception], field: str, told: str = ".", **asked: Any) -> None:
        with pytest.raises(error, match=told) as raised:
            finish(discover_circuit(hosted, DiscoverCircuit(prompt=PROMPT, **{"target": CHOICE, **asked})))
        assert raised.value.context["field"] == field  # type: ignore[attr-defined]  # a TrephineError

    refused(
        UnsupportedOptionError, "beside", "choose .* `layers`", replacement=TRANSCODERS, beside=("other",)
    )
    refused(InvalidRequestError, "beside", replacement=TRANSCODERS, beside=(TRANSCODERS,))
    refused(InvalidRequestError, "replacement", replacement=NEURONS, beside=(TRANSCODERS,))
    elsewhere = FeatureValue(layer=1, index=3, replacement="other")
    refused(InvalidRequestError, "target.replacement", replacement=TRANSCODERS, target=elsewhere)
    closed = FeatureValue(layer=1, index=3, replacement=NEURONS)
    asked: dict[str, Any] = {"replacement": TRANSCODERS, "beside": (NEURONS,), "target": closed}
    refused(LayerOutOfRangeError, "target.layer", "of neurons the graph opens no layer", **asked)


def test_a_growing_graph_says_whose_its_nodes_are():
    """What is watched says it as what is stored does: two sets may have the same feature of a layer."""
    hosted, (first, *others) = hosting("llama", "neurons"), MIXTURES["neurons"]
    command = DiscoverCircuit(
        prompt=PROMPT, target=CHOICE, replacement=first, beside=tuple(others), max_feature_nodes=150
    )
    work = discover_circuit(hosted, command)
    seen = set()
    with suppress(StopIteration):
        while True:
            progress = next(work)
            if progress is not None and progress.partial is not None:
                seen |= {(node.replacement, node.layer) for node in progress.partial.nodes}
    assert {name for name, _ in seen} == set(MIXTURES["neurons"])
    assert {layer for name, layer in seen if name == TRANSCODERS} == {1}
    assert {layer for name, layer in seen if name == NEURONS} <= {0, 2}

"""Attention scores above a dictionary on the stream: attention reads what the dictionary writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import NAME, reside, resident_set, sae
from tests.set_oracle import SetOracle
from tests.unit.engine.graphs.test_laws_of_sets import EDGES, IDS, SUMS, oracle_of, sampled
from trephine.domain.circuit_edges import ExplainEdges
from trephine.domain.circuits import DiscoverCircuit, NodeKind
from trephine.domain.sites import NEURONS, Site, SiteKind
from trephine.domain.targets import AttentionScore
from trephine.engine.attribution.attention_scores import head_scores
from trephine.engine.attribution.backward import DenseCollector, sweep
from trephine.engine.attribution.operators import capture
from trephine.engine.attribution.places import place_of
from trephine.engine.attribution.target_rows import parts_from_the_top
from trephine.engine.attribution.targets import neuron_targets_of
from trephine.engine.attribution.totals import sweep_gradient, sweep_paths
from trephine.engine.graphs.actives import activate
from trephine.engine.graphs.discover import Question, discover_circuit
from trephine.engine.graphs.effects import effects_on
from trephine.engine.graphs.hierarchical import through_features
from trephine.engine.graphs.hierarchical_neurons import through_neurons
from trephine.engine.graphs.open_layers import open_layers
from trephine.engine.graphs.sweeping import segment_of, sweep_features
from trephine.engine.graphs.target_kinds import explained
from trephine.engine.graphs.targets import read_targets
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.tracing.edges import explain_edges

BESIDE = "beside"
QUERY, KEY = 7, 4
PROMPT = "When Mary and John went to the store John gave a drink to"
FAMILIES = ("llama", "gpt2", "gemma2")
DIRECTLY = ((SiteKind.RESID_POST, 1, 2), (SiteKind.RESID_PRE, 2, 2), (SiteKind.EMBED, 0, 0))
"""Where a dictionary stands directly below the block whose score is explained, and the block."""
FARTHER = ((SiteKind.RESID_POST, 0, 2), (SiteKind.RESID_MID, 1, 2), (SiteKind.RESID_PRE, 0, 2))
CASES = [(family, *case) for family in FAMILIES for case in (*DIRECTLY, *FARTHER)]
CASES += [(family, *case) for family in ("qwen3", "gpt_neox") for case in DIRECTLY]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class AboveOracle(SetOracle):
    """Reads sites after what is moved there, as attention reads a stream that a dictionary wrote."""

    def _touch(self, at, rows, wanted, seen, inputs, x):
        super()._touch(at, rows, wanted, seen, inputs, x)
        if at == wanted:
            seen[at] = x.clone()


def wanted_at(block):
    """A score of a block."""
    return AttentionScore(layer=block, head=1, key=KEY)


def hosted_with(family, kind, layer):
    """A tiny model with a dictionary on the stream, and transcoders with skip paths of all layers."""
    hosted = tiny_hosted(family)
    reside(hosted, [sae(hosted, Site(kind=kind, layer=layer))])
    resident_set(hosted, "skip", name=BESIDE)
    return hosted


def prepared(family, kind, layer, block):
    """The model, its clean pass, its active features, and a score that is explained."""
    hosted = hosted_with(family, kind, layer)
    operators = capture(hosted.model, hosted.architecture, IDS)
    active = finish(activate(hosted, operators, open_layers(hosted, (NAME, BESIDE)), keep_first=True))
    return hosted, operators, active, asked(hosted, operators, active, block)


def asked(hosted, operators, active, block):
    """A score of a block, to be explained."""
    command = DiscoverCircuit(
        prompt="", target=wanted_at(block), positions=(QUERY,), replacement=NAME if active else NEURONS
    )
    return explained(hosted, operators, Question(command=command, ids=IDS), active)


def rows_of(hosted, operators, active, what):
    """The targets and sums of both sides, query first."""
    parts = [part for _, part in parts_from_the_top(what)]
    assert len(segment_of(active, torch.tensor([part.place for part in parts])).unique()) == 1
    targets = read_targets(operators, parts)
    return targets, finish(sweep_features(hosted, operators, active, targets))


def sides_of(hosted, operators, active, block):
    """Measures what moves take from each side, `(2, n)`, query first, and the scores, the clean one first."""
    oracle = AboveOracle(hosted, IDS, skips=oracle_of(hosted, active).skips)
    found, stream = head_scores(operators.layers[block], 1), Site(kind=SiteKind.RESID_PRE, layer=block)

    def measure(rows):
        seen = oracle.read([(), *rows], stream).to(operators.dtype)
        at = [torch.full((len(seen),), place) for place in (QUERY, KEY)]
        q = found.queries.project(seen[:, QUERY], at[0]) + found.queries.constant(at[0])
        k = found.keys.project(seen[:, KEY], at[1]) + found.keys.constant(at[1])
        sides = [found.scaling * (q[:1] * k[:1] - one).sum(1) for one in (q * k[:1], q[:1] * k)]
        return torch.stack(sides)[:, 1:], found.scaling * (q * k).sum(1)

    return measure


@pytest.mark.parametrize(("family", "kind", "layer", "block"), CASES)
def test_either_side_of_a_score_is_half_of_what_interventions_do(family, kind, layer, block):
    """Laws 3 and 4: rows sum to the score; an edge is half of what its side loses without the source.

    Features and errors of the dictionary have edges, and what is below it has none.
    """
    with torch.inference_mode():
        hosted, operators, active, what = prepared(family, kind, layer, block)
        targets, sums = rows_of(hosted, operators, active, what)
        assert ((sums.total - targets.total).abs() / (sums.mass + sums.bias.abs())).max() < SUMS
        assert float(targets.total.sum()) == pytest.approx(what.baseline, abs=1e-4)
        measure = sides_of(hosted, operators, active, block)
        for number in range(2):
            edges, moves = sampled(hosted, operators, active, sums, number)
            lost, scores = measure([[(s, p, -v) for s, p, v in move] for move in moves])
            assert float(scores[0]) == pytest.approx(what.baseline, abs=1e-4)
            expected = torch.tensor(edges)
            largest = max(float(sums.features[number].abs().max()), float(expected.abs().max()))
            allowed = EDGES[torch.float32] * largest + 1e-6 * float(scores[0].abs())
            assert (lost[number] / 2 - expected).abs().max() <= allowed
        (own,) = (one for one in active.layers if one.ref.replacement == NAME)
        above = active.places(torch.arange(active.count)) >= place_of(own.info.site_in)
        assert float(sums.features[:, own.start : own.end].abs().max()) > 0
        assert float(sums.errors[:, active.error_sites.index(own.info.site_in)].abs().max()) > 0
        assert not sums.features[:, ~above].any()
        assert not sums.tokens.any()


@pytest.mark.parametrize(("family", "kind", "layer", "block"), CASES)
def test_leaves_of_a_score_are_the_whole(family, kind, layer, block):
    """Hierarchical attribution: sums hold, and what arrives first at a dictionary is its features' edges."""
    with torch.inference_mode():
        hosted, operators, active, what = prepared(family, kind, layer, block)
        _, sums = rows_of(hosted, operators, active, what)
    for threshold in (0.0, 0.01, 1e9):
        found = finish(through_features(hosted, operators, active, what, threshold))
        mass = abs(found.tokens) + abs(found.errors) + abs(found.constants) + found.stopped_mass
        assert abs(found.sum - what.baseline) <= 1e-4 * mass
        if (kind, layer, block) in DIRECTLY and not threshold:
            (own,) = (one for one in active.layers if one.ref.replacement == NAME)
            chosen = (found.cells >= own.start) & (found.cells < own.end)
            expected = sums.features.sum(0)[found.cells[chosen]].float()
            assert chosen.any()
            torch.testing.assert_close(found.attribution[chosen], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("family", "kind", "layer", "block"), CASES)
def test_edges_into_a_score_come_apart(family, kind, layer, block):
    """Discovery stores edges from the dictionary's features and errors; explained, they weigh the same."""
    hosted = hosted_with(family, kind, layer)
    command = DiscoverCircuit(
        prompt=PROMPT,
        target=wanted_at(block),
        positions=(QUERY,),
        replacement=NAME,
        beside=(BESIDE,),
        max_feature_nodes=60,
        verify_nodes=0,
    )
    circuit = finish(discover_circuit(hosted, command))
    (top,) = (n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.LOGIT)
    columns = (circuit.edges.source, circuit.edges.target, circuit.edges.weight)
    stored = zip(*(np.frombuffer(column.data, column.dtype).tolist() for column in columns), strict=True)
    into = {source: weight for source, target, weight in stored if target == top}
    own = [n for n in into if circuit.nodes[n].replacement == NAME]
    assert any(circuit.nodes[n].kind is NodeKind.FEATURE and circuit.nodes[n].effect for n in own)
    assert any(circuit.nodes[n].kind is NodeKind.ERROR for n in into)
    heaviest = sorted(into, key=lambda source: -abs(into[source]))[:40]
    pairs = tuple((source, top) for source in heaviest)
    asked_for = ExplainEdges(circuit=circuit, edges=pairs, paths=8, heads=200)
    largest = max(map(abs, into.values()))
    for one in finish(explain_edges(Session(hosted=hosted), asked_for)).edges:
        assert abs(one.weight - into[one.source]) <= 1e-4 * largest
        assert one.stored == pytest.approx(into[one.source])
        listed = sum(path.weight for path in one.paths)
        assert listed + one.paths_remainder == pytest.approx(one.weight, abs=1e-6 * largest)
        assert abs(one.direct + sum(head.weight for head in one.heads) - one.weight) <= 1e-4 * largest
        if (kind, layer, block) in DIRECTLY:
            assert one.direct == pytest.approx(one.weight, abs=1e-6 * largest)
            assert not one.heads


@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_scores_over_neurons_are_read_before_their_block(family, block):
    """No dictionary stands on the stream: rows, paths and hierarchical leaves of every block's scores."""
    hosted = tiny_hosted(family)
    operators = capture(hosted.model, hosted.architecture, IDS)
    with torch.inference_mode():
        what = asked(hosted, operators, None, block)
        targets = neuron_targets_of(operators, [part for _, part in parts_from_the_top(what)])
        sums = finish(sweep(operators, targets, DenseCollector(operators, len(targets.total))))
        assert ((sums.total - targets.total).abs() / (sums.mass + sums.bias.abs())).max() < SUMS
        assert float(targets.total.sum()) == pytest.approx(what.baseline, abs=1e-4)
        found = finish(through_neurons(operators, what, 0.0))
        mass = abs(found.tokens) + abs(found.errors) + abs(found.constants) + found.stopped_mass
        assert abs(found.sum - what.baseline) <= 1e-4 * mass
        paths = finish(sweep_paths(operators, what.roots()))
        whole = finish(through_neurons(operators, what, 1e-9)).tokens
        assert float(paths.tokens.sum()) == pytest.approx(whole, rel=1e-3, abs=1e-4 * mass)
        reside(hosted, [sae(hosted, Site(kind=SiteKind.MLP_OUT, layer=2))])
        active = finish(activate(hosted, operators, open_layers(hosted, (NAME, NEURONS))))
        live = what.cotangents(live=True)
        effects = finish(effects_on(hosted, operators, active, live))
        totals = finish(sweep_gradient(operators, live))
        for layer in active.layers:
            if layer.ref.replacement == NEURONS:
                expected = totals.neurons[layer.info.layer][layer.position, layer.index]
                assert bool(expected.any()) == (layer.info.layer < block)
                torch.testing.assert_close(
                    effects.features[layer.start : layer.end], expected, rtol=1e-4, atol=1e-6
                )

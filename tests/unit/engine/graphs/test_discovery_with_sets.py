"""Circuits over replacement sets: what is stored is consistent, and what cannot be asked is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import NAME, resident_set
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import DiscoverCircuit, NodeKind
from trephine.domain.errors import LayerOutOfRangeError, ReplacementNotFoundError
from trephine.domain.interventions import Ablate, FeatureTarget, Intervention, Scale, Selector
from trephine.domain.sites import FeatureRef
from trephine.engine.attribution.readouts import logit_readout
from trephine.engine.graphs.discover import discover_circuit
from trephine.engine.models.quanta import finish
from trephine.engine.runs.rows import RowInput, run_rows

PROMPT = "When Mary went to the store John gave a drink to"


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def found(kind, family="llama", **changes: Any):
    """A circuit over a set of some kind."""
    hosted = tiny_hosted(family)
    resident_set(hosted, kind, layers=changes.pop("covered", None))
    command = DiscoverCircuit(
        prompt=PROMPT,
        target=LogitTarget(token=" Mary", against=" John"),
        replacement=NAME,
        **{"max_feature_nodes": 60, "verify_nodes": 0, **changes},
    )
    return hosted, finish(discover_circuit(hosted, command))


def numbers(array):
    return np.frombuffer(array.data, dtype=array.dtype).reshape(array.shape)


@pytest.mark.parametrize("kind", ["jumprelu", "skip", "clt", "resid_post", "attn_out", "mixed"])
def test_rows_of_the_stored_circuit_sum(kind):
    """Kept edges, bias and remainder of every row sum to its total; sources lie below their targets."""
    _, circuit = found(kind)
    edges = circuit.edges
    source, target, weight = (numbers(x) for x in (edges.source, edges.target, edges.weight))
    rows = circuit.rows
    for number, total, bias, remainder in zip(
        *(numbers(x) for x in (rows.target, rows.total, rows.bias, rows.remainder)), strict=True
    ):
        kept = weight[target == number].astype(np.float64).sum()
        assert kept + bias + remainder == pytest.approx(total, abs=1e-4)
    layers = np.array([node.layer for node in circuit.nodes])
    features = np.array([node.kind is NodeKind.FEATURE for node in circuit.nodes])
    inside = features[source] & features[target]
    assert (layers[source][inside] < layers[target][inside]).all()
    assert circuit.edge_rule == "exact"
    assert all(node.replacement == NAME for node in circuit.nodes if node.kind is NodeKind.FEATURE)


def test_effects_are_measured_against_real_ablations():
    """The gradient's estimates rank as real ablations do, and the report says how."""
    _, circuit = found("jumprelu", verify_nodes=40)
    assert circuit.quality is not None
    assert circuit.quality.nodes >= 30
    assert circuit.quality.spearman > 0.8
    assert "error term live" in circuit.quality.how


def test_an_effect_is_what_a_small_change_does():
    """Scaling a feature a little moves the target by that share of the node's effect."""
    hosted, circuit = found("clt")
    strongest = max((n for n in circuit.nodes if n.kind is NodeKind.FEATURE), key=lambda n: abs(n.effect))
    feature = FeatureRef(replacement=NAME, layer=strongest.layer, index=strongest.feature)
    change = Intervention(
        target=FeatureTarget(feature=feature),
        operation=Scale(factor=0.99),
        selector=Selector(positions=(strongest.position,)),
    )
    ids = hosted.encode(PROMPT)
    readout = logit_readout(hosted, hosted.resolve_target(" Mary"), hosted.resolve_target(" John"))
    plain, scaled = run_rows(hosted, [RowInput(ids), RowInput(ids, (change,))]).logits
    moved = float(readout.measure(plain[-1]) - readout.measure(scaled[-1]))
    assert moved == pytest.approx(0.01 * strongest.effect, rel=0.05, abs=1e-5)


def test_partial_coverage_charges_the_rest_as_error():
    """With one layer covered, the other MLPs are error nodes named as such."""
    _, circuit = found("jumprelu", covered=(1,))
    labels = {node.label.split(" at ")[0] for node in circuit.nodes if node.kind is NodeKind.ERROR}
    assert {"MLP 0 (not covered)", "error of mlp_out 1", "MLP 2 (not covered)"} <= labels
    assert circuit.figures.error_share > 0
    scores = circuit.figures.scores
    assert scores is not None
    assert 0 < scores.charged_completeness < scores.completeness < 1


def test_layers_must_be_covered_and_sets_loaded():
    """What the set does not have is refused by name."""
    with pytest.raises(LayerOutOfRangeError, match=r"does not cover layer 0; it has .*Name one of these"):
        found("jumprelu", covered=(1, 2), layers=(0,))
    hosted = tiny_hosted("llama")
    with pytest.raises(ReplacementNotFoundError, match="not loaded"):
        finish(
            discover_circuit(
                hosted, DiscoverCircuit(prompt=PROMPT, target=LogitTarget(token=" Mary"), replacement="no")
            )
        )


def test_an_ablated_node_is_gone():
    """The ablation that verifies a node leaves nothing of the feature at its position."""
    hosted, circuit = found("jumprelu")
    node = next(n for n in circuit.nodes if n.kind is NodeKind.FEATURE and n.position > 0)
    feature = FeatureRef(replacement=NAME, layer=node.layer, index=node.feature)
    change = Intervention(
        target=FeatureTarget(feature=feature),
        operation=Ablate(),
        selector=Selector(positions=(node.position,)),
    )
    (applied,) = run_rows(hosted, [RowInput(hosted.encode(PROMPT), (change,))]).applied[0]
    assert applied.positions == 1
    assert applied.max_change == pytest.approx(node.activation, rel=1e-4)


def test_more_nodes_than_there_are_features_are_all_of_them():
    """However many are asked for, no edge is lost to rows that never come."""
    (_, every), (_, more) = (found("relu", max_feature_nodes=n) for n in (5000, 2 * 10**9))
    assert sum(node.kind is NodeKind.FEATURE for node in every.nodes) > 300
    assert (more.nodes, more.edges, more.rows) == (every.nodes, every.edges, every.rows)

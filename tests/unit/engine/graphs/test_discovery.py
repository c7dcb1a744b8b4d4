"""DiscoverCircuit on tiny models: what the circuit promises, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from trephine.app.circuits.pruning import numbers
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import DiscoverCircuit, NodeKind
from trephine.domain.commands import Progress
from trephine.domain.errors import (
    EmptyPromptError,
    InvalidRequestError,
    LayerOutOfRangeError,
    ModelNotReadyError,
    ReplacementNotFoundError,
    TargetNotOneTokenError,
)
from trephine.engine.attribution.readouts import baseline, logit_readout
from trephine.engine.graphs.discover import HANDLERS, discover_circuit
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session

COMMAND = DiscoverCircuit(
    prompt="When Mary and John went to the store John gave a drink to",
    target=LogitTarget(token=" Mary", against=" John"),
    max_feature_nodes=40,
    verify_nodes=20,
)


@pytest.fixture(autouse=True)
def _inference():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def discover(family="llama", **changes: object):
    """Run a changed command on a tiny model."""
    return finish(discover_circuit(tiny_hosted(family), dataclasses.replace(COMMAND, **changes)))


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_edges_bias_and_remainder_sum_to_every_target(family):
    """Law 3 as shown: each row's parts sum to its total, the activation or the logit difference."""
    circuit = discover(family)
    entering = np.bincount(
        numbers(circuit.edges.target),
        numbers(circuit.edges.weight),
        minlength=len(circuit.nodes),
    )
    rows = circuit.rows
    target, total = numbers(rows.target), numbers(rows.total)
    np.testing.assert_allclose(
        entering[target] + numbers(rows.bias) + numbers(rows.remainder),
        total,
        rtol=1e-4,
        atol=1e-5,
    )
    for row, value in zip(target, total, strict=True):
        node = circuit.nodes[row]
        shown = node.activation if node.kind is NodeKind.FEATURE else circuit.figures.baseline
        assert value == pytest.approx(shown, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_nodes_come_in_order_and_edges_point_up(family):
    """Features by (layer, position, index), errors, tokens, the logit; no edge leaves a later position."""
    circuit = discover(family, layers=(0, 2))
    ranks = [list(NodeKind).index(node.kind) for node in circuit.nodes]
    assert ranks == sorted(ranks)
    features = [(n.layer, n.position, n.feature) for n in circuit.nodes if n.kind is NodeKind.FEATURE]
    assert features == sorted(features)
    assert len(features) == 40
    assert {layer for layer, _, _ in features} <= {0, 2}
    assert {n.layer for n in circuit.nodes if n.kind is NodeKind.ERROR} == {1}
    assert sum(n.kind is NodeKind.TOKEN for n in circuit.nodes) == len(circuit.tokens)
    assert circuit.nodes[-1].kind is NodeKind.LOGIT
    assert (np.diff(numbers(circuit.edges.target)) >= 0).all()
    for source, target in zip(numbers(circuit.edges.source), numbers(circuit.edges.target), strict=True):
        below, above = circuit.nodes[source], circuit.nodes[target]
        assert below.layer < above.layer
        assert below.position <= above.position
    assert 0 < circuit.figures.error_share < 1
    assert any("opaque" in caveat for caveat in circuit.caveats)


def test_figures_and_quality_are_filled():
    """The baseline is the model's own; shares are shares; the estimates were measured with intervals."""
    hosted = tiny_hosted("llama")
    circuit = finish(discover_circuit(hosted, COMMAND))
    ids = hosted.encode(COMMAND.prompt)
    readout = logit_readout(hosted, hosted.resolve_target(" Mary"), hosted.resolve_target(" John"))
    assert circuit.figures.baseline == pytest.approx(baseline(hosted, ids, readout), abs=1e-5)
    assert 0 < circuit.figures.selected_share <= 1
    assert circuit.figures.scores is None  # both are vacuous for neurons
    assert circuit.figures.error_share == 0
    assert circuit.figures.selected_features == 40
    assert circuit.figures.active_features == 3 * len(ids) * hosted.architecture.d_mlp
    quality = circuit.quality
    assert quality is not None
    assert quality.nodes == len(quality.predicted) == len(quality.measured) == 20
    assert quality.slope_low <= quality.slope <= quality.slope_high
    assert quality.spearman_low <= quality.spearman <= quality.spearman_high
    assert "position 0" in quality.how
    assert quality.edge_slope_low <= quality.edge_slope <= quality.edge_slope_high
    assert quality.edge_spearman_low <= quality.edge_spearman <= quality.edge_spearman_high
    assert "relp_half" in quality.how
    assert quality.spearman > 0.9


def test_measured_ablations_are_those_of_the_model():
    """The figures compared with are what the unhooked model says with one weight column removed."""
    hosted = tiny_hosted("gpt2", n_layers=1)
    circuit = finish(
        discover_circuit(hosted, dataclasses.replace(COMMAND, max_feature_nodes=3, verify_nodes=3))
    )
    last = len(circuit.tokens) - 1
    ids = torch.tensor([hosted.encode(COMMAND.prompt)])
    readout = logit_readout(hosted, *(token.id for token in circuit.choice()))
    clean = readout.measure(hosted.model(input_ids=ids).logits[0, -1])
    expected = []
    for node in circuit.nodes[:3]:
        assert node.position == last
        weight = hosted.architecture.blocks[0].mlp.W_down
        kept = weight[:, node.feature].clone()
        weight[:, node.feature] = 0
        expected.append(float(clean - readout.measure(hosted.model(input_ids=ids).logits[0, -1])))
        weight[:, node.feature] = kept
    assert sorted(circuit.quality.measured) == pytest.approx(sorted(expected), abs=1e-4)


def test_each_row_keeps_its_largest_edges_up_to_the_caps():
    """max_edges_per_row and edge_mass both bind, and drop the smallest edges first."""
    full = discover(edge_mass=1.0)
    capped = discover(edge_mass=1.0, max_edges_per_row=5)
    assert np.bincount(numbers(capped.edges.target)).max() == 5
    logit = len(full.nodes) - 1
    largest = np.sort(np.abs(numbers(full.edges.weight)[numbers(full.edges.target) == logit]))[::-1][:5]
    kept = np.sort(np.abs(numbers(capped.edges.weight)[numbers(capped.edges.target) == logit]))[::-1]
    np.testing.assert_array_equal(kept, largest)
    assert len(numbers(discover(edge_mass=0.05).edges.weight)) < len(numbers(full.edges.weight))


def test_the_same_request_gives_the_same_circuit():
    """Law 9 for circuits: same seed, same nodes, edges and quality."""
    first, second = discover(), discover()
    assert first.nodes == second.nodes
    assert first.quality == second.quality
    np.testing.assert_array_equal(numbers(first.edges.weight), numbers(second.edges.weight))


def test_work_is_cut_into_quanta_and_leaves_no_hook():
    """Abandoning a discovery after any quantum leaves the model as it was; many quanta lead to the end."""
    hosted = tiny_hosted("llama")

    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hosted.model.modules())

    before = hooks()
    quanta = 0
    work = discover_circuit(hosted, COMMAND)
    for event in work:
        quanta += 1
        assert hooks() == before
        assert event is None or isinstance(event, Progress)
    assert quanta > 3 * hosted.architecture.n_layers
    abandoned = discover_circuit(hosted, COMMAND)
    next(abandoned)
    abandoned.close()
    assert hooks() == before


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"prompt": ""}, EmptyPromptError, "no token"),
        ({"prompt": " Mary"}, InvalidRequestError, "two tokens"),
        ({"target": LogitTarget(token=" Maryland")}, TargetNotOneTokenError, "exactly one token"),
        ({"target": LogitTarget(token=" Mary", against=" Mary")}, InvalidRequestError, "same token"),
        ({"layers": (0, 3)}, LayerOutOfRangeError, "layers 0 to 2"),
        ({"layers": ()}, InvalidRequestError, "leave it out"),
        ({"replacement": "transcoders"}, ReplacementNotFoundError, "not loaded"),
        ({"max_edges_per_row": 0}, InvalidRequestError, "at least 1"),
        ({"verify_nodes": -1}, InvalidRequestError, "0 skips"),
    ],
)
def test_bad_requests_are_refused_by_name(changes, error, says):
    """Each refusal is typed and says what to do."""
    with pytest.raises(error, match=says):
        discover(**changes)


def test_without_a_model_the_handler_refuses():
    """The registered handler needs a loaded model."""
    with pytest.raises(ModelNotReadyError):
        finish(HANDLERS[DiscoverCircuit](Session(), COMMAND))


def test_verification_can_be_skipped():
    """verify_nodes = 0 leaves the quality out, and the caveats say so."""
    circuit = discover(verify_nodes=0)
    assert circuit.quality is None
    assert any("Neither was measured" in caveat for caveat in circuit.caveats)

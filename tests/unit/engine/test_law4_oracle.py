"""Law 4: an edge is minus the change of its target when its source is removed in the frozen network."""

from __future__ import annotations

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from tests.laws import NEURON, TOKEN, measure_edges, sample_sources
from tests.oracles import FrozenOracle
from trephine.engine.attribution.backward import DenseCollector, sweep
from trephine.engine.attribution.operators import capture
from trephine.engine.attribution.readouts import half_rule, logit_readout, logit_target, neuron_targets
from trephine.engine.models.quanta import finish

IDS = [5, 17, 44, 9, 9, 301, 23, 120, 77]
LIMIT = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Of the row's largest edge (DESIGN 7, law 4)."""


@pytest.fixture(autouse=True)
def _inference():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def attribute(operators, targets):
    """Every contribution to some targets, dense."""
    collector = DenseCollector(operators, len(targets.total))
    return collector.scores, finish(sweep(operators, targets, collector))


def targets_of(hosted, operators):
    """The logit difference, and g and u of neurons at several layers and positions."""
    yield logit_target(operators, logit_readout(hosted, 30, 12))
    yield logit_target(operators, logit_readout(hosted, 30))
    cells = torch.tensor([(2, 8, 3), (2, 0, 11), (1, 5, 40), (1, 8, 7)])
    for rule in ("gate", "read") if hosted.architecture.blocks[0].mlp.gated else ("read",):
        yield neuron_targets(operators, *cells.T, rule)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layers", [None, (0,)])
@pytest.mark.parametrize("family", FAMILIES)
def test_edges_match_the_oracle(family, layers, dtype):
    """At least 200 edges, stratified, equal what removing and adding their sources does."""
    hosted = tiny_hosted(family, dtype=dtype)
    operators = capture(hosted.model, hosted.architecture, IDS, layers)
    oracle = FrozenOracle(hosted.model, hosted.architecture, IDS)
    checked, kinds, at_start = 0, set(), 0
    for targets in targets_of(hosted, operators):
        scores, sums = attribute(operators, targets)
        for row in range(len(targets.total)):
            layer, position = int(targets.layer[row]), int(targets.position[row])
            sources = sample_sources(
                scores[row], sums.errors[row], sums.tokens[row], layer, per_stratum=3, seed=row
            )
            direction = targets.direction[row]
            edges = torch.tensor([s.edge for s in sources], dtype=dtype)
            largest = max(scores[row].abs().max(), sums.tokens[row].abs().max(), sums.errors[row].abs().max())
            for measured in measure_edges(
                oracle, hosted.architecture, sources, layer=layer, position=position, direction=direction
            ):
                assert (edges - measured).abs().max() <= LIMIT[dtype] * largest
            checked += len(sources)
            kinds |= {s.kind for s in sources}
            at_start += sum(s.position == 0 and s.kind == NEURON for s in sources)
    assert checked >= 200
    assert kinds >= {NEURON, TOKEN}
    assert ("error" in kinds) == (layers is not None)
    assert at_start > 0


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_the_shown_edge_is_the_half_rule_of_both_readouts(family):
    """relp_half equals 1/2 (phi(g)/g) u A^g + 1/2 phi(g) A^u, source by source."""
    hosted = tiny_hosted(family, dtype=torch.float64)
    operators = capture(hosted.model, hosted.architecture, IDS)
    layer, position, index = torch.tensor([(2, 8, 3), (2, 4, 11), (1, 5, 40)]).T
    shown, gate, read = (
        attribute(operators, neuron_targets(operators, layer, position, index, rule))[0]
        for rule in ("relp_half", "gate", "read")
    )
    for row in range(3):
        number = int(layer[row])
        by_gate, by_read = half_rule(operators.layers[number], position[row, None], index[row, None])
        torch.testing.assert_close(shown[row], by_gate * gate[row] + by_read * read[row], rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_a_plain_neurons_edge_is_scaled_by_its_secant(family):
    """Without a gate the shown edge is phi(u)/u times the edge into u."""
    hosted = tiny_hosted(family, dtype=torch.float64)
    operators = capture(hosted.model, hosted.architecture, IDS)
    cells = torch.tensor([(2, 8, 3), (1, 5, 40)]).T
    shown, read = (
        attribute(operators, neuron_targets(operators, *cells, rule))[0] for rule in ("relp_half", "read")
    )
    for row, (layer, position, index) in enumerate(cells.T.tolist()):
        frozen = operators.layers[layer]
        ratio = frozen.activation[position, index] / frozen.read[position, index]
        torch.testing.assert_close(shown[row], ratio * read[row], rtol=1e-9, atol=1e-12)

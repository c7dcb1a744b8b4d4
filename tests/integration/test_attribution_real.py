"""Laws 2 to 4 and a whole discovery on SmolLM2."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.laws import AGAINST, PROMPT, TARGET, load_model, measure_laws
from trephine.app.pruning import numbers
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import DiscoverCircuit, NodeKind
from trephine.engine.discovery import discover_circuit
from trephine.engine.quanta import finish
from trephine.engine.readouts import logit_readout

pytestmark = [pytest.mark.real, pytest.mark.integration]


@pytest.fixture(scope="module")
def hosted(smollm2):
    """SmolLM2 in float32."""
    torch.set_num_threads(1)
    return load_model(smollm2)


def test_laws_two_to_four_hold(hosted, smollm2):
    """Neurons alone give the logits; rows sum; at least 200 edges match the oracle within 1e-4."""
    readout = logit_readout(hosted, hosted.resolve_target(TARGET), hosted.resolve_target(AGAINST))
    precise = load_model(smollm2, torch.float64)
    figures = measure_laws(hosted, precise, PROMPT, readout, layer_stride=9)
    assert figures.law2 <= 1e-5
    assert figures.law3 <= 1e-5
    assert figures.edges >= 200
    assert figures.edges_at_start >= 20
    assert figures.worst <= 1e-4
    assert figures.pearson > 1 - 1e-8
    assert figures.relative <= 1e-4


def test_a_circuit_is_found_and_verified(hosted):
    """The whole job: the right baseline, rows that sum, estimates measured on 128 ablations."""
    command = DiscoverCircuit(
        prompt=PROMPT, target=LogitTarget(token=TARGET, against=AGAINST), max_feature_nodes=512
    )
    with torch.inference_mode():
        circuit = finish(discover_circuit(hosted, command))
    assert circuit.figures.baseline == pytest.approx(6.12, abs=0.05)
    assert circuit.figures.selected_features == 512
    assert circuit.figures.active_features > 0.99 * 30 * 1536 * len(circuit.tokens)
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
        rtol=1e-3,
        atol=1e-3,
    )
    strongest = max((n for n in circuit.nodes if n.kind is NodeKind.TOKEN), key=lambda n: n.effect)
    assert circuit.tokens[strongest.position].display == " Mary"
    assert circuit.quality is not None
    assert circuit.quality.nodes == 128
    assert circuit.quality.spearman_low > 0.9
    assert 0.5 < circuit.quality.slope < 2

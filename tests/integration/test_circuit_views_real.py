"""Edges taken apart and attention traced on SmolLM2."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.laws import AGAINST, PROMPT, TARGET, load_model
from trephine.domain.ablation import LogitTarget
from trephine.domain.attention import TraceAttention
from trephine.domain.circuit_edges import ExplainEdges
from trephine.domain.circuits import DiscoverCircuit
from trephine.engine.graphs.discover import discover_circuit
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.tracing.edges import explain_edges
from trephine.engine.tracing.tracing import trace_attention

pytestmark = [pytest.mark.real, pytest.mark.integration]


@pytest.fixture(scope="module")
def session(smollm2):
    """SmolLM2 in float32."""
    torch.set_num_threads(1)
    return Session(hosted=load_model(smollm2))


def test_parts_of_edges_are_the_edges(session):
    """Straight, heads and paths sum to what the sweep found, to 1e-4 of each row's largest edge."""
    target = LogitTarget(token=TARGET, against=AGAINST)
    command = DiscoverCircuit(prompt=PROMPT, target=target, max_feature_nodes=16, verify_nodes=0)
    circuit = finish(discover_circuit(session.hosted, command))
    columns = (circuit.edges.source, circuit.edges.target, circuit.edges.weight)
    edges = list(zip(*(np.frombuffer(c.data, c.dtype).tolist() for c in columns), strict=True))
    largest = {}
    for _, node, weight in edges:
        largest[node] = max(largest.get(node, 0.0), abs(weight))
    chosen = edges[:: max(1, len(edges) // 10)][:10]
    ends = tuple((source, node) for source, node, _ in chosen)
    found = finish(explain_edges(session, ExplainEdges(circuit=circuit, edges=ends, paths=3, heads=200)))
    for one, (_, node, weight) in zip(found.edges, chosen, strict=True):
        assert abs(one.weight - weight) <= 1e-4 * largest[node]
        parts = one.direct + sum(head.weight for head in one.heads) + one.heads_remainder
        assert abs(parts - one.weight) <= 1e-6 * largest[node]
        listed = sum(factors.weight for path in one.paths for factors in path.factors)
        assert abs(listed + one.paths_remainder - one.weight) <= 1e-4 * largest[node]


@pytest.mark.parametrize(("layer", "head"), [(11, 6), (17, 3)])
def test_a_score_is_its_terms_and_the_weight_its_shares(session, layer, head):
    """One head that looks at the last token itself, one that looks at the attention sink."""
    command = TraceAttention(prompt=PROMPT, layer=layer, head=head, top=1000)
    trace = finish(trace_attention(session, command))
    assert trace.terms_sum == pytest.approx(trace.score, abs=1e-4)
    assert trace.residual <= 1e-3 * abs(trace.change)
    assert trace.weight > 0.8

"""Dictionaries on MLP outputs: rows through the linearised MLP sum, edges out of them are interventions."""

from __future__ import annotations

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from tests.resident_sets import NAME, reside, sae
from tests.set_oracle import SetOracle
from tests.unit.engine.graphs.test_laws_of_sets import IDS, SUMS, some_cells, swept, writes_of
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuit_edges import ExplainEdges
from trephine.domain.circuits import DiscoverCircuit, NodeKind
from trephine.domain.sites import Site, SiteKind
from trephine.domain.targets import FeatureValue
from trephine.engine.attribution.operators import capture
from trephine.engine.attribution.places import clean_value
from trephine.engine.attribution.readouts import logit_readout
from trephine.engine.graphs.actives import activate
from trephine.engine.graphs.discover import discover_circuit
from trephine.engine.graphs.open_layers import layers_of
from trephine.engine.graphs.sweeping import sweep_features
from trephine.engine.graphs.targets import feature_targets, logit_targets
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.replacements.sets import opened
from trephine.engine.tracing.edges import explain_edges

MIXTURES = {
    "mlp_out": (SiteKind.MLP_OUT,) * 3,
    "he": (SiteKind.MLP_OUT, SiteKind.ATTN_OUT, SiteKind.MLP_OUT),
    "with_stream": (SiteKind.MLP_OUT, SiteKind.RESID_POST, SiteKind.MLP_OUT),
}
CASES = [(f, m) for f in FAMILIES for m in MIXTURES if (f, m) != ("gpt_neox", "he")]


@pytest.fixture(autouse=True)
def _inference():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def prepared(family, mixture, dtype=torch.float32):
    """A tiny model with dictionaries at the sites of a mixture, one per layer."""
    hosted = tiny_hosted(family, dtype=dtype)
    kinds = enumerate(MIXTURES[mixture])
    reside(hosted, [sae(hosted, Site(kind=kind, layer=layer)) for layer, kind in kinds])
    operators = capture(hosted.model, hosted.architecture, IDS)
    return hosted, operators, finish(activate(hosted, operators, layers_of(NAME, (0, 1, 2)), keep_first=True))


@pytest.mark.parametrize(("family", "mixture"), CASES)
def test_rows_sum_through_the_linearised_mlp(family, mixture):
    """Law 3: what enters a feature of an MLP's output sums to its pre-activation, biases included."""
    hosted, operators, active = prepared(family, mixture)
    seen = 0
    for cells, targets, sums in swept(hosted, operators, active, some_cells(active, 6)):
        scale = sums.mass + sums.bias.abs()
        assert ((sums.total - targets.total).abs() / scale).max() < SUMS
        seen += len(cells)
    assert seen >= 12
    top = active.layers[-1]
    cells = torch.arange(top.start, top.start + 3)
    with opened(hosted, NAME, [2]) as resident:
        encoder = resident[2].encoders(top.index[:3].tolist())
    expected = (clean_value(operators, top.info.site_in)[top.position[:3]] * encoder).sum(-1)
    assert feature_targets(hosted, operators, active, cells).total.tolist() == pytest.approx(
        expected.tolist(), rel=1e-4, abs=1e-5
    )


def test_rows_sum_in_float64():
    """Where norms compute in float64 the rows sum to rounding."""
    hosted, operators, active = prepared("gpt2", "mlp_out", torch.float64)
    for _, targets, sums in swept(hosted, operators, active, some_cells(active, 6)):
        assert ((sums.total - targets.total).abs() / sums.mass).max() < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_edges_from_mlp_outputs_into_logits_are_interventions(family):
    """Law 4 holds for edges out of such features: the logit falls by the edge when the write is taken out."""
    hosted, operators, active = prepared(family, "mlp_out")
    readout = logit_readout(hosted, 44, 9)
    targets = logit_targets(operators, [readout])
    sums = finish(sweep_features(hosted, operators, active, targets))
    oracle = SetOracle(hosted, IDS)
    row = sums.features[0]
    cells = row.abs().topk(8).indices.tolist() + row.nonzero().flatten().tolist()[:8]
    rows = [[(site, at, -vector) for site, at, vector in writes_of(hosted, active, cell)] for cell in cells]
    clean = oracle.read([()], None)[:, -1] @ readout.direction
    removed = clean - oracle.read(rows, None)[:, -1] @ readout.direction
    assert (removed - row[cells]).abs().max() <= 1e-4 * row.abs().max()


def test_a_circuit_over_he_s_mixture_says_what_is_estimated():
    """Attention, MLP outputs and the stream in one graph: nodes of each, the rule, and a caveat."""
    hosted = tiny_hosted("llama")
    kinds = (SiteKind.MLP_OUT, SiteKind.ATTN_OUT, SiteKind.MLP_OUT)
    reside(hosted, [sae(hosted, Site(kind=kind, layer=layer)) for layer, kind in enumerate(kinds)])
    command = DiscoverCircuit(
        prompt="When Mary and John went to the store",
        target=LogitTarget(token=" Mary", against=" John"),
        replacement=NAME,
        max_feature_nodes=60,
        verify_nodes=8,
    )
    circuit = finish(discover_circuit(hosted, command))
    assert {node.layer for node in circuit.nodes if node.kind is NodeKind.FEATURE} == {0, 1, 2}
    assert circuit.edge_rule == "relp_half"
    assert circuit.quality is not None
    assert any("linearised by the half rule" in caveat for caveat in circuit.caveats)
    into = [n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.FEATURE and node.layer == 2]
    token = next(n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.TOKEN)
    explained = finish(
        explain_edges(
            Session(hosted=hosted),
            ExplainEdges(circuit=circuit, edges=tuple((token, target) for target in into[:4]), heads=200),
        )
    )
    for one in explained.edges:
        assert one.estimated
        assert all(factors.invariant is None for path in one.paths for factors in path.factors)
        parts = one.direct + sum(head.weight for head in one.heads)
        assert parts == pytest.approx(one.weight, abs=1e-5)
        if one.stored is not None:
            assert one.weight == pytest.approx(one.stored, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_feature_of_an_mlp_output_can_be_the_target(family):
    """Its row sums to the pre-activation and is an estimate; effects go through the MLP by the gradient."""
    hosted = tiny_hosted(family)
    reside(hosted, [sae(hosted, Site(kind=SiteKind.MLP_OUT, layer=layer)) for layer in range(3)])
    command = DiscoverCircuit(
        prompt="When Mary and John went to the store",
        target=FeatureValue(layer=2, index=3),
        replacement=NAME,
        max_feature_nodes=30,
        verify_nodes=20,
    )
    circuit = finish(discover_circuit(hosted, command))
    with opened(hosted, NAME, [2]) as resident:
        encoder = resident[2].encoders([3])[0]
    operators = capture(hosted.model, hosted.architecture, [token.id for token in circuit.tokens])
    expected = float(operators.layers[2].mlp_out[-1] @ encoder)
    assert circuit.targets[0].value == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert circuit.targets[0].estimated
    assert any("The target is read off an MLP's output" in caveat for caveat in circuit.caveats)
    assert circuit.quality is not None
    assert circuit.quality.spearman > 0.5

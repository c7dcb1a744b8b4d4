"""Predicted time and memory of discoveries beside what `benchmarks.discovery_costs` measured on SmolLM2."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.app.house import model_info
from trephine.app.circuits.circuit_costs import admission_cost, discovery_cost
from trephine.app.circuits.graph_sets import spanned_layers
from trephine.app.jobs.costs import predict_beside
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.models import ModelInfo
from trephine.domain.replacements import LayerKind, ReplacementLayerInfo, SupportRule
from trephine.domain.sites import Site, SiteKind

# Tokens, nodes, verified nodes, processor seconds, MB beyond the model in a fresh engine.
NEURONS = (
    (5, 64, 0, 0.54, 73.4),
    (5, 256, 64, 2.55, 151),
    (25, 256, 0, 3.23, 215),
    (25, 256, 32, 4.94, 212),
    (25, 512, 0, 5.8, 281),
    (101, 128, 0, 5.56, 421),
)
TRANSCODERS = (
    (5, 64, 0, 0.68, 226),
    (5, 256, 64, 2.57, 274),
    (25, 256, 0, 1.68, 322),
    (25, 256, 32, 4.69, 319),
    (25, 512, 0, 2.72, 353),
    (101, 128, 0, 3.43, 565),
)
# Tokens, nodes, MB beyond the model and a resident set: `benchmarks.discovery_gpu` on an H200.
ON_A_GPU = (
    (16, 256, 212),
    (16, 1024, 380),
    (16, 4096, 846),
    (64, 256, 537),
    (64, 1024, 942),
    (64, 4096, 1454),
    (192, 256, 1645),
    (192, 1024, 2263),
    (192, 4096, 2979),
)


def smollm2() -> ModelInfo:
    """What is known of SmolLM2-135M."""
    return replace(
        model_info("smollm2"),
        n_layers=30, n_heads=9, d_model=576, d_mlp=1536, d_vocab=49152, n_parameters=134_515_008,
    )  # fmt: skip


def transcoders() -> tuple[ReplacementLayerInfo, ...]:
    """A transcoder of 2,048 features in float16 for every layer."""
    return tuple(
        ReplacementLayerInfo(
            layer=layer,
            kind=LayerKind.TRANSCODER,
            support=SupportRule.JUMPRELU,
            site_in=Site(kind=SiteKind.MLP_IN, layer=layer),
            sites_out=(Site(kind=SiteKind.MLP_OUT, layer=layer),),
            d_in=576,
            d_out=576,
            d_sae=2048,
            normalisation="none",
            has_skip=False,
            claimed_l0=32.0,
            memory_bytes=4_737_280,
            content_hash="",
        )
        for layer in range(30)
    )


def asked(nodes: int, verified: int) -> DiscoverCircuit:
    """A discovery of that size."""
    return DiscoverCircuit(
        prompt="x", target=LogitTarget(token=" a"), max_feature_nodes=nodes, verify_nodes=verified
    )


@pytest.mark.parametrize(
    ("layers", "row"),
    [((), row) for row in NEURONS] + [(transcoders(), row) for row in TRANSCODERS],
    ids=lambda value: "-".join(map(str, value)) if value and isinstance(value[0], int) else "",
)
def test_predictions_are_within_a_factor_of_two(layers, row):
    """Seconds of one core and memory, for neurons and for a set."""
    tokens, nodes, verified, seconds, megabytes = row
    cost = discovery_cost(asked(nodes, verified), smollm2(), tokens, layers)
    assert 0.5 <= cost.seconds / seconds <= 2
    assert 0.5 <= cost.memory_bytes / 1e6 / megabytes <= 2


@pytest.mark.parametrize("row", ON_A_GPU, ids=lambda row: "-".join(map(str, row)))
def test_memory_of_a_gpu_is_within_a_factor_of_two(row):
    """Tables, scores and rows are what a GPU holds; the set is there already."""
    tokens, nodes, megabytes = row
    cost = discovery_cost(asked(nodes, 0), replace(smollm2(), device="cuda:0"), tokens, transcoders())
    resident = 1.3 * sum(layer.memory_bytes for layer in transcoders())
    assert 0.5 <= (cost.memory_bytes - resident) / 1e6 / megabytes <= 2


def test_more_of_anything_costs_more():
    """Tokens, nodes and verified nodes each raise both figures, but verification, which adds time alone."""
    least = discovery_cost(asked(64, 0), smollm2(), 16)
    for more in (
        discovery_cost(asked(128, 0), smollm2(), 16),
        discovery_cost(asked(64, 0), smollm2(), 32),
        discovery_cost(asked(64, 0), smollm2(), 16, transcoders()),
    ):
        assert more.memory_bytes > least.memory_bytes
    assert discovery_cost(asked(128, 0), smollm2(), 16).seconds > least.seconds
    assert discovery_cost(asked(64, 0), smollm2(), 32).seconds > least.seconds
    assert discovery_cost(asked(64, 16), smollm2(), 16).seconds > least.seconds


# Six transcoders, and the neurons of the other 24 MLPs: `benchmarks.discovery_costs --beside neurons`.
BESIDE = (
    (5, 64, 0, 2.96, 334),
    (5, 256, 64, 12.3, 544),
    (25, 256, 0, 33.9, 1430),
    (25, 256, 32, 41.1, 1700),
)


@pytest.mark.parametrize("row", BESIDE, ids=lambda row: "-".join(map(str, row)))
def test_neurons_beside_sets_are_predicted_within_a_factor_of_two(row):
    """All of them are active at every position: it takes ten times the time of a set, and is told so."""
    tokens, nodes, verified, seconds, megabytes = row
    some = [layer for layer in transcoders() if layer.layer % 6 == 0 or layer.layer == 29]
    opened = spanned_layers(("some", "neurons"), smollm2(), {"some": some})
    assert sum(layer.kind is LayerKind.NEURONS for layer in opened) == 24
    cost = discovery_cost(asked(nodes, verified), smollm2(), tokens, opened)
    assert 0.5 <= cost.seconds / seconds <= 2
    assert 0.5 <= cost.memory_bytes / 1e6 / megabytes <= 2


@pytest.mark.parametrize("layers", [(), transcoders()], ids=["neurons", "transcoders"])
def test_no_more_nodes_are_predicted_than_there_are(layers):
    """Whoever asks for all of them by a large number gets what all of them cost."""
    features = sum(layer.d_sae for layer in layers) or 30 * 1536
    every, more = (discovery_cost(asked(n, 0), smollm2(), 3, layers) for n in (3 * features, 2 * 10**9))
    assert every == more


def test_admission_asks_for_the_price_of_a_discovery():
    """Whoever carries out discoveries registers it; else they would be admitted as costing nothing."""
    command = asked(64, 8)
    admitted = predict_beside(command, smollm2(), {})
    assert admitted == admission_cost(command, smollm2(), {})
    assert admitted.tokens > 0
    assert predict_beside.dispatch(DiscoverCircuit) is admission_cost


def test_more_nodes_than_there_are_active_features_cost_no_more():
    """A prompt of five tokens has some four thousand: a million nodes find as many."""
    info, layers = smollm2(), transcoders()
    enough, million = (discovery_cost(asked(nodes, 0), info, 5, layers) for nodes in (15_000, 1_000_000))
    assert million == enough
    assert million.memory_bytes < 3e9

"""Predicted time and memory of dataset circuits beside what was measured on SmolLM2, one core."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.dataset_examples import request
from tests.unit.app.circuits.test_circuit_costs import smollm2, transcoders
from trephine.app.circuits.dataset_circuit_costs import dataset_circuit_cost, guessed_tokens
from trephine.app.jobs.costs import predict_beside
from trephine.domain.dataset_circuits import (
    ERRORS,
    HEADS,
    ContextTokens,
    DiscoverDatasetCircuit,
    Discretion,
    Estimator,
    NodeAblation,
    PositionRule,
    Subsampling,
)

SETS = {"tc": transcoders()}
FEW = Discretion(edge_nodes=0, curve=False, random_circuits=2)
MEAN, RESAMPLE = (NodeAblation.MEAN,), (NodeAblation.RESAMPLE,)

# Options, tokens (longest, training, held out), processor seconds, MB beyond the model.
MEASURED: tuple[tuple[dict[str, Any], tuple[int, int, int], float, float], ...] = (
    ({"size": Discretion()}, (3, 96, 48), 33.5, 200),
    ({"replacement": "tc", "positions": PositionRule.KEPT, "size": Discretion()}, (3, 96, 48), 42.1, 443),
    (
        {
            "replacement": "tc",
            "beside": (ERRORS, HEADS),
            "positions": PositionRule.KEPT,
            "patch": NodeAblation.MEAN,
            "ablations": (*MEAN, *RESAMPLE),
            "size": replace(FEW, random_circuits=5),
        },
        (6, 192, 48),
        12.9,
        860,
    ),
    (
        {"positions": PositionRule.KEPT, "clusters": 4, "ablations": RESAMPLE, "size": FEW},
        (3, 144, 48),
        9.0,
        395,
    ),
    ({"positions": PositionRule.KEPT, "ablations": MEAN, "size": FEW}, (16, 384, 128), 11.1, 747),
    (
        {
            "replacement": "tc",
            "positions": PositionRule.KEPT,
            "ablations": RESAMPLE,
            "size": replace(FEW, edge_nodes=8),
        },
        (16, 256, 96),
        16.1,
        1029,
    ),
    ({"estimator": Estimator.INTEGRATED_GRADIENTS, "steps": 2, "size": FEW}, (3, 72, 24), 20.4, 234),
    ({"estimator": Estimator.EXACT, "exact_nodes": 64, "size": FEW}, (3, 72, 24), 7.9, 164),
)


def asked(**options: Any) -> DiscoverDatasetCircuit:
    """A request over pairs, stability as it is by default."""
    return request(12, stability=Subsampling(), **options)


def of(longest: int, training: int, held_out: int) -> ContextTokens:
    """Lengths of pairs."""
    return ContextTokens(longest=longest, training=training, twins=training, held_out=held_out)


@pytest.mark.parametrize(("options", "tokens", "seconds", "megabytes"), MEASURED)
def test_predictions_are_within_a_factor_of_two(options, tokens, seconds, megabytes):
    """Neurons, transcoders, error terms and heads; figures, clusters, every estimator."""
    cost = dataset_circuit_cost(asked(**options), smollm2(), SETS, of(*tokens))
    assert 0.5 <= cost.seconds / seconds <= 2
    assert 0.5 <= cost.memory_bytes / 1e6 / megabytes <= 2


def test_contexts_side_by_side_are_held_together():
    """A pass has up to 256 tokens, however short its contexts are; longer contexts are a pass each."""
    few, many, long = (
        dataset_circuit_cost(asked(), smollm2(), {}, of(*tokens)).memory_bytes
        for tokens in ((3, 30, 30), (3, 300, 30), (512, 512, 30))
    )
    assert many > 256 * 30 * 1536 * 5 * 4
    assert few < many / 5
    assert long > 2 * many


def test_more_of_anything_takes_longer():
    """Estimators, budgets, edges, ablations, clusters."""
    tokens, least = of(6, 200, 60), asked(size=FEW, ablations=MEAN)
    seconds = dataset_circuit_cost(least, smollm2(), {}, tokens).seconds
    for change in (
        {"estimator": Estimator.INTEGRATED_GRADIENTS},
        {"estimator": Estimator.EXACT},
        {"size": replace(FEW, curve=True)},
        {"size": replace(FEW, edge_nodes=8)},
        {"ablations": (*MEAN, NodeAblation.ZERO)},
        {"clusters": 2},
        {"replacement": "tc"},
    ):
        assert dataset_circuit_cost(replace(least, **change), smollm2(), SETS, tokens).seconds > seconds


def test_admission_guesses_lengths_and_counts_the_same():
    """Rather too long: what is refused for its memory is refused before a tokenizer has seen it."""
    command = asked()
    guessed = guessed_tokens(command)
    assert guessed.training == sum(-(-len(one.clean) // 3) for one in command.training)
    cost = dataset_circuit_cost(command, smollm2(), {}, guessed)
    admitted = predict_beside(command, smollm2(), {})
    assert (admitted.tokens, admitted.memory_bytes) == (cost.tokens, cost.memory_bytes)

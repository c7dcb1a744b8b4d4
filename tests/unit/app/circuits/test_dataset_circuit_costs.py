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
    Example,
    NodeAblation,
    PositionRule,
    Subsampling,
)

SETS = {"tc": transcoders()}
FEW = Discretion(edge_nodes=0, curve=False, random_circuits=2)
MEAN, ZERO, RESAMPLE = (NodeAblation.MEAN,), (NodeAblation.ZERO,), (NodeAblation.RESAMPLE,)

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

# The same of requests in which a bound bites: more asked for than there is, layers that lie high, many draws.
BOUND: tuple[tuple[dict[str, Any], tuple[int, int, int], float, float], ...] = (
    (
        {
            "replacement": HEADS, "layers": (29,), "estimator": Estimator.EXACT, "exact_nodes": 4096,
            "ablations": ZERO, "size": Discretion(),
        },
        (3, 36, 36),
        2.1,
        64,
    ),
    (
        {
            "ablations": MEAN,
            "size": Discretion(nodes=5, edge_nodes=512, curve=False, random_circuits=0),
        },
        (3, 36, 36),
        3.4,
        88,
    ),
    ({"layers": (29,), "size": Discretion()}, (3, 72, 72), 5.0, 125),
    (
        {
            "layers": (28, 29), "estimator": Estimator.INTEGRATED_GRADIENTS, "steps": 20,
            "size": Discretion(edge_nodes=0),
        },
        (6, 120, 120),
        22.8,
        254,
    ),
    (
        {
            "positions": PositionRule.KEPT, "ablations": RESAMPLE, "size": replace(FEW, random_circuits=1),
            "stability": Subsampling(draws=600),
        },
        (6, 120, 120),
        6.6,
        1393,
    ),
    (
        {
            "clusters": 4, "ablations": RESAMPLE, "size": replace(FEW, random_circuits=1),
            "stability": Subsampling(draws=600),
        },
        (6, 120, 120),
        13.7,
        1029,
    ),
)  # fmt: skip


def asked(**options: Any) -> DiscoverDatasetCircuit:
    """A request over pairs, stability as it is by default."""
    return request(12, **{"stability": Subsampling(), **options})


def of(longest: int, training: int, held_out: int) -> ContextTokens:
    """Lengths of pairs."""
    return ContextTokens(
        longest=longest, longest_training=longest, training=training, twins=training, held_out=held_out
    )


def many(contexts: int, **options: Any) -> DiscoverDatasetCircuit:
    """A request over so many training contexts, without draws."""
    training = tuple(Example(clean=f"When {number}", answers=(" Mary",)) for number in range(contexts))
    return replace(
        asked(size=FEW, ablations=MEAN, stability=Subsampling(draws=0)), training=training, **options
    )


@pytest.mark.parametrize(("options", "tokens", "seconds", "megabytes"), [*MEASURED, *BOUND])
def test_predictions_are_within_a_factor_of_two(options, tokens, seconds, megabytes):
    """Neurons, transcoders, error terms and heads; figures, clusters, draws, every estimator."""
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


def test_long_held_out_contexts_are_held_in_memory_too():
    """Whichever side a context is on, it is a pass of its own: 12 short ones, held-out ones of 487 tokens."""
    command = asked(size=replace(FEW, random_circuits=1), ablations=ZERO, stability=Subsampling(draws=0))
    short, long = (
        dataset_circuit_cost(command, smollm2(), {}, tokens)
        for tokens in (of(6, 72, 36), replace(of(6, 72, 2922), longest=487))
    )
    assert short.memory_bytes < 250e6
    assert 0.5 <= long.memory_bytes / 828e6 <= 2
    assert 0.5 <= long.seconds / 48.8 <= 2
    guessed = guessed_tokens(
        replace(asked(), held_out=tuple(replace(one, corrupted="word " * 300) for one in asked().held_out))
    )
    assert (guessed.longest, guessed.longest_training) == (500, guessed_tokens(asked()).longest)


def test_draws_take_time():
    """All nodes are gone through in every draw, of all contexts and of each cluster."""
    options = {"size": FEW, "positions": PositionRule.KEPT, "clusters": 4}
    few, some, many_draws = (
        dataset_circuit_cost(
            asked(**options, stability=Subsampling(draws=draws)), smollm2(), {}, of(6, 120, 120)
        ).seconds
        for draws in (100, 350, 600)
    )
    assert many_draws - few == pytest.approx(2 * (some - few))
    assert many_draws - few > 5


@pytest.mark.parametrize(
    ("contexts", "clusters", "seconds"),
    [(100, 0, 2.0), (300, 0, 5.8), (300, 4, 0.7), (1000, 0, 57.6), (1000, 4, 9.0), (2000, 4, 10.5)],
)
def test_grouping_contexts_takes_time(contexts, clusters, seconds):
    """As measured of random directions: clouds are made and grouped as often as contexts are."""
    cost = dataset_circuit_cost(many(contexts, clusters=clusters), smollm2(), {}, of(3, 0, 0))  # no passes
    assert 0.5 <= cost.seconds / seconds <= 2


def test_admission_guesses_lengths_and_counts_the_same():
    """Rather too long: what is refused for its memory is refused before a tokenizer has seen it."""
    command = asked()
    guessed = guessed_tokens(command)
    assert guessed.training == sum(-(-len(one.clean) // 3) for one in command.training)
    cost = dataset_circuit_cost(command, smollm2(), {}, guessed)
    admitted = predict_beside(command, smollm2(), {})
    assert (admitted.tokens, admitted.memory_bytes) == (cost.tokens, cost.memory_bytes)

"""Sampling draws from the distribution that was asked for, and batching loses no row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trephine.domain.generation import Sampling
from trephine.engine.runs.batches import batches
from trephine.engine.runs.sampling import Sampler, nucleus


def test_temperature_zero_is_greedy():
    """The most likely token is taken, with its log-probability."""
    logits = torch.tensor([0.0, 3.0, 1.0])
    token, log_probability = Sampler(Sampling(), 0).choose(logits)
    assert token == 1
    assert log_probability == pytest.approx(float(logits.log_softmax(-1)[1]))


def test_draws_follow_the_tempered_distribution():
    """2,000 draws at temperature 2 are within four standard errors of the softmax."""
    logits, sampler = torch.tensor([0.0, 2.0, 1.0]), Sampler(Sampling(temperature=2.0, seed=5), 0)
    counts = torch.bincount(torch.tensor([sampler.choose(logits)[0] for _ in range(2000)]), minlength=3)
    expected = (logits / 2).softmax(-1)
    errors = (expected * (1 - expected) / 2000).sqrt()
    assert ((counts / 2000 - expected).abs() < 4 * errors).all()


@pytest.mark.parametrize("temperature", [1e-300, 1e-308, 1e-320, 5e-324])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
@pytest.mark.parametrize(
    "logits", [[0.0, 3.0, 1.0], [-9.0, -3.0, -5.0], [-float("inf"), 3.0, 1.0], [1e6, 2e6, 0.0]]
)
def test_the_smallest_temperatures_are_greedy(temperature: float, top_p: float, logits: list[float]):
    """Logits divided by them are infinite; the most likely token is still the most likely."""
    sampler = Sampler(Sampling(temperature=temperature, top_p=top_p), 0)
    given = torch.tensor(logits, dtype=torch.float64)
    assert sampler.choose(given)[0] == int(given.argmax())


def test_ordinary_temperatures_draw_what_they_drew():
    """The same seeds give the same texts in every release."""
    logits = torch.linspace(-3, 3, 50).sin() * 4
    sampler = Sampler(Sampling(temperature=0.7, top_p=0.9, seed=11), 3)
    assert [sampler.choose(logits)[0] for _ in range(12)] == [37, 34, 39, 41, 43, 41, 42, 40, 39, 37, 39, 32]


@pytest.mark.parametrize(
    ("mass", "kept"), [(0.4, [0]), (0.5, [0]), (0.51, [0, 2]), (0.81, [0, 1, 2]), (1.0, [0, 1, 2, 3])]
)
def test_the_nucleus_is_the_smallest_set_that_holds_the_mass(mass, kept):
    """Tokens are kept from the most likely down until the mass is reached; one always is."""
    probabilities = torch.tensor([0.5, 0.15, 0.3, 0.05], dtype=torch.float64)
    result = nucleus(probabilities, mass)
    assert result.nonzero().flatten().tolist() == kept
    assert torch.equal(result[kept], probabilities[kept])


@given(
    st.lists(st.integers(min_value=1, max_value=50), max_size=60),
    st.integers(min_value=1, max_value=100),
    st.integers(min_value=1, max_value=8),
)
def test_batches_cover_every_row_once_within_bounds(lengths, max_tokens, max_rows):
    """Ranges are consecutive, none is empty, and only a single long row exceeds the bound."""
    parts = list(batches(lengths, max_tokens=max_tokens, max_rows=max_rows))
    assert [row for part in parts for row in part] == list(range(len(lengths)))
    for part in parts:
        assert 1 <= len(part) <= max_rows
        assert len(part) == 1 or len(part) * max(lengths[i] for i in part) <= max_tokens

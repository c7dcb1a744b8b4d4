"""A reward that is trained on pairs, and the replies that it reads at their last token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.shift_arms import labels
from benchmarks.shift_export import at_the_stock_site
from benchmarks.shift_preferences import OURS, PreferenceBench, asked, fit_preference, removal, save_reward
from benchmarks.shift_rewards import _EVASIONS, _QUESTIONS
from benchmarks.shift_tasks import Draw, Item, Sizes, preferences
from tests.builders import tiny_folder
from tests.spurious_texts import ATTRIBUTES, GROUPS, LABELS, labelled
from tests.unit.engine.exporting import hosted_in
from trephine.engine.quanta import finish
from trephine.engine.spurious.heads import given_head, reward_head


def test_the_answer_stands_last():
    """Where a head on the last token can tell it; label and answer go together."""
    draw = preferences().draw(1, Sizes(training=12, examples=8, validation=4, test=10))
    answers = tuple(answer for _, answer in _QUESTIONS)
    for one in (*draw.training, *draw.test):
        assert one.text.endswith(answers if one.label else _EVASIONS)


def test_a_reward_of_pairs_orders_what_it_was_trained_on():
    """Better replies are further along one direction, however far along another that pairs share."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2
    pooled = torch.randn(60, 5, generator=generator) * 0.3
    pooled[:, 2] += 2.0 * y
    pooled[:, 4] += 7.0
    score = fit_preference(pooled, y, seed=3)
    assert score.shape == (1, 5)
    assert int(score.abs().argmax()) == 2
    rewards = pooled @ score[0]
    assert rewards[y == 1].min() > rewards[y == 0].max()
    head = reward_head(score, None, pooled, y)
    assert torch.equal(head.decide(pooled), y)


def test_who_stands_first_in_a_pair_says_nothing():
    """Turning every label turns the reward."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(40) % 2
    pooled = torch.randn(40, 4, generator=generator)
    pooled[:, 1] += y
    one, other = fit_preference(pooled, y, seed=0), fit_preference(pooled, 1 - y, seed=0)
    assert one[0, 1] > 0 > other[0, 1]


def written(groups: list[tuple[int, int, int]], seed: int) -> tuple[Item, ...]:
    """Texts for a tiny model."""
    return tuple(
        Item(text=one.text, label=LABELS.index(one.label), attribute=ATTRIBUTES.index(str(one.attribute)))
        for one in labelled(groups, seed)
    )


@pytest.fixture
def bench(tmp_path: Path) -> PreferenceBench:
    """A confounded reward on a tiny model."""
    draw = Draw(
        training=written([(0, 0, 20), (1, 1, 20)], 0),
        crossed=written([(0, 1, 10), (1, 0, 10)], 1),
        examples=written([(*group, 8) for group in GROUPS], 2),
        validation=(),
        test=written([(*group, 6) for group in GROUPS], 3),
    )
    hosted = hosted_in(tiny_folder("llama", tmp_path / "model"))
    return PreferenceBench(hosted=hosted, task=at_the_stock_site(preferences()), draw=draw, seed=4)


def test_the_product_is_handed_the_reward_that_was_trained(bench, tmp_path):
    """As a stock folder of one output on the hosted weights, with no head to train."""
    folder = save_reward(bench, tmp_path / "reward")
    wanted = asked(bench, folder)
    assert (wanted.refit, wanted.erase, wanted.neutral_examples) == (False, False, False)
    assert wanted.labels == ("0 evasive", "1 helpful")
    score = finish(given_head(bench.hosted, wanted.decision, wanted.labels))
    trained = fit_preference(bench.plain("training"), labels(bench.draw.training), seed=bench.seed)
    assert torch.allclose(score, trained)


def test_a_removal_from_a_reward_decides_every_text(bench):
    """Ours and as many random features, on the same texts."""
    found = removal(bench)
    removed, spurious, considered = found.pop("_counts")
    assert removed <= spurious <= considered == 3 * bench.hosted.architecture.d_mlp
    assert set(found) == {OURS, "random (neurons)"}
    assert all(len(each) == len(bench.draw.test) and set(each) <= {0, 1} for each in found.values())

"""The arms of the bench of spurious features on the real model, with few texts."""

from __future__ import annotations

from math import isfinite
from pathlib import Path

import pytest

from benchmarks.laws import load_model
from benchmarks.shift_arms import FEATURE_ARMS, PLAIN_ARMS, Bench, attributes, labels
from benchmarks.shift_figures import decided
from benchmarks.shift_tasks import Sizes
from benchmarks.shift_tasks import _biographies as biographies_task
from trephine.domain.sites import NEURONS

pytestmark = [pytest.mark.real, pytest.mark.integration]
SMALL = Sizes(training=24, examples=16, validation=8, test=8)


@pytest.fixture(scope="module")
def bench(smollm2: Path) -> Bench:
    """One seed of biographies, small."""
    task = biographies_task()
    return Bench(hosted=load_model(smollm2), task=task, draw=task.draw(7, SMALL), seed=7)


def agreement(decided: list[int], against: list[int]) -> float:
    return sum(one == other for one, other in zip(decided, against, strict=True)) / len(decided)


def test_the_original_follows_the_attribute_and_the_oracle_the_label(bench):
    """What the whole bench rests on, and what LEACE changes."""
    y, a = labels(bench.draw.test).tolist(), attributes(bench.draw.test).tolist()
    margins = {arm: run(bench) for arm, run in PLAIN_ARMS.items()}
    assert all(len(found) == len(y) and all(map(isfinite, found)) for found in margins.values())
    decisions = {arm: decided(found) for arm, found in margins.items()}
    assert agreement(decisions["original"], a) > 0.85
    assert agreement(decisions["oracle"], y) > agreement(decisions["original"], y) + 0.2
    assert agreement(decisions["LEACE"], a) < agreement(decisions["original"], a)
    assert margins["token deletion"] != margins["embedding only"]


def test_arms_of_features_decide_every_text_and_take_no_more_than_they_judge(bench):
    """Ours, matched random features and the skyline, over neurons."""
    found = FEATURE_ARMS["removal"](bench, NEURONS) | FEATURE_ARMS["skyline"](bench, NEURONS)
    removed, spurious, considered = found.pop("_counts")
    chosen, ranked = found.pop("_skyline")
    assert removed <= spurious < considered == 2 * bench.hosted.architecture.d_mlp
    assert chosen <= ranked
    assert all(len(each) == len(bench.draw.test) for each in found.values())
    assert set(found) >= {
        "removed",
        "removed, refitted",
        "removed, erased",
        "random",
        "random, refitted",
        "skyline",
    }

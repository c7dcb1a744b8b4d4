"""Planted groups are found again, and the measure of that is the known one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.planted_groups import adjusted_mutual_information, planted, recovered
from tests.unit.app.house import house
from trephine.domain.circuit_annotations import AutomaticGroups


def test_adjusted_mutual_information_is_1_for_the_same_and_0_by_chance():
    """Names of groups do not matter; of random partitions the mean is 0, which plain information is not."""
    assert adjusted_mutual_information([0, 0, 1, 1, 2], [5, 5, 3, 3, 9]) == pytest.approx(1)
    # By hand, in ln 2: information 1, by chance 2/3, mean entropy 5/4.
    assert adjusted_mutual_information([0, 0, 1, 1], [0, 0, 1, 2]) == pytest.approx(4 / 7)
    random = np.random.default_rng(0)
    chance = [
        adjusted_mutual_information(
            random.integers(8, size=60).tolist(), random.integers(8, size=60).tolist()
        )
        for _ in range(40)
    ]
    assert abs(float(np.mean(chance))) < 0.03


@pytest.mark.parametrize("noise", [0.0, 0.3, 0.5])
async def test_planted_groups_are_found_by_their_edges(tmp_path: Any, noise: float):
    """At the threshold that is unset, with at least 0.9 of the adjusted information."""
    here, truth = house(tmp_path), planted(noise=noise, seed=1)
    name = (await here.circuits.save(truth.circuit, circuit_id="c1")).name
    said = await here.circuit_annotations.group_automatically(name, AutomaticGroups(basis="edges"), "")
    assert recovered(truth, [group.nodes for group in said.groups]) >= 0.9

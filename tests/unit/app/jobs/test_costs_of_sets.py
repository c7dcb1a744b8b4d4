"""Predicted memory of what reads a set's features: by the set, not by the model's neurons."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.app.house import model_info
from tests.unit.replacement_values import layer_info
from trephine.app.jobs.costs import predict_beside
from trephine.domain.features import ContrastFeatures, IndexFeatures

INDEX = IndexFeatures(path="", corpus_name="", replacement="set")
CONTRAST = ContrastFeatures(replacement="set", first=("one text",) * 40, second=("another",) * 40)


@pytest.mark.parametrize("command", [INDEX, CONTRAST], ids=["index", "contrast"])
def test_memory_follows_the_sets_features(command):
    """Ten times the features take ten times what is theirs; a layer that is not read takes nothing."""
    info = model_info("tiny")

    def beside(*d_sae: int, layers: tuple[int, ...] = ()) -> int:
        known = tuple(replace(layer_info(n), d_sae=size) for n, size in enumerate(d_sae))
        return predict_beside(replace(command, layers=layers), info, {"set": known}).memory_bytes

    none, some, many = beside(0, 0), beside(1_000, 1_000), beside(10_000, 10_000)
    assert many - none == 10 * (some - none) > 0
    assert beside(1_000, 10_000, layers=(0,)) == beside(1_000)
    neurons = replace(command, replacement="neurons")
    assert predict_beside(neurons, info, {}).memory_bytes < many

"""Intervals of few held-out contexts are too short, and it is said how often they hold the truth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.dataset_examples import examples, request
from tests.unit.engine.dataset_circuits.test_evidence import discover, said
from trephine.engine.dataset_circuits.caveats import COVERAGE
from trephine.engine.dataset_circuits.faithfulness import _Points, _Table

WORDS = "held-out contexts. A 95 % interval"


@pytest.mark.parametrize("few", [2, 3, 11])
def test_few_held_out_contexts_are_told(few: int):
    """How many they are, and what their intervals are worth."""
    split = examples(24 + few)
    found = discover(replace(request(24), training=split[:24], held_out=split[24:]))
    (caveat,) = said(found, WORDS)
    assert caveat.startswith(f"all: measured on {few} held-out contexts")
    assert f"{COVERAGE[few]:.0%}" in caveat


def test_clusters_are_told_one_by_one():
    """All contexts may be enough and those of a cluster few."""
    found = discover(request(24, clusters=2))
    few = [one for one in found.circuits if one.faithfulness and one.faithfulness[0].examples < 12]
    assert few
    assert [text.partition(":")[0] for text in said(found, WORDS)] == [one.label for one in few]
    assert "all" not in {one.label for one in few}


@pytest.mark.parametrize("contexts", [2, 4, 8])
def test_what_is_said_of_them_is_what_intervals_do(contexts: int):
    """Gaussian contexts, of whose effect a circuit has six tenths: the intervals printed hold that."""
    generator, sets, inside = torch.Generator().manual_seed(contexts), 400, 0
    for number in range(sets):
        whole, empty, noise = torch.randn(3, contexts, generator=generator)
        whole = whole + 2.2
        circuit = empty + 0.6 * (whole - empty) + 0.4 * noise
        table = _Table(whole=whole, empty=empty, inside=circuit[None], outside=circuit[None])
        share = _Points(table, 1000, number).at(0, 1).faithfulness
        assert share.low is not None
        assert share.high is not None
        inside += share.low <= 0.6 <= share.high
    # Three standard errors of the 400 sets are 0.05 to 0.075.
    assert inside / sets == pytest.approx(COVERAGE[contexts], abs=0.075)

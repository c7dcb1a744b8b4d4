"""The card's table of measurements: every line says of itself what it is."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest

from trephine.engine.certificates.card import _SHOWN, _table

FOLLOWING = ("the same", "that floor", "that agreement")


def rows(*names: str) -> list[str]:
    """Return the table's lines for measurements of these names."""
    measurements = [SimpleNamespace(name=name, value=0.125) for name in names]
    return _table(SimpleNamespace(measurements=measurements)).splitlines()[2:]


def test_the_median_is_shown():
    """Between the mean and the tail."""
    shown = rows("kl_intervened_exported_p99", "kl_intervened_exported_p50", "kl_intervened_exported_mean")
    assert shown[1] == "| the same, median | 0.125 |"


@pytest.mark.parametrize("start", FOLLOWING)
def test_a_line_that_points_back_follows_what_it_points_to(start):
    """`the same` and its like stand below a line of the same quantity, not of another one."""
    for (before, _), (name, text) in pairwise(_SHOWN):
        if text.startswith(start):
            quantity = name.removeprefix("noise_").split("_")[0]
            assert quantity in before.split("_"), (before, name)


def test_the_floor_where_features_fire_is_no_agreement():
    """It stands directly below the floor over all positions."""
    names = [name for name, _ in _SHOWN]
    at = names.index("noise_floor_dtype_firing_mean")
    assert names[at - 1] == "noise_floor_dtype_mean"
    assert "floor" in _SHOWN[at][1]


@pytest.mark.parametrize(("environment", "each"), [({"greedy_tokens": "48"}, ", 48 each"), ({}, "")])
def test_how_many_tokens_were_continued_is_what_was_done(environment, each):
    """A model with a short context is not continued by 64; certificates from before do not say."""
    measurements = [SimpleNamespace(name="greedy_match", value=1.0)]
    table = _table(SimpleNamespace(measurements=measurements, environment=environment)).splitlines()
    assert table[2] == f"| greedy tokens agreed on before the first difference{each} | 1 |"

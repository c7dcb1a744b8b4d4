"""What a verification says of comparisons that decide nothing."""

from __future__ import annotations

from dataclasses import replace
from math import nan

import pytest

from trephine.domain.findings import Figure
from trephine.domain.verification import Comparison, Examination, Measurement, Predictor, Standing
from trephine.engine.verification.choosing import ZERO
from trephine.engine.verification.doubts import comparison_caveats, count_caveats
from trephine.engine.verification.statistics import standing


def examined(baseline: Predictor, value: float, low: float, high: float, *, nodes: int = 120) -> Examination:
    """One comparison of paths, over so many single nodes."""
    difference = Figure(name="difference of rank correlations", value=value, low=low, high=high)
    compared = Comparison(
        predictor=Predictor.PATHS,
        baseline=baseline,
        difference=difference,
        standing=standing(difference),
        how="",
    )
    one, group = (
        Measurement(ablations=kind, stratum="", nodes=1, shown=0.0, paths=0.0, measured=0.0)
        for kind in ("single nodes", "random groups")
    )
    return Examination(
        title="the circuit",
        replacement="tc",
        graph_features=10,
        circuit_features=5,
        first_position=0,
        baseline=1.0,
        agreements=(),
        comparisons=(compared,),
        depths=(),
        faithfulness=(),
        worst_case=None,
        measurements=(one,) * nodes + (group,) * 7,
    )


def test_what_is_not_told_apart_is_said_with_what_would_decide_it():
    """The interval that holds 0, and how many ablations would take it away: four times as many halve it."""
    (said,) = comparison_caveats(examined(Predictor.ACTIVATION_GRADIENT, -0.1, -0.3, 0.1))
    assert said.startswith("INCONCLUSIVE, `paths of the graph` against `activation x gradient`: over 120 ")
    assert "differ by -0.10" in said
    assert "-0.30 to +0.10, holds 0" in said
    assert "neither way" in said
    assert "about 480 would decide it (`nodes`, `--nodes`; now 120)" in said


@pytest.mark.parametrize("value", [0.0, 0.001])
def test_what_no_number_of_ablations_decides_is_said_so(value):
    """No number is named that could never be asked for."""
    (said,) = comparison_caveats(examined(Predictor.PERMUTED, value, -0.2, 0.2))
    assert "would hardly decide it" in said
    assert "about" not in said


def test_an_ablation_without_a_number_is_no_close_race():
    """It is inconclusive for another reason."""
    (said,) = comparison_caveats(examined(Predictor.MAGNITUDE, nan, nan, nan))
    assert "gave no number" in said
    assert "interval" not in said


def test_why_paths_lose_to_the_gradient_is_said():
    """They hold what the gradient lets follow; of other baselines there is no such reason."""
    (said,) = comparison_caveats(examined(Predictor.ACTIVATION_GRADIENT, -0.5, -0.7, -0.3))
    assert said.startswith("DOES NOT BEAT")
    assert "lower by 0.50" in said
    assert "hold attention patterns" in said
    assert comparison_caveats(examined(Predictor.MAGNITUDE, -0.5, -0.7, -0.3)) == []


def test_what_beats_needs_no_word():
    """The table says it."""
    found = examined(Predictor.PERMUTED, 0.5, 0.3, 0.7)
    assert found.comparisons[0].standing is Standing.BEATS
    assert comparison_caveats(found) == []


def of_nodes(own: int, outside: int) -> Examination:
    """Single nodes of the graph, and features that it leaves out."""
    found = examined(Predictor.PERMUTED, 0.5, 0.4, 0.6, nodes=own + outside)
    first = replace(found.measurements[0], stratum=ZERO)
    return replace(found, measurements=(*found.measurements[outside:], *(first,) * outside))


def test_few_ablations_are_said_in_words():
    """How many of the graph's own, how many beside, and what gives more; of enough nothing is said."""
    (said,) = count_caveats(of_nodes(64, 56), 64, 120)
    assert said.startswith("Few ablations: 64 single nodes of the graph were ablated, of 64 features")
    assert "the other 56 of 120 single nodes are features that it leaves out" in said
    assert "`max_feature_nodes`" in said
    assert count_caveats(of_nodes(100, 20), 100, 120) == []
    assert count_caveats(of_nodes(83, 17), 300, 100) == [], "as many as were asked for, of more"


def test_fewer_ablations_than_were_asked_for_are_told():
    """Where neither the graph nor what lies outside has more."""
    few, less = count_caveats(of_nodes(10, 30), 10, 120)
    assert few.startswith("Few ablations: 10 ")
    assert less.startswith("40 single nodes were ablated, not 120 as asked for")

"""Verifying with errors dropped: what that alone does to the target is no ablation's, in figures or words."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import isnan

import pytest
import torch

from tests.unit.engine.verification.test_several_sets import (
    QUICK,
    both,
    features,
    found,
    subject_of,
    verified,
)
from trephine.domain.commands import Progress
from trephine.domain.interventions import ErrorTerm
from trephine.domain.verification import (
    Examination,
    Faithfulness,
    Substitute,
    VerificationOptions,
    VerificationReport,
)
from trephine.engine.models.quanta import finish
from trephine.engine.verification import faithfulness
from trephine.engine.verification.choosing import given_groups
from trephine.engine.verification.doubts import group_caveats, rising_caveats
from trephine.engine.verification.faithfulness import measure_faithfulness
from trephine.engine.verification.subject import Subject


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@cache
def subject(error_term: ErrorTerm) -> Subject:
    """A circuit over two sets, opened."""
    return subject_of(error_term)


@cache
def report(error_term: ErrorTerm) -> VerificationReport:
    """A quick verification of it."""
    hosted = both()
    return verified(hosted, found(hosted, "attention"), control=False, error_term=error_term)


def measured(monkeypatch, one: Subject, kept: list[float], removed: list[float]) -> Faithfulness:
    """What is made of given runs: everything ablated, the circuit alone and 20 random ones; those ablated."""
    waiting = iter((torch.tensor(kept, dtype=torch.float64), torch.tensor(removed, dtype=torch.float64)))

    def run(prompt, masks, become, stage):
        yield Progress(stage=stage, done=1, total=1)
        return next(waiting)

    monkeypatch.setattr(faithfulness, "_run", run)
    options = VerificationOptions(**QUICK)
    return finish(measure_faithfulness(one, options, Substitute.ZERO, None))


@pytest.fixture
def examined() -> Examination:
    """One of real runs, made before any are put in their place."""
    return report(ErrorTerm.LIVE).given


@pytest.fixture
def dropped(monkeypatch) -> Subject:
    """A prompt whose target is 8, 3 with errors dropped."""
    one = subject(ErrorTerm.DROP)
    monkeypatch.setitem(one.prompt.__dict__, "unablated", 3.0)
    monkeypatch.setattr(type(one.prompt), "baseline", property(lambda prompt: 8.0))
    return one


def test_what_dropping_errors_takes_is_not_put_to_the_circuit(monkeypatch, dropped):
    """A circuit whose ablation adds to what errors leave is not necessary, far below the model as it is."""
    one = measured(monkeypatch, dropped, [1.0, 2.0, *[1.5] * 20], [3.2, *[3.0] * 20])
    assert (one.baseline, one.unablated) == (8.0, 3.0)
    assert one.necessity == pytest.approx(-0.1)  # of the plain model it would be 0.69
    assert one.p_necessary == 1.0
    assert one.faithfulness == pytest.approx(1 / 7)  # nearness to the model, errors and all
    assert one.p_sufficient == pytest.approx(1 / 21)
    half = measured(monkeypatch, dropped, [1.0, 2.0, *[1.5] * 20], [2.0, *[3.0] * 20])
    assert half.necessity == pytest.approx(0.5)
    assert half.p_necessary == pytest.approx(1 / 21)


def test_there_is_no_share_where_ablating_everything_adds(monkeypatch, examined, dropped):
    """Held against what errors leave, and said; against the plain model it looked like 200 % taken away."""
    one = measured(monkeypatch, dropped, [5.0, 2.0, *[1.5] * 20], [2.0, *[3.0] * 20])
    assert one.necessity is None
    [said] = rising_caveats(replace(examined, faithfulness=(one,)))
    assert "from +3.000 to +5.000, away from 0" in said
    still = measured(monkeypatch, dropped, [3.0, 3.0, *[3.0] * 20], [3.0, *[3.0] * 20])
    assert isnan(still.p_necessary)  # nothing that was ablated moved the target


def test_a_target_that_dropping_turns_round_is_taken_away_from_there(monkeypatch, dropped):
    """Where errors leave -3 of a target of 8, what takes away raises it."""
    monkeypatch.setitem(dropped.prompt.__dict__, "unablated", -3.0)
    one = measured(monkeypatch, dropped, [-1.0, 2.0, *[1.5] * 20], [-2.0, *[-3.0] * 20])
    assert one.necessity == pytest.approx(0.5)
    assert one.p_necessary == pytest.approx(1 / 21)


@pytest.mark.parametrize("error_term", list(ErrorTerm))
def test_what_is_reported_counts_from_where_nothing_is_ablated(error_term):
    """In the real runs; live and frozen that is the model itself."""
    hosted_report = report(error_term)
    assert hosted_report.given.faithfulness
    for one in hosted_report.given.faithfulness:
        assert one.unablated is not None
        moved = abs(one.unablated - one.baseline)
        assert (moved > 0.05) == (error_term is ErrorTerm.DROP)
        if error_term is ErrorTerm.LIVE:
            assert moved == 0
        if one.necessity is not None:
            share = (one.unablated - one.removed) / (one.unablated - one.empty)
            assert one.necessity == pytest.approx(share)
        else:
            taken = (one.unablated - one.empty) / one.unablated
            assert taken <= 0.1 or abs(one.unablated - one.empty) <= 0.05


@pytest.mark.parametrize("error_term", list(ErrorTerm))
def test_words_say_what_becomes_of_errors(error_term):
    """That error nodes stay is said where they do, in every figure's words and in the caveat."""
    said = report(error_term)
    [caveat] = [one for one in said.caveats if one.startswith("Necessity and sufficiency are about")]
    drops = error_term is ErrorTerm.DROP
    assert ("attention, error nodes and what no layer covers stay in the model" in caveat) == (not drops)
    for one in said.given.faithfulness:
        assert one.how.endswith("error nodes and attention kept") == (not drops)
        assert ("error nodes dropped" in one.how) == drops
    if drops:
        one = said.given.faithfulness[0]
        assert f"from {one.baseline:+.3f} to {one.unablated:+.3f}" in caveat
        assert f"necessity counts from {one.unablated:+.3f}" in one.how


def test_groups_of_one_feature_are_no_supernodes():
    """They are single nodes, which are counted already; how many were left out is said."""
    one = subject(ErrorTerm.LIVE)
    later = [n for n in one.kept if one.graph.position[n] > 0]
    first = next(n for n in range(len(one.graph.position)) if n not in features(one.circuit))
    groups = [later[:1], later[1:3], [later[4], later[4], first], []]
    assert given_groups(one.graph, groups) == [later[1:3]]
    [caveat] = group_caveats(one.graph, groups)
    assert "3 of 4 groups" in caveat
    assert group_caveats(one.graph, groups[1:2]) == group_caveats(one.graph, []) == []

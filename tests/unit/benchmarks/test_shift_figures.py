"""Figures of arms, their paired intervals, and gates that can be missed."""

from __future__ import annotations

import pytest
import torch

from benchmarks.shift_figures import Table, data_gates, scr, targets

SEEDS, PER_GROUP = 3, 40
LABELS = [[y for y in (0, 1) for _ in (0, 1) for _ in range(PER_GROUP)] for _ in range(SEEDS)]
ATTRIBUTES = [[a for _ in (0, 1) for a in (0, 1) for _ in range(PER_GROUP)] for _ in range(SEEDS)]


def noisy(truth: list[list[int]], share: float, seed: int) -> list[list[int]]:
    """Flip a share of the decisions."""
    generator = torch.Generator().manual_seed(seed)
    decided = torch.tensor(truth)
    flips = torch.rand(decided.shape, generator=generator) < share
    return torch.where(flips, 1 - decided, decided).tolist()


@pytest.fixture(scope="module")
def table() -> Table:
    """The original follows the attribute; the oracle errs on 5 %; deletion and LEACE lie between."""
    followed = [[a if row % 10 else y for row, (y, a) in enumerate(zip(ys, as_, strict=True))]
                for ys, as_ in zip(LABELS, ATTRIBUTES, strict=True)]  # fmt: skip
    return Table(
        {
            "original": followed,
            "token deletion": noisy(LABELS, 0.3, 1),
            "LEACE": noisy(LABELS, 0.2, 2),
            "oracle": noisy(LABELS, 0.05, 3),
            "good": noisy(LABELS, 0.05, 3),
        },
        LABELS,
        ATTRIBUTES,
    )


def test_figures_are_of_groups_that_weigh_the_same(table):
    """A head that follows the attribute but in every tenth text: crossed groups at 10 %."""
    assert table.figure("original", "worst group").value == pytest.approx(0.1)
    assert table.figure("original", "label accuracy").value == pytest.approx(0.55)
    assert table.figure("original", "agreement").value == pytest.approx(0.95)
    assert table.figure("original", "ambiguous accuracy").value == pytest.approx(1.0)
    assert table.texts == (SEEDS * PER_GROUP, SEEDS)


def test_intervals_hold_the_value_and_a_pair_of_equal_arms_has_none(table):
    """Paired: the same decisions differ by nothing in every resample."""
    figure = table.figure("LEACE", "label accuracy")
    assert figure.low < figure.value < figure.high
    assert 0.02 < figure.high - figure.low < 0.2
    same = table.difference("good", "oracle", "worst group")
    assert (same.low, same.value, same.high) == (0.0, 0.0, 0.0)
    apart = table.difference("LEACE", "oracle", "label accuracy")
    assert apart.high < 0


def test_resamples_keep_every_text_in_its_seed_and_group():
    """One seed right, one wrong: accuracy of resampled seeds is 0, a half or 1, and nothing between."""
    ys, as_ = LABELS[:2], ATTRIBUTES[:2]
    wrong = [1 - y for y in ys[1]]
    measured = Table({"arm": [ys[0], wrong]}, ys, as_)
    figure = measured.figure("arm", "label accuracy")
    assert (figure.low, figure.value, figure.high) == (0.0, 0.5, 1.0)


def test_gates_hold_and_are_missed(table):
    """The data set counts; an arm like the oracle meets all targets, LEACE none of the first two."""
    assert [gate.holds for gate in data_gates(table)] == [True, True, True]
    assert [gate.holds for gate in targets(table, "good")] == [True, True, True]
    assert [gate.holds for gate in targets(table, "LEACE")][:2] == [False, False]
    easy = Table(
        {"original": LABELS, "token deletion": LABELS, "LEACE": LABELS, "oracle": LABELS}, LABELS, ATTRIBUTES
    )
    assert [gate.holds for gate in data_gates(easy)] == [False, False, False]


def test_targets_are_held_by_the_oracle_that_is_named(table):
    """An arm that errs as often as LEACE is within the targets of LEACE, and not of the oracle."""
    assert [gate.holds for gate in targets(table, "LEACE", "LEACE")] == [True, True, True]
    assert [gate.holds for gate in targets(table, "token deletion", "LEACE")][:2] == [False, False]


def test_scr_is_the_share_of_the_gap_that_is_closed(table):
    """1 for the oracle, 0 for the original, and 0 where there is no gap."""
    assert scr(table, "oracle") == pytest.approx(1.0)
    assert scr(table, "original") == 0.0
    assert 0.4 < scr(table, "LEACE") < 0.8


def test_ten_points_are_ten_points_in_float32():
    """29 of 30 less 26 of 30 is 0.0999999 there, and the gate holds; a text less is not enough."""
    ys, as_ = [[0] * 60 + [1] * 60], [([0] * 30 + [1] * 30) * 2]

    def wrong(count: int) -> list[list[int]]:
        return [[1 - y if row < count else y for row, y in enumerate(ys[0])]]

    for missed, holds in ((4, True), (3, False)):
        arms = {
            "original": wrong(30),
            "oracle": wrong(1),
            "token deletion": wrong(missed),
            "LEACE": wrong(missed),
        }
        gates = data_gates(Table(arms, ys, as_))
        assert [gate.holds for gate in gates] == [True, holds, holds]


@pytest.mark.parametrize(("wrong", "holds"), [(86, True), (87, False)])
def test_two_points_are_within_two_points(wrong, holds):
    """93.4 less 91.4 per cent is more than 2 in float32."""
    ys = [[y for y in (0, 1) for _ in range(2000)]]
    as_ = [[a for _ in (0, 1) for a in (0, 1) for _ in range(1000)]]

    def erring(count: int) -> list[list[int]]:
        return [[1 - y if place < count else y for place, y in enumerate(ys[0])]]

    measured = Table({"oracle": erring(66), "ours": erring(wrong)}, ys, as_)
    assert targets(measured, "ours")[0].holds is holds

"""P-values of few texts: Student's tail is right far out, and a silent cell is not known for sure."""

from __future__ import annotations

import pytest
import torch

from trephine.engine.spurious.tails import contrast_tail, student_tail, variances

# mpmath.betainc(freedom / 2, 1 / 2, 0, freedom / (freedom + t**2), regularized=True) with 40 digits
TAILS = (
    (7, 0.5, 0.6324071356892842),
    (7, 2.0, 0.08561932856297608),
    (7, 12.0, 6.3583103781851e-06),
    (7, 40.0, 1.590217998485037e-09),
    (1, 1000.0, 0.0006366195601611178),
    (14, 9.0, 3.3883765850711805e-07),
    (99, 1.2, 0.23300312767040252),
    (99, 8.5, 2.0134566533725383e-13),
    (2000, 5.0, 6.232897835546038e-07),
    (2000, 30.0, 1.370773019112611e-163),
)


@pytest.mark.parametrize(("freedom", "statistic", "expected"), TAILS)
def test_the_tail_is_students(freedom: int, statistic: float, expected: float) -> None:
    """In the body and far out, in either direction."""
    found = student_tail(torch.tensor([statistic, -statistic, 0.0], dtype=torch.float64), freedom)
    assert found.tolist() == pytest.approx([expected, expected, 1.0], rel=1e-10)


def test_a_statistic_beyond_all_numbers_has_no_tail() -> None:
    """No NaN where a difference has no variance at all."""
    assert student_tail(torch.tensor([1e24, 1e200], dtype=torch.float64), 255).tolist() == [0.0, 0.0]


def test_a_cell_that_is_silent_is_not_known_for_sure() -> None:
    """It is taken to vary as all cells together; one that varies more than they keeps its own variance."""
    silent = torch.zeros(8, 1, dtype=torch.float64)
    loud = torch.tensor([[0.0], [3.0]] * 8, dtype=torch.float64)
    own = float(loud.var())
    assert variances([silent, loud])[:, 0].tolist() == pytest.approx([own * 15 / 22, own])


def test_a_contrast_of_two_cells_is_welchs_statistic() -> None:
    """By hand: means 1 and 4, variances 2 / 3 and 8 / 3, four texts each; three degrees of freedom."""
    first = torch.tensor([[0.0], [1.0], [1.0], [2.0]], dtype=torch.float64)
    second = torch.tensor([[2.0], [4.0], [4.0], [6.0]], dtype=torch.float64)
    statistic = 3 / ((5 / 3 + 8 / 3) / 4) ** 0.5  # the first varies less than both together: 5 / 3
    expected = student_tail(torch.tensor([statistic], dtype=torch.float64), 3)
    assert contrast_tail([first, second], (1, -1)).tolist() == pytest.approx(expected.tolist())
    assert contrast_tail([first, first], (1, -1)).tolist() == [1.0]

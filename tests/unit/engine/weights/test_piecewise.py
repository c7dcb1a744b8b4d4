"""A feature under operations is a piecewise linear function; the curve must be the operations."""

from __future__ import annotations

from math import inf

import pytest
import torch

from trephine.engine.interventions.changes import affine
from trephine.engine.weights.piecewise import Difference, difference_of

P = torch.linspace(-3, 6, 4001, dtype=torch.float64) + 1e-4
THETA = 1.5
F = torch.where(P > THETA, P, 0.0)


def written(f, steps):
    """Apply operations to activations as the runtime does."""
    g = f
    for change, at_least in steps:
        new = change(g[:, None], g, ())[:, 0]
        g = new if at_least is None else torch.where(f >= at_least, new, g)
    return g


@pytest.mark.parametrize(
    "steps",
    [
        [(affine(factor=0.0), None)],
        [(affine(factor=0.3), None)],
        [(affine(factor=0.0, shift=2.0), None)],
        [(affine(low=0.5, high=3.0), None)],
        [(affine(shift=1.0), None), (affine(high=2.2), None), (affine(factor=-2.0), None)],
        [(affine(factor=-1.0), None), (affine(low=-3.0, high=-2.0), None)],
        [(affine(factor=0.0, shift=-7.0), 2.0)],
        [(affine(factor=0.0, shift=-7.0), 0.1)],
        [(affine(factor=0.0, shift=-7.0), 0.0)],
        [(affine(factor=2.0), 2.0), (affine(high=5.0), None), (affine(factor=0.0), 4.0)],
    ],
)
def test_the_difference_is_what_the_operations_add(steps):
    """At every pre-activation but the thresholds themselves."""
    found = difference_of(steps, THETA)(P)
    assert torch.allclose(found, written(F, steps) - F, atol=1e-12)


def test_what_changes_nothing_has_no_knots():
    """A factor of 1, and factors that cancel."""
    found = difference_of([(affine(factor=2.0), None), (affine(factor=0.5), None)], THETA)
    assert (found.constant, found.knots) == (0.0, ())


def test_a_plain_relu_needs_no_jump():
    """At a threshold of 0 activation and pre-activation meet: one bend, hence one neuron."""
    found = difference_of([(affine(factor=0.0), None)], 0.0)
    assert [(knot.jump, knot.bend) for knot in found.knots] == [(0.0, -1.0)]


def test_what_never_fires_is_changed_nowhere_but_by_a_constant():
    """Thresholds of features that were switched off, and conditions that nothing meets, are infinite."""
    ablated = [(affine(factor=0.0), None)]
    assert difference_of(ablated, inf) == Difference(constant=0.0, knots=())
    raised = [(affine(low=0.5), None), (affine(shift=1.0), 0.1)]
    assert difference_of(raised, inf) == Difference(constant=0.5, knots=())
    assert difference_of([(affine(factor=0.0), inf)], THETA) == Difference(constant=0.0, knots=())

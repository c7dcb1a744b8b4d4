"""Whether an edit takes away, puts in, or does neither: by operation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.engine.interventions import neuron
from trephine.domain.edit_kinds import is_removing, is_steering
from trephine.domain.interventions import (
    Ablate,
    Add,
    AddNormScaled,
    Clamp,
    ErrorTerm,
    MeanAblate,
    Mode,
    ProjectOut,
    Resample,
    Scale,
    SetTo,
)


@pytest.mark.parametrize(
    ("operation", "takes", "puts"),
    [
        (Ablate(), True, False),
        (ProjectOut(), True, False),
        (MeanAblate(text="a"), True, False),
        (Resample(donor="a"), True, False),
        (Add(amount=-2.0), False, True),
        (Add(amount=0.0), False, False),
        (AddNormScaled(fraction=0.1), False, True),
        (AddNormScaled(fraction=0.0), False, False),
        (SetTo(value=0.0), True, False),
        (SetTo(value=3.0), False, True),
        (Scale(factor=0.5), True, False),
        (Scale(factor=1.0), False, False),
        (Scale(factor=3.0), False, True),
        (Scale(factor=-2.0), True, True),
        (Clamp(high=2.0), True, False),
        (Clamp(low=0.0), True, False),
        (Clamp(low=1.0), False, True),
        (Clamp(low=1.0, high=2.0), True, True),
    ],
)
def test_every_operation_has_its_kind(operation, takes, puts):
    """And at strength 0 none does anything."""
    change = neuron(1, 7, operation)
    assert (is_removing([change]), is_steering([change])) == (takes, puts)
    still = replace(change, mode=Mode(strength=0.0))
    assert (is_removing([still]), is_steering([still])) == (False, False)


def test_a_dropped_error_term_is_taken_away():
    """Whatever the operation; and an edit is of every kind that one of its interventions is of."""
    dropped = replace(neuron(1, 7, Scale(factor=1.0)), error_term=ErrorTerm.DROP)
    assert is_removing([dropped])
    assert is_removing([neuron(1, 7, Add(amount=1.0)), dropped])
    assert is_steering([neuron(1, 7, Add(amount=1.0)), dropped])
    assert not is_removing([])
    assert not is_steering([])

"""What an export may be asked for."""

from __future__ import annotations

import pytest

from trephine.domain.errors import InvalidRequestError
from trephine.domain.exports import ExportOptions


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_fit_must_carry_something_and_no_more_than_all(share):
    """None of it is a copy of the parent, and would pass for the edit."""
    with pytest.raises(InvalidRequestError, match="above 0 and at most 1") as caught:
        ExportOptions(min_recovery=share)
    assert caught.value.context["field"] == "min_recovery"


@pytest.mark.parametrize("share", [1e-6, 0.9, 1.0])
def test_shares_between_are_taken(share):
    """Up to all of it."""
    assert ExportOptions(min_recovery=share).min_recovery == share

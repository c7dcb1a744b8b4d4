"""What attacks brought back crosses the wire whole; what was not attacked stays unset."""

from __future__ import annotations

import pytest

from trephine.client.decoding import decode
from trephine.client.types import Removal as Decoded
from trephine.domain.removal import AttackFigure, Interval, Removal
from trephine.rpc.wire.removal import removal_to_wire


@pytest.mark.parametrize("verdict", ["removed", "suppressed", "inconclusive"])
@pytest.mark.parametrize("kind", ["recovery", "benign", "few_shot"])
def test_removal_there_and_back(verdict, kind):
    """Every word, every attack, every number."""
    interval = Interval(value=0.25, low=-0.5, high=0.75)
    figure = AttackFigure(
        kind=kind,
        strength=0.03,
        returned=interval,
        unrelated=Interval(value=0, low=0, high=0),
        excess=interval,
    )
    sent = Removal(
        verdict=verdict, why="why", figures=(figure, figure), n_tokens=9, n_contexts=5, effect=0.5,
        unrelated_behaviours=3, seed=7,
    )  # fmt: skip
    message = removal_to_wire(sent)
    assert message is not None
    found = decode(Decoded, message)
    assert (found.verdict.value, found.figures[1].kind.value) == (verdict, kind)
    assert (found.why, found.n_tokens, found.n_contexts, found.seed) == ("why", 9, 5, 7)
    assert found.figures[0].excess.low == -0.5
    assert found.figures[0].strength == 0.03


def test_no_attack_is_not_an_empty_one():
    """None, not an unspecified word."""
    assert removal_to_wire(None) is None

"""What attacks brought back crosses the wire whole; what was not attacked stays unset."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trephine.client.decoding import decode
from trephine.client.types import Removal as Decoded
from trephine.domain.errors import InvalidRequestError
from trephine.domain.removal import AttackFigure, Interval, Removal
from trephine.rpc.wire.exports import export_options_from_wire
from trephine.rpc.wire.removal import removal_to_wire
from trephine.v1 import edit_service_pb2 as pb


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
        unrelated_most=0.0,
        unrelated_behaviours=3,
        n_tokens=16,
        n_contexts=4,
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
    assert (found.figures[0].n_tokens, found.figures[0].n_contexts) == (16, 4)
    assert (found.figures[0].unrelated_most, found.figures[0].unrelated_behaviours) == (0.0, 3)
    assert removal_to_wire(replace(sent, figures=(replace(figure, unrelated_most=None),))) is not None


def test_how_long_an_attack_trains_is_asked_within_bounds():
    """50 unless asked; beyond the bounds, or without an attack, the field is named."""

    def steps(**fields: int | bool) -> int:
        return export_options_from_wire(pb.ExportCheckpointRequest(**fields)).attack_steps

    assert steps() == steps(attack=True) == 50
    assert steps(attack=True, attack_steps=200) == 200
    for fields in ({"attack": True, "attack_steps": 49}, {"attack": True, "attack_steps": 201}):
        with pytest.raises(InvalidRequestError, match="between 50 and 200"):
            steps(**fields)
    with pytest.raises(InvalidRequestError) as refused:
        steps(attack_steps=100)
    assert refused.value.context["field"] == "attack_steps"


def test_no_attack_is_not_an_empty_one():
    """None, not an unspecified word."""
    assert removal_to_wire(None) is None

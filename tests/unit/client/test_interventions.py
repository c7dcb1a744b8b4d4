from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from trephine.client import Where, activation, direction, feature, site
from trephine.client.errors import InvalidRequestError
from trephine.client.interventions import Head, Intervention
from trephine.client.requests import messages
from trephine.client.types.common import FeatureRef
from trephine.v1 import interventions_pb2

BUILT = [
    feature(1, 2).ablate(),
    feature(1, 2, replacement="tc").scale(0.0),
    feature(1, 2).set(3.5),
    feature(1, 2).clamp(high=1.0),
    feature(1, 2).clamp(-1.0, 0.0),
    feature(1, 2).add(-2.0).generating(),
    feature(1, 2).project_out().labelled("why \u2028"),
    feature(1, 2).mean_ablate("some text"),
    direction("resid_post", 5, [0.0, 1.0]).add_norm_scaled(0.5),
    activation("mlp_out", 0).resample("a donor"),
    feature(0, 0).ablate(
        at=Where(positions=(-1, 0), tokens=(7,), phases=("prompt",), exclude_positions=(3,))
    ),
    feature(0, 0).ablate(at=Where(exclude_tokens=(1,))).at(4, 5),
    dataclasses.replace(
        feature(0, 0).ablate(),
        last_layer=0,
        frozen_patterns=True,
        heads=(Head(layer=1, head=2, role="k"),),
        condition=(FeatureRef(layer=0, index=1), 0.0),
        error_term="drop",
    ),
]


@pytest.mark.parametrize("built", BUILT, ids=lambda built: built.change.kind)
def test_messages_carry_everything_there_and_back(built: Intervention):
    """What is built is what the server's echo decodes to, zeros and negatives included."""
    wire = interventions_pb2.Intervention.FromString(built.to_message().SerializeToString())
    assert Intervention.from_message(wire) == built


def test_operations_cover_the_contract():
    """Every operation of the message can be built."""
    oneof = interventions_pb2.InterventionOperation.DESCRIPTOR.oneofs_by_name["operation"]
    assert {built.change.kind for built in BUILT} == {field.name for field in oneof.fields}


def test_a_plain_intervention_selects_everything():
    """Without `at` no selector is sent: every position of every phase, as weights would."""
    assert not feature(1, 2).ablate().to_message().HasField("selector")


@pytest.mark.parametrize("name", ["positions", "tokens", "phases"])
@pytest.mark.parametrize("empty", [(), [], (place for place in ())], ids=["tuple", "list", "generator"])
def test_a_choice_that_found_nothing_does_not_become_everything(name: str, empty: Any):
    """An empty list is refused, and the error says what to do; left out it means all."""
    with pytest.raises(InvalidRequestError, match="leave it out to select all") as caught:
        Where(**{name: empty})
    assert caught.value.field == f"where.{name}"
    with pytest.raises(InvalidRequestError, match="leave it out to select all"):
        feature(1, 2).ablate().at(*[place for place in range(9) if place > 9])
    with pytest.raises(InvalidRequestError, match="leave it out to select all"):
        dataclasses.replace(Where(exclude_tokens=(1,)), **{name: empty})


def test_what_is_chosen_by_a_generator_is_kept():
    """It is read once, so that a second message says what the first did; empty exclusions do no harm."""
    places, tokens = (place for place in (3, 4)), (token for token in (9,))
    built = feature(1, 2).ablate(at=Where(positions=places, exclude_tokens=tokens))  # type: ignore[arg-type]
    sent = [built.to_message().selector for _ in range(2)]
    assert [(one.positions, one.exclude_tokens) for one in sent] == [([3, 4], [9])] * 2
    assert Where(exclude_positions=(), exclude_tokens=()) == Where()


def test_forgotten_operations_and_unknown_sites_are_refused():
    """`feature(1, 2)` alone is no intervention, and a site's name must be one of the contract's."""
    with pytest.raises(InvalidRequestError, match="ablate"):
        messages([feature(1, 2)])  # type: ignore[list-item]
    with pytest.raises(InvalidRequestError, match="resid_post"):
        site("resid", 3)

"""The intervention language across the wire."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from hypothesis import given, settings

from tests.unit.rpc.strategies import interventions
from trephine.app.storage.records import decode
from trephine.client import types as client
from trephine.client.decoding import decode as client_decode
from trephine.domain import interventions as domain
from trephine.domain.errors import InvalidRequestError, NonFiniteValueError, TrephineError
from trephine.domain.interventions import ErrorTerm, Intervention, Mode, PatternMode, Selector
from trephine.domain.sites import NEURONS
from trephine.rpc.wire.interventions import (
    applied_to_wire,
    intervention_from_wire,
    intervention_to_wire,
    interventions_from_wire,
)
from trephine.v1 import common_pb2
from trephine.v1 import interventions_pb2 as pb


def feature(**fields: Any) -> pb.InterventionTarget:
    return pb.InterventionTarget(feature=common_pb2.FeatureRef(**fields))


def ablate(**fields: Any) -> pb.Intervention:
    return pb.Intervention(
        target=feature(layer=1, index=2), operation=pb.InterventionOperation(ablate=Empty()), **fields
    )


@given(intervention=interventions)
@settings(max_examples=300, deadline=None)
def test_whole_language_survives_the_wire(intervention: Intervention):
    """Every intervention that the domain can say is read back as it was, through real bytes."""
    data = intervention_to_wire(intervention).SerializeToString()
    assert intervention_from_wire(pb.Intervention.FromString(data)) == intervention


def test_unset_fields_mean_what_the_contract_says():
    """A bare intervention is everywhere, propagates with live patterns, keeps the live error."""
    read = intervention_from_wire(ablate())
    assert read.selector == Selector()
    assert read.mode == Mode(last_layer=None, patterns=PatternMode.LIVE, heads=())
    assert (read.error_term, read.condition) == (ErrorTerm.LIVE, None)
    assert read.target.feature.replacement == NEURONS


def test_last_layer_zero_is_not_unset():
    """An explicit layer 0 differs from no layer."""
    read = intervention_from_wire(ablate(mode=pb.InterventionMode(last_layer=0)))
    assert read.mode.last_layer == 0


@pytest.mark.parametrize("changed", [None, 0, 3])
def test_the_echo_tells_none_from_not_counted(changed: int | None):
    """Records of before changes were counted do not say that nothing changed."""
    record = {"index": 0, "layer": 1, "positions": 7, "mean_change": 0.5, "max_change": 2.0}
    stored = record if changed is None else {**record, "changed": changed}
    (message,) = applied_to_wire([decode(domain.Applied, json.dumps(stored).encode(), what="an echo")])
    found = client_decode(client.Applied, pb.Applied.FromString(message.SerializeToString()))
    assert (found.positions, found.changed) == (7, changed)


NAN = math.nan
REFUSED = {
    "target": pb.Intervention(operation=pb.InterventionOperation(ablate=Empty())),
    "operation": pb.Intervention(target=feature()),
    "target.feature.layer": pb.Intervention(
        target=feature(layer=-1), operation=pb.InterventionOperation(ablate=Empty())
    ),
    "target.site.kind": pb.Intervention(
        target=pb.InterventionTarget(site=common_pb2.Site(layer=1)),
        operation=pb.InterventionOperation(ablate=Empty()),
    ),
    "operation.scale": pb.Intervention(target=feature(), operation=pb.InterventionOperation(scale=NAN)),
    "operation.add": pb.Intervention(target=feature(), operation=pb.InterventionOperation(add=math.inf)),
    "operation.clamp": pb.Intervention(
        target=feature(), operation=pb.InterventionOperation(clamp=pb.ClampRange())
    ),
    "operation.clamp.high": pb.Intervention(
        target=feature(), operation=pb.InterventionOperation(clamp=pb.ClampRange(low=0, high=NAN))
    ),
    "operation.resample_donor": pb.Intervention(
        target=feature(), operation=pb.InterventionOperation(resample_donor="")
    ),
    "target.direction.vector": pb.Intervention(
        target=pb.InterventionTarget(direction=pb.Direction()),
        operation=pb.InterventionOperation(project_out=Empty()),
    ),
    "target.direction.vector[1]": pb.Intervention(
        target=pb.InterventionTarget(direction=pb.Direction(vector=[1, NAN])),
        operation=pb.InterventionOperation(project_out=Empty()),
    ),
    "selector.phases[0]": ablate(selector=pb.Selector(phases=[pb.PHASE_UNSPECIFIED])),
    "mode.heads[0].role": ablate(mode=pb.InterventionMode(heads=[pb.HeadInput(role="v")])),
    "mode.patterns": ablate(mode=pb.InterventionMode(patterns=9)),
    "condition.at_least": ablate(condition=pb.Condition(at_least=NAN)),
    "condition.feature.index": ablate(condition=pb.Condition(feature=common_pb2.FeatureRef(index=-2))),
    "error_term": ablate(error_term=17),
}


@pytest.mark.parametrize("path", sorted(REFUSED))
def test_refusals_name_the_field(path: str):
    """What is missing or out of its domain is refused with the path of its field in the whole list."""
    with pytest.raises(InvalidRequestError) as caught:
        interventions_from_wire([ablate(), REFUSED[path]])
    assert caught.value.context["field"] == f"interventions[1].{path}"


def test_nan_is_its_own_error():
    """A NaN strength is NON_FINITE_VALUE, whatever the operation."""
    for operation in ("scale", "set", "add", "add_norm_scaled"):
        message = pb.Intervention(target=feature(), operation=pb.InterventionOperation(**{operation: NAN}))
        with pytest.raises(NonFiniteValueError):
            intervention_from_wire(message)


@given(intervention=interventions)
@settings(max_examples=100, deadline=None)
def test_no_message_escapes_validation_untyped(intervention: Intervention):
    """Clearing any one part of a valid message yields an intervention or a typed error, never another."""
    whole = intervention_to_wire(intervention)
    for field in pb.Intervention.DESCRIPTOR.fields:
        broken = pb.Intervention.FromString(whole.SerializeToString())
        broken.ClearField(field.name)
        try:
            intervention_from_wire(broken)
        except TrephineError as error:
            assert "field" in error.context  # noqa: PT017

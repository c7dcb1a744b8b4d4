"""Global circuits on the wire: defaults that the contract states, refusals by field, figures whole."""

from __future__ import annotations

from math import nan
from typing import Any

import pytest

from tests.global_circuits import global_circuit
from tests.unit.app.house import model_info, small_circuit
from trephine.app.circuits.circuits import StoredCircuit
from trephine.app.circuits.global_circuit_costs import GlobalCost
from trephine.app.jobs.requests import GlobalCircuitRequest
from trephine.domain.circuits import GraphSet
from trephine.domain.errors import EmptyPromptError, InvalidRequestError, NonFiniteValueError, TrephineError
from trephine.domain.global_circuits import (
    CheckedGlobalCircuit,
    DiscoverGlobalCircuit,
    GlobalBounds,
    GrowthStart,
)
from trephine.domain.global_figures import EdgeWeighting
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.domain.targets import DirectionValue
from trephine.rpc.wire.circuits import circuit_to_wire
from trephine.rpc.wire.global_circuits import checked_to_wire, discover_global_from_wire
from trephine.v1 import circuit_targets_pb2, circuit_verification_pb2, common_pb2
from trephine.v1 import global_circuits_pb2 as pb

TEXTS: dict[str, Any] = {"model": "models/tiny", "training": ["a b", "c d"], "held_out": ["e f", "g h"]}
RESID = common_pb2.Site(kind=common_pb2.SITE_KIND_RESID_POST, layer=1)


def asked(**fields: Any) -> DiscoverGlobalCircuit:
    """What a request asks for."""
    return discover_global_from_wire(pb.DiscoverGlobalCircuitRequest(**{**TEXTS, **fields})).command


def test_defaults_are_the_domain_s():
    """A request with nothing but texts."""
    plain = DiscoverGlobalCircuit(training=("a b", "c d"), held_out=("e f", "g h"))
    found = discover_global_from_wire(pb.DiscoverGlobalCircuitRequest(**TEXTS))
    assert found == GlobalCircuitRequest(model="tiny", command=plain)


def test_every_option_arrives():
    """Zero means zero where it means something."""
    vector = circuit_targets_pb2.DirectionValue(site=RESID, vector=[1.0, 2.0], name="probe")
    found = asked(
        replacement="small",
        layers=[3, 1, 3],
        start_features=[common_pb2.FeatureRef(replacement="small", layer=1, index=2)],
        start_tokens=[" Paris"],
        start_direction=vector,
        weighting=pb.EDGE_WEIGHTING_ERA,
        max_nodes=10,
        max_edges_per_node=3,
        max_tokens=0,
        max_logits=0,
        candidates=20,
        min_active=2,
        context_tokens=16,
        verify_edges=0,
        bootstrap=100,
        seed=7,
    )
    direction = DirectionValue(site=Site(kind=SiteKind.RESID_POST, layer=1), vector=(1.0, 2.0), name="probe")
    assert found == DiscoverGlobalCircuit(
        training=("a b", "c d"),
        held_out=("e f", "g h"),
        replacement="small",
        layers=(3, 1),
        start=GrowthStart(
            features=(FeatureRef(replacement="small", layer=1, index=2),),
            tokens=(" Paris",),
            direction=direction,
        ),
        weighting=EdgeWeighting.ERA,
        bounds=GlobalBounds(nodes=10, edges_per_node=3, tokens=0, logits=0, candidates=20, min_active=2),
        context_tokens=16,
        verify_edges=0,
        bootstrap=100,
        seed=7,
    )


@pytest.mark.parametrize(
    ("fields", "field", "kind"),
    [
        ({"training": ["a b"]}, "training", InvalidRequestError),
        ({"held_out": []}, "held_out", InvalidRequestError),
        ({"held_out": ["e f", "a b"]}, "held_out[1]", InvalidRequestError),
        ({"training": ["a b", "a b"]}, "training[1]", InvalidRequestError),
        ({"training": ["a b", ""]}, "training[1]", EmptyPromptError),
        ({"layers": [0, -1]}, "layers[1]", InvalidRequestError),
        ({"start_tokens": [" a", ""]}, "start_tokens[1]", InvalidRequestError),
        ({"start_tokens": [" a", " a"]}, "start_tokens", InvalidRequestError),
        (
            {"start_features": [common_pb2.FeatureRef(replacement="other", layer=1, index=2)]},
            "start_features[0].replacement",
            InvalidRequestError,
        ),
        (
            {"start_direction": circuit_targets_pb2.DirectionValue(site=RESID, vector=[0.0])},
            "start_direction.vector",
            InvalidRequestError,
        ),
        (
            {"start_direction": circuit_targets_pb2.DirectionValue(site=RESID, vector=[nan])},
            "start_direction.vector",
            NonFiniteValueError,
        ),
        ({"weighting": 9}, "weighting", InvalidRequestError),
        ({"max_nodes": 1}, "max_nodes", InvalidRequestError),
        ({"candidates": 100}, "candidates", InvalidRequestError),
        ({"candidates": 10_000}, "candidates", InvalidRequestError),
        ({"context_tokens": 1}, "context_tokens", InvalidRequestError),
        ({"verify_edges": 1000}, "verify_edges", InvalidRequestError),
        ({"model": ""}, "model", InvalidRequestError),
    ],
)
def test_refusals_name_the_field(fields: dict[str, Any], field: str, kind: type[TrephineError]):
    """Before anything is done."""
    with pytest.raises(kind) as caught:
        asked(**fields)
    assert caught.value.context["field"] == field


def test_figures_are_told_whole():
    """Of every check with its verdicts; a circuit of a prompt has none."""
    stored = StoredCircuit(name="circuits/g1", create_time="", circuit=global_circuit())
    found = circuit_to_wire(stored).across
    assert (found.weighting, found.training, found.candidates) == (pb.EDGE_WEIGHTING_TWERA, 30, 60)
    assert [one.measured for one in found.transfer] == [
        pb.MEASURED_TOKENS_SOURCE_ACTIVE,
        pb.MEASURED_TOKENS_TARGET_ACTIVE,
    ]
    (first, _) = found.transfer
    assert [one.standing for one in first.comparisons] == [
        circuit_verification_pb2.STANDING_BEATS,
        circuit_verification_pb2.STANDING_DOES_NOT_BEAT,
        circuit_verification_pb2.STANDING_INCONCLUSIVE,
    ]
    assert [one.baseline for one in first.comparisons] == [1, 2, 3]
    assert first.spearman.value == 0.5
    assert (found.split_half.value, found.split_half_overlap, found.coverage.value) == (0.8, 0.7, 0.4)
    plain = StoredCircuit(name="circuits/c1", create_time="", circuit=small_circuit())
    assert not circuit_to_wire(plain).HasField("across")


def test_a_prediction_tells_texts_set_time_and_memory():
    """And finds nothing."""
    request = discover_global_from_wire(pb.DiscoverGlobalCircuitRequest(**TEXTS, replacement="small"))
    checked = CheckedGlobalCircuit(features=50, layers=(0, 1), training_tokens=2, held_out_tokens=4)
    spanned = GraphSet(name="small", content_hash="c" * 64)
    cost = GlobalCost(seconds=7.5, memory_bytes=5, tokens=10**9)
    found = checked_to_wire(request, model_info(), spanned, cost, checked)
    assert found.seconds == 7.5
    assert found.peak_extra_bytes == 5
    assert (found.across.features, found.across.candidates, found.across.training_tokens) == (50, 50, 2)
    assert [(one.name, one.content_hash) for one in found.sets] == [("small", "c" * 64)]
    assert list(found.layers) == [0, 1]
    assert not found.name

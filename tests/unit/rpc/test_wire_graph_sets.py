"""Circuits over several sets on the wire: what is asked, what is told, and what a difference says of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.circuits_of_sets import ATTENTION, MLPS, circuit_of_sets
from trephine.app.circuits.circuit_diff import compare
from trephine.app.circuits.circuits import StoredCircuit
from trephine.domain.circuits import Circuit, GraphSet
from trephine.domain.errors import InvalidRequestError
from trephine.domain.targets import ExplainedTarget, FeatureValue, TargetKind
from trephine.rpc.wire.circuit_queries import diff_to_wire
from trephine.rpc.wire.circuits import circuit_to_wire, discover_from_wire
from trephine.v1 import circuit_service_pb2 as pb
from trephine.v1 import circuit_targets_pb2 as targets


def request(*beside: str) -> pb.DiscoverCircuitRequest:
    target = targets.GraphTarget(feature=targets.FeatureValue(layer=3, index=4, replacement=ATTENTION))
    return pb.DiscoverCircuitRequest(prompt="a", target=target, replacement=MLPS, beside=beside)


def stored(circuit: Circuit) -> StoredCircuit:
    return StoredCircuit(name="circuits/1", create_time="t", circuit=circuit)


def test_a_discovery_names_its_sets():
    """All of them in order, and the set of a feature that is explained."""
    command = discover_from_wire(request(ATTENTION, "neurons"))
    assert command.sets == (MLPS, ATTENTION, "neurons")
    assert command.target == FeatureValue(layer=3, index=4, replacement=ATTENTION)


@pytest.mark.parametrize(
    ("beside", "field"), [((ATTENTION, ""), "beside[1]"), ((MLPS,), "beside"), ((ATTENTION,) * 2, "beside")]
)
def test_a_set_without_a_name_or_twice_is_refused(beside, field):
    """The error says where."""
    with pytest.raises(InvalidRequestError) as refused:
        discover_from_wire(request(*beside))
    assert refused.value.context["field"] == field


def test_a_circuit_tells_its_sets_and_layers():
    """Names with contents, the first set first; a circuit that does not know its layers has none."""
    message = circuit_to_wire(stored(circuit_of_sets()))
    assert [(one.name, one.content_hash) for one in message.sets] == [
        (MLPS, "c" * 64), (ATTENTION, "a" * 64),
    ]  # fmt: skip
    assert message.replacement == MLPS
    assert list(message.layers) == [0, 1]
    assert not circuit_to_wire(stored(replace(circuit_of_sets(), layers=None))).layers


def notes(first: Circuit, second: Circuit) -> list[str]:
    """What a difference says."""
    found = compare(first, second, sum_positions=False)
    return list(diff_to_wire([stored(first), stored(second)], found, False, 9, 9).caveats)


def test_a_difference_compares_sets_whatever_their_order():
    """Which features can match is told by set: shared, of another content, known by name alone."""
    one = circuit_of_sets()
    attention, mlps = GraphSet(name=ATTENTION, content_hash="a" * 64), GraphSet(name=MLPS)
    turned = replace(
        one, replacement=ATTENTION, set_hash="a" * 64, beside=(replace(mlps, content_hash="c" * 64),)
    )
    assert notes(one, turned) == []
    (alone,) = notes(one, replace(one, beside=()))
    assert f"({MLPS}+{ATTENTION}, {MLPS}): only features of {MLPS}, tokens, errors" in alone
    (changed,) = notes(one, replace(one, set_hash="d" * 64))
    assert f"of the name {MLPS}: only features of {ATTENTION}, tokens" in changed
    (unknown,) = notes(one, replace(turned, beside=(mlps,)))
    assert f"features of {MLPS} are matched by that name alone" in unknown
    assert attention in one.beside


def test_targets_of_other_sets_are_told_apart():
    """The set of an explained feature is on the wire, and a difference says that another was explained."""
    one, other = (
        replace(
            circuit_of_sets(),
            targets=(
                ExplainedTarget(
                    kind=TargetKind.FEATURE, label="f", position=0, share=1.0, value=1.0, replacement=name
                ),
            ),
            asked=FeatureValue(layer=1, index=0, replacement=name),
        )
        for name in (MLPS, ATTENTION)
    )
    for circuit, name in ((one, MLPS), (other, ATTENTION)):
        assert circuit_to_wire(stored(circuit)).targets[0].replacement == name
    assert notes(one, one) == []
    assert notes(one, other) == ["They explain different targets."]


def test_ends_of_edges_say_their_set_where_there_are_several():
    """Two features of one layer and index are told apart."""
    one = circuit_of_sets()
    found = compare(one, one, sum_positions=False)
    edges = diff_to_wire([stored(one), stored(one)], found, False, 9, 9).edges
    ends = {end for edge in edges for end in (edge.source, edge.target)}
    assert {f"{MLPS}:0:5 @0", f"{ATTENTION}:0:5 @0"} <= ends

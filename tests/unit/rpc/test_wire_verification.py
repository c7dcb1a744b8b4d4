"""Verifications across the wire: requests with their defaults, reports with every figure."""

from __future__ import annotations

import pytest

from trephine.app.circuits.circuit_verification import StoredVerification
from trephine.app.jobs.requests import VerifyRequest
from trephine.domain import verification as domain
from trephine.domain.errors import InvalidRequestError
from trephine.domain.findings import Figure
from trephine.domain.interventions import ErrorTerm
from trephine.domain.verification import Predictor, Standing, Substitute
from trephine.rpc.wire.circuit_verification import verification_to_wire, verify_from_wire
from trephine.v1 import circuit_verification_pb2 as pb
from trephine.v1 import interventions_pb2


def figure(value: float) -> Figure:
    """A number with an interval around it."""
    return Figure(name="f", value=value, low=value - 1, high=value + 1)


def examination() -> domain.Examination:
    """One row of every table."""
    numbers = {"baseline": 7.0, "kept": 2.0, "how": "zero, positions >= 1"}
    return domain.Examination(
        title="the circuit",
        replacement="tc",
        graph_features=256,
        circuit_features=31,
        first_position=4,
        baseline=7.0,
        agreements=(
            domain.Agreement(
                ablations="single nodes",
                predictor=Predictor.PATHS,
                count=100,
                spearman=figure(0.7),
                slope=figure(0.9),
                how="zero, positions >= 1",
            ),
        ),
        comparisons=(
            domain.Comparison(
                predictor=Predictor.PATHS,
                baseline=Predictor.PERMUTED,
                difference=figure(0.1),
                standing=Standing.INCONCLUSIVE,
                how="paired",
            ),
        ),
        depths=(
            domain.DepthAgreement(
                nearest=3, farthest=4, cosine=figure(0.6), nmse=figure(0.4), ablations=12, how="zero"
            ),
        ),
        faithfulness=(
            domain.Faithfulness(
                substitute=Substitute.MEAN,
                empty=-1.0,
                removed=3.0,
                faithfulness=None,
                necessity=0.5,
                random_circuits=20,
                random_kept=-0.5,
                random_removed=6.5,
                p_sufficient=0.048,
                p_necessary=0.0952,
                **numbers,
            ),
        ),
        worst_case=domain.WorstCase(
            substitute=Substitute.ZERO,
            relaxed=-20.0,
            rounded=-21.0,
            random=-3.0,
            steps=8,
            random_masks=32,
            ablated=50,
            outside=900,
            **numbers,
        ),
        measurements=(
            domain.Measurement(
                ablations="single nodes", stratum="outside", nodes=1, shown=0.1, paths=0.0, measured=0.2
            ),
        ),
    )


def stored(*, control: bool = True) -> StoredVerification:
    """A finished verification."""
    report = domain.VerificationReport(
        prompt="The capital of France is",
        target="' Paris' against ' Rome'",
        model="smollm2",
        weight_hash="ab" * 32,
        given=examination(),
        control=examination() if control else None,
        control_note="a random dictionary",
        caveats=("mind the sink",),
        seed=3,
        seconds=49.2,
        peak_extra_bytes=1 << 20,
    )
    return StoredVerification(
        name="circuitVerifications/v1",
        circuit="circuits/c1",
        create_time="2026-01-01T00:00:00Z",
        report=report,
    )


def test_defaults_are_those_of_the_contract():
    """What is left out is as the contract says; a counterfactual brings resampling."""
    request = pb.VerifyCircuitRequest(circuit="circuits/c1")
    assert verify_from_wire(request) == VerifyRequest(circuit="c1")
    options = verify_from_wire(pb.VerifyCircuitRequest(circuit="circuits/c1", counterfactual="b")).options
    assert options.substitutes == (Substitute.ZERO, Substitute.MEAN, Substitute.RESAMPLE)


def test_everything_that_is_said_arrives():
    """Thresholds, groups, counts, a zero that means something, and a control that is not wanted."""
    found = verify_from_wire(
        pb.VerifyCircuitRequest(
            circuit="circuits/c1",
            model="models/tiny",
            node_threshold=0.5,
            supernodes=[pb.NodeSet(nodes=[1, 2]), pb.NodeSet(nodes=[5])],
            substitutes=[pb.SUBSTITUTE_MEAN, pb.SUBSTITUTE_MEAN],
            error_term=interventions_pb2.ERROR_TERM_DROP,
            nodes=200,
            adversary_steps=0,
            control=False,
            seed=9,
        )
    )
    assert (found.model, found.node_threshold, found.supernodes) == ("tiny", 0.5, ((1, 2), (5,)))
    options = found.options
    assert (options.substitutes, options.error_term) == ((Substitute.MEAN,), ErrorTerm.DROP)
    assert (options.nodes, options.adversary_steps, options.control, options.seed) == (200, 0, False, 9)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"nodes": 99}, "nodes"),
        ({"substitutes": [pb.SUBSTITUTE_UNSPECIFIED]}, "substitutes[0]"),
        ({"substitutes": [pb.SUBSTITUTE_RESAMPLE]}, "counterfactual"),
        ({"edge_threshold": 0.0}, "edge_threshold"),
        ({"supernodes": [pb.NodeSet(nodes=[-1])]}, "supernodes[0]"),
        ({"circuit": "edits/c1"}, "circuit"),
    ],
)
def test_refusals_name_their_field(fields, field):
    """Whatever is out of its domain."""
    with pytest.raises(InvalidRequestError) as refused:
        verify_from_wire(pb.VerifyCircuitRequest(**{"circuit": "circuits/c1", **fields}))
    assert refused.value.context["field"] == field


def test_every_figure_is_written():
    """What is None is absent, everything else is there."""
    message = verification_to_wire(stored())
    (whole,) = message.given.faithfulness
    assert not whole.HasField("faithfulness")
    assert whole.necessity == 0.5
    assert message.given.comparisons[0].standing == pb.STANDING_INCONCLUSIVE
    assert message.given.depths[0].nmse.low == pytest.approx(-0.6)
    assert message.given.worst_case.rounded == -21.0
    assert message.control == message.given
    assert not verification_to_wire(stored(control=False)).HasField("control")


def test_lists_leave_single_measurements_out():
    """Everything else is there, of the control too; without a control none appears."""
    message = verification_to_wire(stored(), measurements=False)
    assert not message.given.measurements
    assert not message.control.measurements
    assert message.control.agreements == message.given.agreements
    assert not verification_to_wire(stored(control=False), measurements=False).HasField("control")

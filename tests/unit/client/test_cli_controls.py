"""What `ablate` says of the controls that its p-value is beside."""

from __future__ import annotations

import pytest

from trephine.client.cli.ablate import ablation_facts
from trephine.client.decoding import decode
from trephine.client.types import Ablation
from trephine.v1 import common_pb2
from trephine.v1 import intervention_service_pb2 as pb


def matched(candidates, written=None):
    one = common_pb2.FeatureRef(layer=1, index=candidates)
    return pb.MatchedFeature(feature=one, candidates=candidates, factor=2.0, written=written)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            [matched(22, 0.5), matched(90, 0.75), matched(40, 0.75)],
            "of 22 to 90 candidates each, moved to write as much; as the features are, 0.75 of it (median)",
        ),
        ([matched(44)], "of 44 candidates, which usually write about as much"),
    ],
)
def test_how_many_candidates_there_are_and_how_far_they_are_moved_is_told(found, told):
    """With and without scaling; a value that is not there is None."""
    result = pb.ControlResult(changes=[0.1] * 99, p_value=0.02, matched=len(found), found=found)
    measured = decode(Ablation, pb.AblateResponse(controls=result, retain_tokens=1024))
    assert measured.controls is not None
    assert measured.controls.found[-1].written == (0.75 if len(found) > 1 else None)
    assert dict(ablation_facts(measured))["stand-ins"] == told


def test_what_the_p_value_is_of_is_told_where_a_feature_has_no_controls():
    """It is the effect of the others alone."""
    lost = pb.UnmatchedFeature(feature=common_pb2.FeatureRef(layer=0, index=722), candidates=18)
    result = pb.ControlResult(changes=[0.1] * 99, p_value=0.01, matched=1, found=[matched(25, 0.6)])
    result.unmatched.append(lost)
    facts = dict(ablation_facts(decode(Ablation, pb.AblateResponse(controls=result, retain_tokens=1024))))
    assert facts["p-value"] == "0.01 for matched_only against 99 matched random sets"
    assert facts["unmatched"] == "0:722 (18 candidates)"


def test_an_older_server_says_nothing_of_candidates():
    """Then nothing is made up."""
    result = pb.ControlResult(changes=[0.1] * 99, p_value=0.02, matched=1)
    measured = decode(Ablation, pb.AblateResponse(controls=result, retain_tokens=1024))
    assert "stand-ins" not in dict(ablation_facts(measured))

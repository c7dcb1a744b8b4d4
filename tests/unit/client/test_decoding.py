"""Values are decoded by field name, so every field must exist in its message."""

from __future__ import annotations

import dataclasses
import json

import pytest

from trephine.client import types
from trephine.client.decoding import WireValue, decode, message_json
from trephine.v1 import (
    audit_service_pb2,
    circuit_group_scores_pb2,
    circuit_queries_pb2,
    circuit_service_pb2,
    circuit_targets_pb2,
    circuit_verification_pb2,
    circuit_views_pb2,
    common_pb2,
    dataset_circuits_pb2,
    edit_evaluations_pb2,
    edit_history_pb2,
    edit_service_pb2,
    export_signing_pb2,
    feature_service_pb2,
    generation_service_pb2,
    gguf_pb2,
    global_circuits_pb2,
    intervention_service_pb2,
    interventions_pb2,
    live_edits_pb2,
    model_service_pb2,
    operation_service_pb2,
    removal_pb2,
    replacement_service_pb2,
    spurious_outcome_pb2,
    spurious_removal_pb2,
)

MESSAGES = (
    audit_service_pb2,
    circuit_group_scores_pb2,
    circuit_queries_pb2,
    circuit_service_pb2,
    circuit_verification_pb2,
    circuit_targets_pb2,
    circuit_views_pb2,
    common_pb2,
    dataset_circuits_pb2,
    global_circuits_pb2,
    edit_evaluations_pb2,
    edit_history_pb2,
    edit_service_pb2,
    export_signing_pb2,
    feature_service_pb2,
    generation_service_pb2,
    gguf_pb2,
    intervention_service_pb2,
    interventions_pb2,
    live_edits_pb2,
    model_service_pb2,
    operation_service_pb2,
    removal_pb2,
    replacement_service_pb2,
    spurious_outcome_pb2,
    spurious_removal_pb2,
)
NAMES = {
    "Ablation": "AblateResponse",
    "Activations": "GetActivationsResponse",
    "AttentionTrace": "TraceAttentionResponse",
    "CircuitDiff": "DiffCircuitsResponse",
    "CircuitInfo": "Circuit",
    "Contrast": "ContrastFeaturesResponse",
    "EdgeExplanations": "ExplainEdgesResponse",
    "EvaluationInfo": "ReplacementEvaluation",
    "EditDiff": "DiffEditsResponse",
    "Evidence": "AuditEvidence",
    "FoundFeatures": "SearchFeaturesResponse",
    "Generation": "GenerationFinished",
    "ModelInfo": "Model",
    "OperationUpdate": "WatchResponse",
    "Proposal": "EditProposal",
    "ReplacementSetInfo": "ReplacementSet",
    "Rule": "AuditRule",
    "Scores": "ScoreResponse",
    "Span": "AuditSpan",
    "Subgraph": "QuerySubgraphResponse",
    "TopFeatures": "TopFeaturesResponse",
    "VerifiedExport": "VerifyExportResponse",
    "Version": "ModelVersion",
}
NOT_SHOWN = {
    "QuerySubgraphResponse": {"next_page_token"},
    "SearchFeaturesResponse": {"next_page_token"},
    "SpuriousRemoval": {"options"},
    "WatchResponse": {"operation"},
}
"""Fields that a value leaves out on purpose."""

VALUES = [
    kind
    for name in types.__all__
    if isinstance(kind := getattr(types, name), type) and issubclass(kind, WireValue)
]


def message_of(kind: type) -> type:
    name = NAMES.get(kind.__name__, kind.__name__)
    return next(getattr(module, name) for module in MESSAGES if hasattr(module, name))


@pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.__name__)
def test_values_have_exactly_the_fields_of_their_message(kind: type):
    """A field added to the contract is missed here until the client shows it."""
    wire = set(message_of(kind).DESCRIPTOR.fields_by_name)
    hidden = NOT_SHOWN.get(message_of(kind).__name__, set())
    assert {field.name for field in dataclasses.fields(kind)} == wire - hidden


@pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.__name__)
def test_empty_messages_decode(kind: type):
    """Every value can be decoded from a message without a single field set."""
    assert isinstance(decode(kind, message_of(kind)()), kind)


def test_absent_and_zero_are_told_apart():
    """An optional zero that was sent is 0.0, one that was not is None."""
    node = decode(types.Node, circuit_service_pb2.Node(bias=0.0))
    assert (node.bias, node.remainder) == (0.0, None)


def test_enums_become_words_and_unknown_ones_stay_unspecified():
    """A value that a newer server sends is never taken for a known one, least of all for a pass."""
    known = audit_service_pb2.AuditReport(verdict=audit_service_pb2.VERDICT_NOT_APPLICABLE)
    newer = audit_service_pb2.AuditReport.FromString(b"\x18\x63")  # field 3, verdict 99
    assert decode(types.AuditReport, known).verdict is types.Verdict.NOT_APPLICABLE
    assert decode(types.AuditReport, newer).verdict is types.Verdict.UNSPECIFIED


def test_values_print_the_response_they_came_from():
    """`to_json` is the response in proto-JSON; a value built by hand has none."""
    token = decode(types.Token, common_pb2.Token(id=3, raw=b"\xff", display="\ufffd"))
    assert '"raw": "/w=="' in token.to_json()
    with pytest.raises(ValueError, match="did not come from a server"):
        types.Token(id=3, raw=b"", display="").to_json()


def test_zero_is_told_and_what_is_unset_is_not():
    """A worst group of 0 %, the first layer and a p-value that is nothing are figures like others."""
    figure = json.loads(message_json(common_pb2.Figure(name="worst_group", value=0.0, high=0.1)))
    assert figure == {"name": "worst_group", "value": 0.0, "high": 0.1, "unit": ""}
    feature = json.loads(message_json(common_pb2.FeatureRef(replacement="neurons", layer=0, index=0)))
    assert feature == {"replacement": "neurons", "layer": 0, "index": 0}
    judged = json.loads(message_json(spurious_removal_pb2.JudgeEvidence()))
    assert (judged["pValue"], judged["share"]) == (0.0, 0.0)

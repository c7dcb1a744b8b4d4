"""Results on the wire: whatever text a model, a checkpoint or a plugin produced, the message is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trephine.app.circuits.circuits import ListedNode, StoredCircuit
from trephine.app.edits.edit_evaluations import StoredEditEvaluation
from trephine.domain.ablation import AblationReport
from trephine.domain.arrays import Array
from trephine.domain.artifacts import ArtifactInfo
from trephine.domain.circuits import Circuit
from trephine.domain.edit_evaluation import EvaluationBounds
from trephine.domain.edits import Edit, EditProposal
from trephine.domain.exports import Export, ExportPlan, VerifiedExport
from trephine.domain.findings import AuditReport
from trephine.domain.generation import Generation, Scores, TokenEvent
from trephine.domain.models import Capabilities
from trephine.domain.operations import OperationRecord
from trephine.domain.sites import Site, SiteKind
from trephine.domain.targets import DirectionValue, TokenLogits, TopLogits
from trephine.rpc.wire.ablation import report_to_wire
from trephine.rpc.wire.artifacts import artifact_to_wire
from trephine.rpc.wire.audits import audit_to_wire
from trephine.rpc.wire.circuits import circuit_to_wire, node_to_wire
from trephine.rpc.wire.edit_evaluations import evaluation_to_wire as edit_evaluation_to_wire
from trephine.rpc.wire.edits import edit_to_wire, proposal_to_wire
from trephine.rpc.wire.exports import export_to_wire, plan_to_wire, verified_to_wire
from trephine.rpc.wire.generation import generation_to_wire, scores_to_wire, token_event_to_wire
from trephine.rpc.wire.models import capabilities_to_wire
from trephine.rpc.wire.operations import operation_to_wire

NASTY = ("", "a", "\ud83d", "</script>\u2028\x00\x1b[31m", "😀 \u202eabc", "\udfff\ud800")
WRITERS: dict[type, Callable[[Any], Message]] = {
    AblationReport: report_to_wire,
    ArtifactInfo: artifact_to_wire,
    AuditReport: audit_to_wire,
    Capabilities: capabilities_to_wire,
    Edit: edit_to_wire,
    StoredEditEvaluation: edit_evaluation_to_wire,
    EditProposal: proposal_to_wire,
    Export: export_to_wire,
    ExportPlan: plan_to_wire,
    Generation: generation_to_wire,
    ListedNode: node_to_wire,
    OperationRecord: lambda record: operation_to_wire(record, None),
    Scores: scores_to_wire,
    TokenEvent: token_event_to_wire,
    VerifiedExport: verified_to_wire,
}


@pytest.fixture(autouse=True, scope="module")
def nasty_values():
    """Every text is hostile, every number fits its field."""
    st.register_type_strategy(str, st.sampled_from(NASTY))
    st.register_type_strategy(int, st.integers(0, 2**31 - 1))
    st.register_type_strategy(float, st.floats(-1e3, 1e3).map(lambda value: value or 1.0))
    st.register_type_strategy(Array, st.just(Array(dtype="int32", shape=(0,), data=b"")))
    yield
    for kind, strategy in ((str, st.text()), (int, st.integers()), (float, st.floats())):
        st.register_type_strategy(kind, strategy)


@pytest.mark.parametrize("kind", WRITERS, ids=lambda kind: kind.__name__)
def test_no_text_breaks_a_message(kind: type):
    """Half an emoji in any field of any result becomes the replacement character, never an exception."""

    @given(value=_valid(kind))
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    def check(value: Any) -> None:
        message = WRITERS[kind](value)
        assert type(message).FromString(message.SerializeToString()) == message

    check()


QUESTIONS = {
    TopLogits: TopLogits(),
    TokenLogits: TokenLogits(tokens=(" a", " b")),
    DirectionValue: DirectionValue(site=Site(kind=SiteKind.RESID_MID, layer=1), vector=(0.5, -1.0)),
}
"""Targets that are not made of any values of their types."""


def test_circuits_are_written_without_their_nodes():
    """A circuit's message tells how many nodes and edges there are, and hostile text is carried."""
    for kind, value in QUESTIONS.items():
        st.register_type_strategy(kind, st.just(value))

    @given(circuit=st.from_type(Circuit))
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    def check(circuit: Circuit) -> None:
        stored = StoredCircuit(name="x", create_time="now", circuit=circuit)
        message = circuit_to_wire(stored)
        assert message.n_nodes == len(circuit.nodes)
        assert type(message).FromString(message.SerializeToString()) == message

    check()


def _valid(kind: type) -> st.SearchStrategy[Any]:
    """Values of a type; interventions among them come from the strategies that build valid ones."""
    from tests.unit.rpc.strategies import interventions
    from trephine.domain.interventions import Intervention

    st.register_type_strategy(Intervention, interventions)
    st.register_type_strategy(EvaluationBounds, st.just(EvaluationBounds()))
    return st.from_type(kind)

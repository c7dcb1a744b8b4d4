"""Requests: defaults that the contract states, and refusals that name their field."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from trephine.domain.ablation import LogitTarget, MatchedControls
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.edits import ProposeEdit
from trephine.domain.errors import EmptyPromptError, InvalidRequestError, NonFiniteValueError
from trephine.domain.findings import AuditSpec
from trephine.domain.generation import Generate, Row, Sampling
from trephine.rpc.wire.ablation import ablation_from_wire
from trephine.rpc.wire.artifacts import digest_from_wire
from trephine.rpc.wire.audits import format_from_wire, spec_from_wire
from trephine.rpc.wire.circuits import discover_from_wire
from trephine.rpc.wire.circuits import format_from_wire as circuit_format_from_wire
from trephine.rpc.wire.edits import edit_id, export_id, propose_from_wire
from trephine.rpc.wire.fields import clean, printable, request_id, resource_id
from trephine.rpc.wire.generation import generate_from_wire, score_from_wire
from trephine.rpc.wire.interventions import interventions_from_wire
from trephine.rpc.wire.models import dtype_from_wire, render_chat_from_wire
from trephine.v1 import audit_service_pb2 as audits
from trephine.v1 import circuit_service_pb2 as circuits
from trephine.v1 import circuit_targets_pb2 as targets
from trephine.v1 import common_pb2 as common
from trephine.v1 import edit_service_pb2 as edits
from trephine.v1 import generation_service_pb2 as generation
from trephine.v1 import intervention_service_pb2 as ablation
from trephine.v1 import interventions_pb2 as iv
from trephine.v1 import model_service_pb2 as models

TARGET = common.LogitTarget(token=" Mary")
GOAL = targets.GraphTarget(logit=TARGET)
goal = targets.GraphTarget


def field_of(call: Callable[[], Any], error: type[InvalidRequestError] = InvalidRequestError) -> object:
    with pytest.raises(error) as caught:
        call()
    return caught.value.context.get("field")


def test_generate_defaults():
    """An empty generation continues each row greedily by 64 tokens."""
    request = generation.GenerateRequest(rows=[generation.GenerationRow(prompt="a")])
    assert generate_from_wire(request) == Generate(
        rows=(Row(prompt="a"),), max_new_tokens=64, sampling=Sampling()
    )


def test_discovery_defaults_are_the_domain_s():
    """A discovery without options is exactly the domain's default."""
    request = circuits.DiscoverCircuitRequest(prompt="a b", target=GOAL)
    assert discover_from_wire(request) == DiscoverCircuit(prompt="a b", target=LogitTarget(token=" Mary"))


def test_discovery_zero_means_zero():
    """verify_nodes 0 skips the verification; it is not the default."""
    request = circuits.DiscoverCircuitRequest(prompt="a", target=GOAL, verify_nodes=0)
    assert discover_from_wire(request).verify_nodes == 0


def test_audit_and_proposal_defaults_are_the_domain_s():
    """Unset options of audits, proposals and controls are the domain's defaults."""
    assert spec_from_wire(audits.RunAuditRequest(auditor="a")) == AuditSpec(auditor="a")
    target = LogitTarget(token="x")
    assert propose_from_wire(edits.ProposeEditRequest(), "p", target) == ProposeEdit(
        prompt="p", target=target
    )
    one = interventions_from_wire([_ablate()])
    request = ablation.AblateRequest(prompt="a", target=TARGET)
    assert ablation_from_wire(request, one).controls == MatchedControls()
    request.without_controls = True
    assert ablation_from_wire(request, one).controls is None


def _ablate() -> iv.Intervention:
    return iv.Intervention(
        target=iv.InterventionTarget(feature=common.FeatureRef(layer=1)),
        operation=iv.InterventionOperation(ablate=Empty()),
    )


def _rows(*rows: generation.GenerationRow, **fields: Any) -> generation.GenerateRequest:
    return generation.GenerateRequest(rows=rows or [generation.GenerationRow(prompt="a")], **fields)


def test_nested_paths_name_row_and_intervention():
    """A NaN three levels down is found by its path."""
    broken = _ablate()
    broken.operation.scale = math.nan
    good = generation.GenerationRow(prompt="a")
    bad = generation.GenerationRow(prompt="a", interventions=[_ablate(), broken])
    path = field_of(lambda: generate_from_wire(_rows(good, good, bad)), NonFiniteValueError)
    assert path == "rows[2].interventions[1].operation.scale"


def test_empty_prompts_are_named():
    """Empty prompts and continuations are EMPTY_PROMPT with the row's path."""
    rows = generation.GenerationRow(prompt="a"), generation.GenerationRow()
    assert field_of(lambda: generate_from_wire(_rows(*rows)), EmptyPromptError) == "rows[1].prompt"
    request = generation.ScoreRequest(rows=[generation.ScoreRow(prompt="a")])
    assert field_of(lambda: score_from_wire(request), EmptyPromptError) == "rows[0].continuation"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_sampling_out_of_range(fields: dict[str, Any], path: str):
    """Explicit zeros and nonsense are refused by the request's own field names."""
    assert field_of(lambda: generate_from_wire(_rows(**fields))) == path


def test_lists_must_not_be_empty():
    """No rows, no messages, no interventions: each is refused by name."""
    assert field_of(lambda: generate_from_wire(generation.GenerateRequest())) == "rows"
    assert field_of(lambda: render_chat_from_wire(models.ApplyChatTemplateRequest())) == "messages"
    assert field_of(lambda: ablation_from_wire(ablation.AblateRequest(), ())) == "interventions"


def test_chat_roles_are_checked():
    """An unknown role is refused with the message's place."""
    request = models.ApplyChatTemplateRequest(messages=[models.ChatMessage(role="tool", content="x")])
    assert field_of(lambda: render_chat_from_wire(request)) == "messages[0].role"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "target.kind"),
        ({"target": goal(logit=common.LogitTarget())}, "target.logit.token"),
        ({"target": goal(logit=common.LogitTarget(token="a", against=""))}, "target.logit.against"),
        ({"target": goal(top_logits=targets.TopLogits(limit=0))}, "target.limit"),
        ({"target": goal(top_logits=targets.TopLogits(mass=float("nan")))}, "target.top_logits.mass"),
        ({"target": goal(token_logits=targets.TokenLogits())}, "target.tokens"),
        (
            {"target": goal(token_logits=targets.TokenLogits(tokens=["a", ""]))},
            "target.token_logits.tokens[1]",
        ),
        ({"target": goal(feature=targets.FeatureValue(layer=-1))}, "target.feature.layer"),
        ({"target": goal(direction=targets.DirectionValue(vector=[1.0]))}, "target.direction.site.kind"),
        ({"target": goal(attention=targets.AttentionScore(key=-1))}, "target.attention.key"),
        ({"target": GOAL, "layers": [0, -3]}, "layers[1]"),
        ({"target": GOAL, "edge_mass": 0.0}, "edge_mass"),
        ({"target": GOAL, "max_feature_nodes": 0}, "max_feature_nodes"),
        ({"target": GOAL, "verify_nodes": -1}, "verify_nodes"),
    ],
)
def test_discovery_refusals(fields: dict[str, Any], path: str):
    """A discovery's fields are checked one by one."""
    request = circuits.DiscoverCircuitRequest(prompt="a", **fields)
    assert field_of(lambda: discover_from_wire(request)) == path


@pytest.mark.parametrize(
    "name",
    [
        "", "models", "models/", "smollm2", "circuits/x", "models/a/b", "models/../x", "models/.hidden",
        "models/a b", "models/a\n", "models/" + "x" * 129, "Models/a", "models//a",
    ],
)  # fmt: skip
def test_resource_names_are_strict(name: str):
    """Anything but COLLECTION/ID is refused, path tricks first of all."""
    assert field_of(lambda: resource_id(name, "models")) == "name"


def test_resource_names_are_read():
    """A good name yields its id."""
    assert resource_id("models/SmolLM2-135M.v1_b", "models") == "SmolLM2-135M.v1_b"


@pytest.mark.parametrize("identifier", ["", "No", "a_b", "a/b", "../x", "-a", "x" * 64, "a b"])
def test_new_edit_ids(identifier: str):
    """Edit ids are lower case letters, digits and dashes."""
    assert field_of(lambda: edit_id(identifier)) == "edit_id"
    assert edit_id("no-mary") == "no-mary"


@pytest.mark.parametrize("identifier", ["", "..", "a..b", ".a", "A", "a/b"])
def test_new_export_ids(identifier: str):
    """Export ids may hold single dots, never a way out of the root."""
    assert field_of(lambda: export_id(identifier)) == "export_id"
    assert export_id("v1.0-bf16") == "v1.0-bf16"


def test_request_ids():
    """A request id is a UUID; spellings of one UUID are one id; none makes a fresh one."""
    spelled = "9F1C2C3E-0000-4000-8000-00000000ABCD"
    assert request_id(spelled) == spelled.lower()
    assert request_id("") != request_id("")
    assert field_of(lambda: request_id("again")) == "request_id"


def test_enums_without_default_are_refused():
    """Formats must be chosen."""
    assert field_of(lambda: format_from_wire(audits.REPORT_FORMAT_UNSPECIFIED)) == "format"
    assert field_of(lambda: circuit_format_from_wire(circuits.CIRCUIT_FORMAT_UNSPECIFIED)) == "format"
    assert field_of(lambda: dtype_from_wire("float16")) == "dtype"


def test_artifact_names():
    """Only a whole digest is an artifact's name."""
    assert digest_from_wire("artifacts/" + "a" * 64) == "a" * 64
    assert field_of(lambda: digest_from_wire("artifacts/" + "A" * 64)) == "name"
    assert field_of(lambda: digest_from_wire("artifacts/../" + "a" * 64)) == "name"


def test_surrogates_never_reach_protobuf():
    """Half an emoji becomes the replacement character; whole text stays as it is."""
    assert clean("a\ud83d") == "a�"
    assert clean("\ud83d\ude00") == "😀"
    assert clean("ok 😀") == "ok 😀"
    assert common.Token(display=clean("\udc00x")).SerializeToString()
    assert len(printable("x" * 1000)) == 200

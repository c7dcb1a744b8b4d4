"""GGUF files, plans' errors and the word of a verified folder cross the wire whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trephine.client.decoding import decode
from trephine.client.errors import InvalidRequestError as ClientInvalidRequestError
from trephine.client.requests import gguf_types
from trephine.client.types import PlanStep as DecodedStep
from trephine.client.types import QuantisedCopy as DecodedCopy
from trephine.client.types import VerifiedExport as DecodedVerified
from trephine.domain.errors import InvalidRequestError
from trephine.domain.exports import GGUF_TYPES, PlanStep, QuantisedCopy, VerifiedExport
from trephine.rpc.wire.exports import _step_to_wire, export_options_from_wire, verified_to_wire
from trephine.rpc.wire.gguf import gguf_from_wire, quantised_to_wire
from trephine.v1 import edit_service_pb2 as pb


@pytest.mark.parametrize("kind", GGUF_TYPES)
@pytest.mark.parametrize("measured", [0.5, None])
def test_a_file_there_and_back(kind, measured):
    """Every type and figure; what was not measured stays unset."""
    sent = QuantisedCopy(
        kind=kind, file=f"gguf/{kind}.gguf", size=7, kl=1.0, edit_kl=2.0, recovery=measured,
        kl_firing=measured, edit_kl_firing=measured, recovery_firing=measured, quantisation_kl=3.0,
        perplexity_ratio=1.5, top1_agreement=0.25,
    )  # fmt: skip
    found = decode(DecodedCopy, quantised_to_wire(sent))
    assert found.kind.value == kind
    fields = [name for name in QuantisedCopy.__slots__ if name != "kind"]
    assert [getattr(found, name) for name in fields] == [getattr(sent, name) for name in fields]


def test_types_are_asked_for_by_name():
    """The client's names are the server's, in order; what is no type is refused on both sides."""
    request = pb.PlanExportRequest(edit="edits/one", gguf=gguf_types(GGUF_TYPES))
    assert export_options_from_wire(request).gguf == GGUF_TYPES
    assert export_options_from_wire(pb.ExportCheckpointRequest()).gguf == ()
    with pytest.raises(ClientInvalidRequestError, match="q3_k"):
        gguf_types(["q3_k"])
    with pytest.raises(InvalidRequestError):
        gguf_from_wire([0])


@pytest.mark.parametrize(
    ("word", "reason", "text"),
    [
        ("removed", "", "removed"),
        ("inconclusive", "", "inconclusive (counts as suppressed)"),
        ("suppressed", "not attacked", "suppressed (not attacked)"),
    ],
)
def test_the_word_of_a_verified_folder(word, reason, text):
    """With what the check does not prove; a folder that was not attacked is suppressed and says why."""
    sent = VerifiedExport(
        passed=True,
        files=9,
        removal=word,
        reason=reason,
        verdict="inconclusive",
        doubt="dim",
        notes=("not signed",),
    )
    found = decode(DecodedVerified, verified_to_wire(sent))
    assert (found.removal.value, str(found.fate)) == (word, text)
    assert found.notes == ("not signed",)
    assert (found.verdict.value, found.doubt) == ("inconclusive", "dim")
    unread = decode(DecodedVerified, verified_to_wire(VerifiedExport(passed=False)))
    assert (unread.removal.value, unread.fate, unread.verdict.value) == ("unspecified", None, "unspecified")


def test_a_plans_predicted_error_arrives():
    """A zero would be taken for a promise."""
    step = PlanStep(intervention=0, tier="ridge", tensor="a", description="b", predicted_error=0.25)
    assert _step_to_wire(step).predicted_error == 0.25
    assert not _step_to_wire(step).held_out
    tested = replace(step, predicted_error=None, held_out=True)
    assert not _step_to_wire(tested).HasField("predicted_error")
    assert _step_to_wire(tested).held_out
    assert decode(DecodedStep, _step_to_wire(tested)).predicted_error is None
    assert decode(DecodedStep, _step_to_wire(replace(step, predicted_error=0.0))).predicted_error == 0.0

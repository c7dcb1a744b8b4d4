"""Evaluations that were stored before figures were added are read, with these figures absent."""

from __future__ import annotations

import json
from math import isnan

import pytest

from tests.unit.replacement_values import evaluation
from trephine.app.sets.evaluations import StoredEvaluation
from trephine.app.storage.records import decode, encode
from trephine.client.decoding import decode as decode_value
from trephine.client.types import EvaluationInfo
from trephine.domain.errors import CorruptRecordError
from trephine.domain.replacements import Dictionary
from trephine.pages.evaluation_page import evaluation_html
from trephine.pages.evaluation_table import evaluation_csv
from trephine.rpc.wire.evaluations import evaluation_to_wire

STORED = StoredEvaluation(name="evaluations/old", create_time="2026-01-01T00:00:00Z", evaluation=evaluation())


def older() -> StoredEvaluation:
    """Write a record as the first release did: no controls under perturbation, no scores beside zeros."""
    plain = json.loads(encode(STORED))
    found = plain["evaluation"]
    for spliced in found["spliced"]:
        del spliced["ce_score_zero"], spliced["kl_score_zero"]
        del spliced["fvu"], spliced["l0"], spliced["dead_share"], spliced["layers"]
    found["depths"] = found["depths"][:1]
    del found["depths"][0]["dictionary"], found["replacement"]["residency"]["pinned_bytes"]
    for layer in found["layers"]:
        del layer["error_share"]
    return decode(StoredEvaluation, json.dumps(plain).encode(), what="evaluations/old")


def test_what_was_not_measured_is_absent():
    """Figures of later releases are no number; everything else is as it was stored."""
    found = older().evaluation
    assert all(isnan(row.ce_score_zero.value) and isnan(row.kl_score_zero.value) for row in found.spliced)
    assert [row.dictionary for row in found.depths] == [Dictionary.GIVEN]
    assert all(layer.error_share is None for layer in found.layers)
    assert all(
        (row.fvu, row.l0, row.dead_share, row.layers) == (None, None, None, ()) for row in found.spliced
    )
    assert [row.ce_score for row in found.spliced] == [row.ce_score for row in evaluation().spliced]


def test_older_evaluations_are_shown():
    """Page, table and message are made, with empty cells for what is absent."""
    stored = older()
    assert "same most likely token" in evaluation_html(stored.evaluation, name=stored.name, create_time="")
    assert "all layers,given,ce_score_zero,,,," in evaluation_csv(stored.evaluation)
    assert "all layers,given,l0" not in evaluation_csv(stored.evaluation)
    wire = evaluation_to_wire(stored).spliced[0]
    assert isnan(wire.ce_score_zero.value)
    assert not any(wire.HasField(name) for name in ("fvu", "l0", "dead_share"))
    shown = decode_value(EvaluationInfo, evaluation_to_wire(stored)).spliced[0]
    assert (shown.fvu, shown.l0, shown.dead_share, shown.layers) == (None, None, None, ())


def test_a_record_without_what_it_always_had_is_corrupt():
    """The rule fills in what was added later, nothing else."""
    plain = json.loads(encode(STORED))
    del plain["evaluation"]["spliced"][0]["kl"]
    with pytest.raises(CorruptRecordError):
        decode(StoredEvaluation, json.dumps(plain).encode(), what="evaluations/old")

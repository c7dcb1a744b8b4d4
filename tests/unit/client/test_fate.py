"""The word of certificates, as the verifier of folders reads it: written, unwritten and forged."""

from __future__ import annotations

import json

import pytest

from trephine.client.export_records import CertificateRecord, ManifestRecord
from trephine.client.verification import _certificate, _check_gates
from trephine.domain.exports import Certificate
from trephine.domain.removal import Removal
from trephine.engine.manifest import write_certificate

REMOVED = Removal(
    verdict="removed", why="nothing came back", figures=(), n_tokens=9, n_contexts=5, effect=0.1,
    unrelated_behaviours=3, seed=0,
)  # fmt: skip
GATE = {"gate": {"name": "kl", "limit": 1.0, "unit": "nats", "reason": ""}, "measured": 0.5, "passed": True}


def written(folder, removal: Removal | None) -> dict:
    """A certificate as an export writes it, with a gate for the reader."""
    certificate = Certificate(
        edit="e", edit_hash="", plan_hash="", parent_hash="", dtype="float32", measurements=(), gates=(),
        changed_tensors=(), untouched_tensors_verified=0, environment={}, text="", n_tokens=0,
        removal=removal,
    )  # fmt: skip
    write_certificate(folder, certificate)
    return json.loads((folder / "certificate.json").read_text()) | {"gates": [GATE]}


@pytest.mark.parametrize(
    ("removal", "word", "reason"), [(None, "suppressed", "not attacked"), (REMOVED, "removed", "")]
)
@pytest.mark.parametrize("older", [False, True])
def test_the_word_stands_in_the_certificate_and_older_ones_have_the_same(
    tmp_path, removal, word, reason, older
):
    """A certificate without the field is read by its attacks, or their absence."""
    fields = written(tmp_path, removal)
    assert fields["fate"] == {"verdict": word, "reason": reason}
    if older:
        del fields["fate"]
    (tmp_path / "certificate.json").write_text(json.dumps(fields))
    certificate = _certificate(tmp_path)
    assert certificate is not None
    found = certificate.fate or certificate.due_fate
    assert (found.verdict, found.reason) == (word, reason)


@pytest.mark.parametrize("word", ["removed", "suppressed"])
def test_a_word_that_no_attack_gave_is_a_problem(tmp_path, word):
    """`removed` without an attack is said; the word of what was not attacked is not."""
    fields = written(tmp_path, None)
    fields["fate"]["verdict"] = word
    plan = {"edit_hash": "", "plan_hash": "", "parent_hash": "", "changed_tensors": [], "gates": []}
    manifest = ManifestRecord.model_validate(
        {"edit": {"content_hash": "", "weight_hash": ""}, "plan": plan, "tensors": {}, "files": []}
    )
    found = list(_check_gates(manifest, CertificateRecord.model_validate(fields)))
    assert any("not that of its attacks" in one for one in found) == (word == "removed")


def test_an_unreadable_certificate_says_nothing(tmp_path):
    """No word at all, not the mildest one."""
    (tmp_path / "certificate.json").write_text("{")
    assert _certificate(tmp_path) is None

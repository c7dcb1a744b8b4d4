"""The word of certificates, as the verifier of folders reads it: written, unwritten and forged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from trephine import client
from trephine.client.export_records import CertificateRecord, ManifestRecord
from trephine.client.verification import _certificate, _check_gates
from trephine.domain.exports import Certificate
from trephine.domain.removal import Removal
from trephine.engine.exports.manifest import write_certificate

REMOVED = Removal(
    verdict="removed", why="nothing came back", figures=(), n_tokens=9, n_contexts=5, effect=0.1,
    unrelated_behaviours=3, seed=0,
)  # fmt: skip
GATE = {"gate": {"name": "kl", "limit": 1.0, "unit": "nats", "reason": ""}, "measured": 0.5, "passed": True}


def written(folder, removal: Removal | None, changed: tuple[str, ...] = ("a",)) -> dict:
    """A certificate as an export writes it, with a gate for the reader."""
    certificate = Certificate(
        edit="e", edit_hash="", plan_hash="", parent_hash="", dtype="float32", measurements=(), gates=(),
        changed_tensors=changed, untouched_tensors_verified=0, environment={}, text="", n_tokens=0,
        removal=removal,
    )  # fmt: skip
    write_certificate(folder, certificate)
    return json.loads((folder / "certificate.json").read_text()) | {"gates": [GATE]}


@pytest.mark.parametrize(
    ("removal", "word", "reason"), [(None, "suppressed", "not attacked"), (REMOVED, "removed", "")]
)
@pytest.mark.parametrize("older", [False, True])
def test_the_word_is_read_where_it_was_written(tmp_path, removal, word, reason, older):
    """The reader makes up none: of a certificate from before the word, only its attacks have one."""
    fields = written(tmp_path, removal)
    assert fields["fate"] == {"verdict": word, "reason": reason}
    if older:
        del fields["fate"]
    (tmp_path / "certificate.json").write_text(json.dumps(fields))
    certificate = _certificate(tmp_path)
    assert certificate is not None
    if older and removal is None:
        assert certificate.word is None
    else:
        assert certificate.word is not None
        assert (certificate.word.verdict, certificate.word.reason) == (word, reason)


def test_what_changes_no_tensor_ablates_nothing(tmp_path):
    """It is not called suppressed; what attacks say of it stands."""
    word = {"verdict": "inconclusive", "reason": "no tensor was changed"}
    assert written(tmp_path, None, ())["fate"] == word
    assert written(tmp_path, REMOVED, ())["fate"] == {"verdict": "removed", "reason": ""}


def test_no_client_decides_the_word():
    """It is decided where attacks are judged, and sent: no source of the client holds its reason."""
    sources = Path(client.__path__[0]).rglob("*.py")
    assert not [path.name for path in sources if re.search(r"""["']not attacked["']""", path.read_text())]


def test_a_reason_of_any_wording_is_taken(tmp_path):
    """What another release says of what was not attacked is no forgery."""
    fields = written(tmp_path, None) | {"fate": {"verdict": "suppressed", "reason": "nobody tried"}}
    (tmp_path / "certificate.json").write_text(json.dumps(fields))
    certificate = _certificate(tmp_path)
    assert certificate is not None
    assert not certificate.contradicts_attacks
    assert certificate.word is not None
    assert certificate.word.reason == "nobody tried"


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

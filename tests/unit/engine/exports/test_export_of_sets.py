"""Exports of sets' features: the set that is loaded must be the one that the edit was made for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.resident_sets import NAME, resident_set
from tests.unit.client.test_verification import relist, rewrite
from tests.unit.engine.exporting import compiling, edit_of, exported, planned
from tests.unit.engine.weights.folders import feature, parent
from trephine.client.verification import verify_folder
from trephine.domain.edits import EditSet
from trephine.domain.errors import ParentChangedError, ReplacementNotFoundError
from trephine.domain.interventions import Ablate
from trephine.engine.models.quanta import finish

pytestmark = pytest.mark.integration


def test_an_edit_of_another_set_of_that_name_is_neither_planned_nor_compiled(tmp_path: Path):
    """Its features are others, whatever their numbers; a set that is not loaded is missed by name."""
    hosted = parent("llama", tmp_path / "parent", biases=False)
    resident_set(hosted, "relu")
    edit = edit_of(hosted, feature(0, 3, Ablate()))
    plan = planned(hosted, edit)
    other = replace(edit, sets=(EditSet(name=NAME, content_hash="a" * 64),))
    with pytest.raises(ParentChangedError, match="made for other features than those of the set"):
        planned(hosted, other)
    with pytest.raises(ParentChangedError, match="made for other features than those of the set"):
        finish(compiling(hosted, other, plan, tmp_path / "edited"))
    with pytest.raises(ReplacementNotFoundError, match="'gone' is not loaded"):
        planned(hosted, replace(edit, sets=(EditSet(name="gone", content_hash="a" * 64),)))
    assert not (tmp_path / "edited").exists()


def test_the_sets_that_were_loaded_are_on_record_and_held_against_the_edits(tmp_path: Path):
    """In manifest and certificate; a folder from before that passes with a note."""
    hosted = parent("llama", tmp_path / "parent", biases=False)
    resident_set(hosted, "relu")
    edit = edit_of(hosted, feature(0, 3, Ablate()))
    exported(hosted, edit, tmp_path / "edited")
    manifest, certificate = tmp_path / "edited/edit_manifest.json", tmp_path / "edited/certificate.json"
    loaded = [{"name": NAME, "content_hash": hosted.replacements[NAME].admitted.content_hash}]
    assert json.loads(manifest.read_text())["sets"] == loaded
    assert json.loads(certificate.read_text())["sets"] == loaded
    card = (tmp_path / "edited" / "README.md").read_text()
    assert f"- Features of: `{NAME}`, content `{loaded[0]['content_hash']}`" in card
    assert verify_folder(tmp_path / "edited").problems == ()

    other = [{"name": NAME, "content_hash": "a" * 64}]
    rewrite(certificate, sets=other)
    said = ("certificate.json: names other sets than edit_manifest.json",)
    assert verify_folder(tmp_path / "edited").problems == said
    rewrite(manifest, sets=other)
    said = (f"edit_manifest.json: the set {NAME} that was loaded is not the one that the edit was made for",)
    assert verify_folder(tmp_path / "edited").problems == said

    for papers in (manifest, certificate):
        fields = json.loads(papers.read_text())
        del fields["sets"]
        papers.write_text(json.dumps(fields))
    relist(tmp_path / "edited")
    older = verify_folder(tmp_path / "edited")
    assert older.passed
    assert any("before the loaded sets went on record" in note for note in older.notes)

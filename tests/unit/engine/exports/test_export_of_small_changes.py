"""A bfloat16 export of changes that nearest rounding would lose: drawn, recorded, certified, rebuilt."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
import torch

from tests.builders import tiny_folder
from tests.unit.engine.exporting import edit_of, exported, hosted_in, planned
from tests.unit.engine.interventions import direction, neuron
from trephine.client.deltas import apply_delta, make_delta
from trephine.client.verification import verify_folder
from trephine.domain.interventions import Ablate, Scale
from trephine.domain.sites import SiteKind
from trephine.engine.models.narrow_products import lacks_units
from trephine.engine.weights.tensors import ROUNDING_SEED

AXIS = torch.randn(32, generator=torch.Generator().manual_seed(3)).tolist()
EDIT = (
    *(neuron(1, index, Ablate()) for index in range(32)),
    direction(SiteKind.MLP_OUT, 0, AXIS, Scale(factor=0.995)),
    direction(SiteKind.EMBED, 0, AXIS, Scale(factor=0.995)),
)
DRAWN = (
    "model.embed_tokens.weight",
    "model.layers.0.mlp.down_proj.bias",
    "model.layers.0.mlp.down_proj.weight",
)


@pytest.mark.integration
def test_what_was_drawn_is_on_record_and_can_be_rebuilt(tmp_path):
    """Plan, manifest and certificate name the tensors; a neuron that is silenced beside them is not drawn."""
    parent = tiny_folder("llama", tmp_path / "parent", dtype=torch.bfloat16)
    hosted = hosted_in(parent, torch.bfloat16)
    edit = edit_of(hosted, *EDIT)
    notes = [step.description for step in planned(hosted, edit).steps]
    told = [note.partition("would vanish: ")[2] for note in notes[32:]]
    assert sorted(", ".join(told).split(", ")) == sorted(DRAWN)
    assert not any("stochastically" in note for note in notes[:32])
    folder = tmp_path / "exports" / "small"
    folder.parent.mkdir()
    made = exported(hosted, edit, folder)
    manifest = json.loads((folder / "edit_manifest.json").read_text())
    assert manifest["rounding"] == {"seed": ROUNDING_SEED, "stochastic": list(DRAWN)}
    assert made.certificate.environment["rounding_seed"] == str(ROUNDING_SEED)
    assert made.certificate.environment["rounded_stochastically"] == ", ".join(DRAWN)
    wide = "float32, rounded once" if lacks_units() else "torch's own"
    assert made.certificate.environment["bfloat16_products"] == wide
    found = {each.name: each.value for each in made.certificate.measurements}
    assert found["elements_off_plan"] == found["planned_tensors_unchanged"] == 0
    rebuilt = apply_delta(make_delta(parent, folder, tmp_path / "delta"), parent, tmp_path / "rebuilt")
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert {n: digest(rebuilt / n) for n in names} == {n: digest(folder / n) for n in names}
    assert verify_folder(rebuilt).passed
    again = exported(hosted, edit, folder.with_name("again"))
    assert {f.path: f.sha256 for f in again.files if f.path.endswith(".safetensors")} == {
        f.path: f.sha256 for f in made.files if f.path.endswith(".safetensors")
    }


def digest(path):
    """Hash a file."""
    return sha256(path.read_bytes()).hexdigest()

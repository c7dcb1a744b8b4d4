"""An exported folder is a parent like any other: what it came with is made anew, or left out."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.resident_sets import resident_set
from tests.unit.engine.exporting import edit_of, exported, hosted_in
from tests.unit.engine.interventions import neuron
from tests.unit.engine.weights.folders import feature, parent
from trephine.client.verification import verify_folder
from trephine.domain.interventions import Ablate, Scale


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """An export of low rank, and so with an adapter."""
    base = tmp_path_factory.mktemp("first")
    hosted = parent("llama", base / "parent")
    (base / "exports").mkdir()
    folder = base / "exports" / "edited"
    exported(hosted, edit_of(hosted, neuron(0, 3, Ablate())), folder)
    assert (folder / "adapter" / "adapter_config.json").exists()
    return folder


def made_of(folder):
    """The manifest of an export."""
    return json.loads((folder / "edit_manifest.json").read_text(encoding="utf-8"))


def left_out(folder):
    """What the manifest says of files of the parent that were not copied."""
    return made_of(folder)["parent"]["left_out"]


@pytest.mark.integration
def test_an_export_of_low_rank_is_exported_again_with_an_adapter_of_its_own(first, tmp_path):
    """The second adapter makes the second folder out of the first."""
    hosted = hosted_in(first)
    folder = tmp_path / "again"
    made = exported(hosted, edit_of(hosted, neuron(1, 5, Scale(factor=-2.0)), name="again"), folder)
    assert made.certificate.passed
    assert verify_folder(folder).passed
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(left_out(folder))
    planned = made_of(folder)["plan"]["size_growth_bytes"]
    assert planned < (folder / "adapter" / "adapter_model.safetensors").stat().st_size < planned + 4096
    ids = torch.arange(5, 45)[None]
    with torch.inference_mode():
        plain = AutoModelForCausalLM.from_pretrained(first).eval()
        original = plain(ids).logits.clone()
        adapted = PeftModel.from_pretrained(plain, folder / "adapter").eval()(ids).logits
        wanted = AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits
    assert float((adapted - wanted).abs().max()) < 1e-4 < float((original - wanted).abs().max())


@pytest.mark.integration
def test_a_graft_into_an_export_ships_no_adapter_of_the_earlier_edit(first, tmp_path):
    """Whoever laid it on the grafted folder would get neither model."""
    hosted = hosted_in(first)
    resident_set(hosted, "jumprelu")
    folder = tmp_path / "grafted"
    made = exported(hosted, edit_of(hosted, feature(0, 3, Ablate()), name="grafted"), folder)
    assert made.certificate.passed
    assert verify_folder(folder).passed
    assert not (folder / "adapter").exists()
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(left_out(folder))

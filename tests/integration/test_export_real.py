"""Law 8 on the real model in bfloat16, and its bound. In float32 it is tested on what the demo published."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.retained import retain_ids
from tests.unit.engine.exporting import edit_of, exported, hosted_in, planned
from tests.unit.engine.interventions import neuron
from trephine.client.verification import verify_folder
from trephine.domain.interventions import Ablate, Scale
from trephine.engine.certificates import certification
from trephine.engine.certificates.export_texts import ExportTexts
from trephine.engine.exports import export, planning
from trephine.engine.models.shards import read_entries, sha256_of
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.retain import built_in_text, retain_text, window_logits

pytestmark = [pytest.mark.real, pytest.mark.integration]

TEN = tuple(
    neuron(layer, index, Ablate())
    for layer, index in (
        *((0, 722), (0, 647), (2, 1155), (6, 688), (0, 368)),
        *((26, 1262), (0, 1412), (21, 768), (0, 713), (12, 140)),
    )
)
"""Ten neurons that a proposal ranked first."""


@pytest.fixture(scope="module")
def parent(smollm2):
    """The model in float32."""
    return hosted_in(smollm2)


@pytest.fixture(scope="module")
def bfloat16(smollm2, tmp_path_factory):
    """A folder with a copy of the parent in bfloat16."""
    folder = tmp_path_factory.mktemp("bfloat16") / "parent"
    shutil.copytree(smollm2, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def test_the_built_in_text_has_enough_tokens(parent):
    """At least 1,024, in windows of at most 128."""
    assert sum(map(len, retain_ids(parent))) >= 1024
    assert retain_text(parent).n_tokens < len(parent.tokenizer(built_in_text())["input_ids"])


def both(text):
    return ExportTexts(calibration=text, measured=text)


@pytest.fixture
def short_text(monkeypatch):
    """Plans and certificates measured on two windows of the built-in text, and on shorter continuations.

    On all of its windows the demo's exports are measured, of this model and in both types.
    """
    few = built_in_text()[:1200]
    for module in (planning, export):
        monkeypatch.setattr(module, "export_texts", lambda hosted, text: both(retain_text(hosted, few)))
    monkeypatch.setattr(certification, "GREEDY_TOKENS", 8)


@pytest.mark.usefixtures("short_text")
def test_law_8_in_bfloat16(bfloat16, tmp_path):
    """The published folder, in stock transformers, is the intervened runtime within the planned bound."""
    hosted = hosted_in(bfloat16, torch.bfloat16)
    edit = edit_of(hosted, *TEN)
    gates = {gate.name: gate.limit for gate in planned(hosted, edit).gates}
    made = exported(hosted, edit, tmp_path / "edited")
    found = {m.name: m.value for m in made.certificate.measurements}
    assert made.certificate.passed
    assert made.certificate.dtype == "bfloat16"
    assert found["elements_off_plan"] == found["tensors_changed_outside_plan"] == 0
    assert made.certificate.untouched_tensors_verified == 272 - len(made.certificate.changed_tensors)
    assert found["kl_intervened_exported_mean"] <= gates["kl_intervened_exported_mean"]
    assert found["retain_kl_original_exported_mean"] > 10 * found["kl_intervened_exported_mean"]
    assert verify_folder(tmp_path / "edited").passed
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "edited").eval()
    window = retain_ids(hosted)[1]
    with torch.inference_mode():
        kl = kl_divergence(window_logits(hosted, window, TEN), stock(torch.tensor([window])).logits[0])
    assert float(kl.mean()) <= 2 * gates["kl_intervened_exported_mean"]  # one window


@pytest.mark.usefixtures("short_text")
def test_law_8_of_an_edit_that_changes_nothing(smollm2, parent, tmp_path):
    """A neuron scaled by 1.0: every tensor hash, and the hash of the loaded weights, is the parent's."""
    edit = edit_of(parent, neuron(26, 1262, Scale(factor=1.0)))
    made = exported(parent, edit, tmp_path / "same")
    entries = read_entries(smollm2)
    assert len(entries) == 272
    assert read_entries(tmp_path / "same") == entries
    hashes = {name: sha256_of(smollm2, entry) for name, entry in entries.items()}
    assert {name: sha256_of(tmp_path / "same", entry) for name, entry in entries.items()} == hashes
    assert all(result.passed for result in made.certificate.gates)
    assert made.certificate.verdict == "inconclusive"
    assert hosted_in(tmp_path / "same").info.weight_hash == parent.info.weight_hash
    assert verify_folder(tmp_path / "same").passed


@pytest.mark.usefixtures("short_text")
def test_the_bound_is_the_plans(parent, tmp_path):
    """Another runtime than the planned edit's is measured as such: the gate has power on this model."""
    edit = edit_of(parent, *TEN)
    plan = planned(parent, edit)
    limit = next(g.limit for g in plan.gates if g.name == "kl_intervened_exported_mean")
    one_less = replace(edit, interventions=TEN[:-1])
    window = retain_ids(parent)[1]
    with torch.inference_mode():
        kl = kl_divergence(
            window_logits(parent, window, edit.interventions),
            window_logits(parent, window, one_less.interventions),
        )
    assert float(kl.mean()) > 5 * limit

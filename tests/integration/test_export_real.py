"""Law 8 and the choice of an edit, on the real model: what is offered can be shipped, and is what it says."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.unit.engine.exporting import edit_of, exported, hosted_in, planned
from tests.unit.engine.interventions import neuron
from trephine.client.verification import verify_folder
from trephine.domain.ablation import LogitTarget, MeasureAblation
from trephine.domain.edits import ProposeEdit
from trephine.domain.interventions import Ablate
from trephine.engine.divergence import kl_divergence
from trephine.engine.effects import measure_ablation
from trephine.engine.proposals import ablation, propose_edit
from trephine.engine.quanta import finish
from trephine.engine.retain import built_in_text, retain_ids, retain_text, window_logits
from trephine.engine.session import Session

pytestmark = [pytest.mark.real, pytest.mark.integration]

PROMPT = "When Mary and John went to the store, John gave a drink to"
TARGET = LogitTarget(token=" Mary", against=" John")

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
def copies(parent, smollm2, tmp_path_factory):
    """Folders of the parent: as it is, and a copy in bfloat16."""
    folder = tmp_path_factory.mktemp("bfloat16") / "parent"
    shutil.copytree(smollm2, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return {"float32": smollm2, "bfloat16": folder}


def test_the_built_in_text_has_enough_tokens(parent):
    """At least 1,024, in windows of at most 128."""
    assert sum(map(len, retain_ids(parent))) >= 1024
    assert retain_text(parent).n_tokens == len(parent.tokenizer(built_in_text())["input_ids"])


@torch.inference_mode()
def test_an_edit_that_could_ship_is_found_and_beats_chance(parent):
    """Half of the logit difference gone at 0.1 nats, and no matched random set comes near."""
    session = Session(hosted=parent)
    proposal = finish(propose_edit(session, ProposeEdit(prompt=PROMPT, target=TARGET)))
    assert proposal.chosen > 0, proposal.why
    point = next(p for p in proposal.curve if p.count == proposal.chosen)
    assert point.drop >= 0.5
    assert max(point.retain_kl, point.retain_kl_after_first) <= 0.1
    plan = ablation(proposal.ranking, proposal.chosen)
    command = MeasureAblation(prompt=PROMPT, target=TARGET, interventions=plan)
    report = finish(measure_ablation(session, command))
    assert report.controls is not None
    assert len(report.controls.changes) >= 99
    assert report.controls.p_value == pytest.approx(0.01)
    assert report.effects[0].intervened == pytest.approx(point.value, abs=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_law_8(dtype, copies, tmp_path):
    """The published folder, in stock transformers, is the intervened runtime within the planned bound."""
    hosted = hosted_in(copies[dtype], getattr(torch, dtype))
    edit = edit_of(hosted, *TEN)
    gates = {gate.name: gate.limit for gate in planned(hosted, edit).gates}
    made = exported(hosted, edit, tmp_path / "edited")
    found = {m.name: m.value for m in made.certificate.measurements}
    assert made.certificate.passed
    assert made.certificate.dtype == dtype
    assert found["elements_off_plan"] == found["tensors_changed_outside_plan"] == 0
    assert made.certificate.untouched_tensors_verified == 272 - len(made.certificate.changed_tensors)
    assert found["kl_intervened_exported_mean"] <= gates["kl_intervened_exported_mean"]
    assert found["retain_kl_original_exported_mean"] > 10 * found["kl_intervened_exported_mean"]
    if dtype == "float32":
        assert gates["kl_intervened_exported_mean"] <= 1e-6
        assert found["greedy_match"] == 1.0
    assert verify_folder(tmp_path / "edited").passed
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "edited").eval()
    window = retain_ids(hosted)[1]
    with torch.inference_mode():
        kl = kl_divergence(window_logits(hosted, window, TEN), stock(torch.tensor([window])).logits[0])
    assert float(kl.mean()) <= 2 * gates["kl_intervened_exported_mean"]  # one window of ten


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

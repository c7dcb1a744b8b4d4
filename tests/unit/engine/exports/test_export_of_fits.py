"""Exports of what is only fitted: refused below the tolerance, or published and labelled as approximate."""

from __future__ import annotations

import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.builders import WORDS
from tests.resident_sets import resident_set
from tests.unit.engine.exporting import compiling, edit_of
from tests.unit.engine.weights.folders import feature, parent
from trephine.domain.errors import GateMissedError
from trephine.domain.exports import ExportOptions, PlanExport
from trephine.domain.interventions import Ablate
from trephine.engine.certificates.certification import Findings
from trephine.engine.exports import export
from trephine.engine.exports.planning import plan_export
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.runs.retain import plain_logits, retain_kl, retain_text

TEXT = "".join(random.Random(0).choices(WORDS[:18], k=900))
STRICT, LENIENT = (ExportOptions(text=TEXT, min_recovery=share) for share in (0.9, 0.5))


def planned(hosted, options):
    """Plan the ablation of a residual SAE's feature, which no neuron computes."""
    edit = edit_of(hosted, feature(0, 6, Ablate()))
    with torch.inference_mode():
        plan = finish(plan_export(Session(hosted=hosted), PlanExport(edit=edit, options=options)))
    return edit, plan


@pytest.fixture(scope="module")
def approximate(tmp_path_factory):
    """A poor fit, published under a low tolerance: hosted parent, plan, what was made, folder."""
    base = tmp_path_factory.mktemp("fitted")
    hosted = parent("llama", base / "parent")
    resident_set(hosted, "resid_post")
    edit, plan = planned(hosted, LENIENT)
    (base / "exports").mkdir()
    folder = base / "exports" / "edited"
    with torch.inference_mode():
        made = finish(compiling(hosted, edit, plan, folder, options=LENIENT))
    return hosted, plan, made, folder


@pytest.fixture
def finding(approximate, monkeypatch):
    """Let every certification find what that of the published folder did, but for some names."""
    certificate = approximate[2].certificate

    def without(*names: str):
        kept = {name: value for name, value in measured(certificate).items() if name not in names}
        found = Findings(measurements=kept, environment=certificate.environment)
        monkeypatch.setattr(export, "certify", lambda *_, **__: returning(found))
        return kept

    return without


def measured(certificate):
    return {m.name: m.value for m in certificate.measurements}


def returning(value):
    """A quantum of work that comes to a value."""
    yield None
    return value


@pytest.mark.integration
def test_a_fit_within_its_tolerance_is_labelled_as_approximate(approximate):
    """Plan, gate, certificate and card say that it is fitted and which share it carries."""
    _, plan, made, folder = approximate
    assert plan.fitted
    assert [step.tier for step in plan.steps] == ["ridge"]
    assert plan.steps[0].predicted_error > 0.01
    gate = next(gate for gate in plan.gates if gate.name == "unrecovered")
    assert gate.limit == pytest.approx(0.5)
    assert "approximation" in gate.reason
    found = measured(made.certificate)
    assert 0.5 <= found["recovery"] < 0.9
    assert found["recovery"] + found["unrecovered"] == pytest.approx(1.0)
    card = (folder / "README.md").read_text(encoding="utf-8")
    limits = card.partition("## Limits")[2]
    share = f"{found['recovery']:.3g} of the intervention, by KL on the measured text (at least 0.5 was asked"
    assert f"- The certificate says that this checkpoint carries {share} for)" in limits
    assert "does what the intervention did" not in limits
    assert "- Approximate: a part of the edit is fitted" in limits
    assert f"| {found['recovery']:.3g} |" in card
    assert "| unrecovered |" in card
    gates = json.loads((folder / "certificate.json").read_text())["gates"]
    assert next(g for g in gates if g["gate"]["name"] == "unrecovered")["passed"]


@pytest.mark.integration
def test_what_a_callers_text_does_not_show_is_measured_on_the_built_in_one(approximate):
    """The hook's own damage of it, the folder's, and a gate on their difference."""
    hosted, plan, made, folder = approximate
    own, found = retain_text(hosted), measured(made.certificate)
    with torch.inference_mode():
        hook = finish(retain_kl(hosted, own, (feature(0, 6, Ablate()),)))
        stock = AutoModelForCausalLM.from_pretrained(folder, dtype=hosted.model.dtype).eval()
        apart = []
        for window, plain in zip(own.windows, finish(plain_logits(hosted, own)), strict=True):
            logits = stock(torch.tensor([window])).logits[0]
            log_p, log_q = (one.double().log_softmax(-1) for one in (plain, logits))
            apart.append((log_p.exp() * (log_p - log_q)).sum(-1))
    exported = float(torch.cat(apart).mean())
    assert found["retain_builtin_kl_original_intervened_mean"] == pytest.approx(hook.everywhere, rel=1e-4)
    assert found["retain_builtin_kl_original_exported_mean"] == pytest.approx(exported, rel=1e-4)
    assert found["retain_builtin_excess"] == pytest.approx(abs(exported - hook.everywhere), rel=1e-3)
    assert found["retain_builtin_kl_original_exported_mean"] != found["retain_kl_original_exported_mean"]
    assert "retain_builtin_excess" in {gate.name for gate in plan.gates}
    environment = json.loads((folder / "certificate.json").read_text())["environment"]
    assert environment["retain_text"] == f"retain-1 (sha256 {own.sha256})"
    assert environment["retain_tokens"] == str(sum(map(len, own.windows)))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"built-in retain text, {own.n_tokens} tokens of `{own.label}`" in card
    assert "Damage was measured on two texts only" in card
    without = planned(hosted, ExportOptions(min_recovery=0.5))[1]
    assert "retain_builtin_excess" not in {gate.name for gate in without.gates}


@pytest.mark.integration
def test_a_fit_below_its_tolerance_is_refused(approximate, finding, tmp_path):
    """By the name of what was missed, with these very figures; nothing is published."""
    hosted, found = approximate[0], finding()
    edit, plan = planned(hosted, STRICT)
    with torch.inference_mode(), pytest.raises(GateMissedError, match="nothing was published") as caught:
        finish(compiling(hosted, edit, plan, tmp_path / "edited", options=STRICT))
    assert caught.value.context["gates"] == "unrecovered, unrecovered_firing"
    assert f"unrecovered = {found['unrecovered']:.3g} share" in caught.value.message
    assert "planned at most 0.1" in caught.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_an_edit_that_moves_nothing_on_the_text_is_told_so(approximate, finding, tmp_path):
    """There is no share of nothing; the error asks for another text."""
    hosted = approximate[0]
    finding("recovery", "unrecovered")
    edit, plan = planned(hosted, LENIENT)
    with torch.inference_mode(), pytest.raises(GateMissedError, match="moves nothing on the text") as caught:
        finish(compiling(hosted, edit, plan, tmp_path / "edited", options=LENIENT))
    assert "e+308" not in caught.value.message
    assert list(tmp_path.iterdir()) == []

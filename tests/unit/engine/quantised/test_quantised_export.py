"""Exports with GGUF files: the graft without biases, the figures, what stock transformers makes of biases."""

from __future__ import annotations

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.resident_sets import resident_set
from tests.unit.engine.exporting import compiling, edit_of
from tests.unit.engine.weights.folders import compiled, feature, parent, written
from trephine.client.verification import verify_folder
from trephine.domain.errors import UnsupportedOptionError
from trephine.domain.exports import ExportOptions, PlanExport
from trephine.domain.interventions import Ablate
from trephine.engine.exports import export as export_module
from trephine.engine.exports.planning import plan_export
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.quantised.conversion import Layout, convert
from trephine.engine.weights import gguf_families as families

ABLATIONS = (feature(0, 3, Ablate()), feature(1, 5, Ablate()))
GGUF = ExportOptions(gguf=("q8_0", "q4_0"))


def planned(hosted, options):
    """Plan the two ablations."""
    with torch.inference_mode():
        command = PlanExport(edit=edit_of(hosted, *ABLATIONS), options=options)
        return finish(plan_export(Session(hosted=hosted), command))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A grafted export with its files: hosted parent, plan, export, folder."""
    base = tmp_path_factory.mktemp("quantised")
    hosted = parent("llama", base / "parent", biases=False, common=1.0)
    resident_set(hosted, "jumprelu")
    (base / "exports").mkdir()
    folder, plan = base / "exports" / "edited", planned(hosted, GGUF)
    with torch.inference_mode():
        export = finish(compiling(hosted, edit_of(hosted, *ABLATIONS), plan, folder, options=GGUF))
    return hosted, plan, export, folder


@pytest.mark.integration
def test_the_files_still_carry_the_edit(made):
    """Against the quantised parent that is intervened in: most of the effect where the features fire."""
    *_, export, folder = made
    copies = {copy.kind: copy for copy in export.certificate.quantised}
    assert set(copies) == {"q8_0", "q4_0"}
    for copy in copies.values():
        assert (folder / copy.file).stat().st_size == copy.size
        assert copy.file in {file.path for file in export.files}
        assert copy.edit_kl_firing > copy.kl_firing
    assert min(copy.recovery_firing for copy in copies.values()) > 0.9
    assert copies["q8_0"].quantisation_kl < copies["q4_0"].quantisation_kl
    assert "| q4_0 |" in (folder / "README.md").read_text()
    assert verify_folder(folder).passed


@pytest.mark.integration
def test_the_plan_counts_the_files(made):
    """Blocks of 32 weights take 34 and 18 bytes, those of the graft included; the plan is no less."""
    hosted, plan, _, folder = made
    more = sum(each.stat().st_size for each in folder.rglob("*.safetensors"))
    more -= sum(each.stat().st_size for each in hosted.folder.rglob("*.safetensors"))
    weights = hosted.info.n_parameters + more // 4
    assert plan.size_growth_bytes - more >= weights * (34 + 18) // 32
    bare = planned(hosted, ExportOptions())
    assert bare.size_growth_bytes < plan.size_growth_bytes - weights


@pytest.mark.integration
def test_a_changed_file_does_not_verify(made):
    """Files are part of what was published."""
    *_, folder = made
    file = folder / "gguf" / "q4_0.gguf"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert any("gguf/q4_0.gguf" in problem for problem in verify_folder(folder).problems)
    finally:
        file.write_bytes(whole)


@pytest.mark.integration
def test_grafts_for_gguf_use_no_biases(made):
    """The plan says who would leave them out, and a plan with files gives none."""
    hosted, plan, *_ = made
    assert not any("mlp_bias" in change for change in plan.config_changes)
    with_biases = planned(hosted, ExportOptions())
    assert any("mlp_bias" in change for change in with_biases.config_changes)
    readers = {s.server: s for s in with_biases.servers}
    assert not readers["transformers, from GGUF"].loads
    assert "--gguf" in readers["transformers, from GGUF"].note
    assert {s.server: s.loads for s in plan.servers}["transformers, from GGUF"]


@pytest.mark.integration
def test_why_stock_transformers_reads_files_with_biases_as_the_unedited_model(made, tmp_path, monkeypatch):
    """It has no key for `mlp_bias`, so that grafted neurons, whose up projection is a bias, stay silent."""
    hosted, *_ = made
    folder = written(hosted, compiled(hosted, ABLATIONS), tmp_path / "biased")
    with pytest.raises(UnsupportedOptionError, match="biases"):
        Layout(hosted, folder, "q8_0")
    monkeypatch.setattr(families, "_unread", lambda family, config: "")
    (tmp_path / "files").mkdir()
    list(convert(hosted, folder, "q8_0", tmp_path / "files" / "q8_0.gguf", "biased"))
    names = {t.name for t in gguf.GGUFReader(tmp_path / "files" / "q8_0.gguf").tensors}
    assert "blk.0.ffn_up.bias" in names
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "files", gguf_file="q8_0.gguf")
    assert not any("mlp" in name and name.endswith("bias") for name, _ in stock.named_parameters())


@pytest.mark.integration
def test_what_cannot_be_converted_is_refused_by_the_plan(tmp_path):
    """By field, before anything is written."""
    hosted = parent("gemma2", tmp_path / "parent")
    resident_set(hosted, "jumprelu")
    with pytest.raises(UnsupportedOptionError) as refused:
        planned(hosted, GGUF)
    assert refused.value.context["field"] == "gguf"


@pytest.mark.integration
def test_the_room_that_is_asked_for_holds_all_that_is_written(made, tmp_path, monkeypatch):
    """What the quantised parent answers lies beside what the parent answers: more than papers take."""
    hosted, plan, *_ = made
    asked, most = [], 0
    monkeypatch.setattr(export_module, "require_space", lambda folder, needed: asked.append(needed))
    with torch.inference_mode():
        command = compiling(hosted, edit_of(hosted, *ABLATIONS), plan, tmp_path / "edited", options=GGUF)
        for _ in command:
            sizes = [each.lstat().st_size for each in tmp_path.rglob("*") if each.is_file()]
            most = max(most, sum(sizes))
    assert most <= asked[0] - export_module._SLACK_BYTES + (1 << 20)

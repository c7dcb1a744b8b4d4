"""Exact edits of bfloat16 files whose model is loaded in float32, as it is by default."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.builders import tiny_folder
from tests.unit.engine.exporting import edit_of, exported, hosted_in
from tests.unit.engine.interventions import direction, neuron
from trephine.domain.errors import GateMissedError
from trephine.domain.interventions import Ablate, Add, ProjectOut, Scale
from trephine.domain.sites import SiteKind
from trephine.engine.certificates.export_texts import export_texts
from trephine.engine.certificates.noise import noise_floor
from trephine.engine.certificates.rounding_floor import exact_floors, rounding_errors
from trephine.engine.models.quanta import finish
from trephine.engine.models.shards import read_entries
from trephine.engine.weights.assembly import Assembly
from trephine.engine.weights.compiling import compile_weights

AXIS = torch.randn(32, generator=torch.Generator().manual_seed(3)).tolist()
WRITERS = (
    direction(SiteKind.EMBED, 0, AXIS, ProjectOut()),
    *(
        direction(kind, layer, AXIS, ProjectOut())
        for layer in range(3)
        for kind in (SiteKind.ATTN_OUT, SiteKind.MLP_OUT)
    ),
)

SILENCED = tuple(neuron(layer, index, Ablate()) for layer in range(3) for index in (2, 5, 9, 11))


@pytest.mark.integration
@pytest.mark.parametrize(
    "edit", [WRITERS, (neuron(1, 4, Scale(factor=-3.0)),)], ids=["every writer", "one neuron"]
)
def test_what_is_rounded_to_the_files_is_not_refused_for_it(edit, tmp_path):
    """Every element is the nearest that the files can hold; the whole edit but rounding is carried."""
    hosted = hosted_in(tiny_folder("llama", tmp_path / "parent", dtype=torch.bfloat16), torch.float32)
    certificate = exported(hosted, edit_of(hosted, *edit), tmp_path / "exported").certificate
    assert certificate.verdict == "passed"
    found = {one.name: one.value for one in certificate.measurements}
    assert found["elements_off_plan"] == 0
    assert found["recovery"] > 0.999


@pytest.mark.integration
def test_one_of_twelve_neurons_at_nine_tenths_is_refused(tmp_path, monkeypatch):
    """It moves less than computing in bfloat16 does, and leaves less than a hundredth of the edit."""
    hosted = hosted_in(tiny_folder("llama", tmp_path / "parent", dtype=torch.bfloat16), torch.float32)
    write = Assembly.write_neurons

    def weaker(self, neurons, constants):
        write(self, [*neurons[:-1], replace(neurons[-1], factor=0.1)], constants)

    monkeypatch.setattr(Assembly, "write_neurons", weaker)
    with pytest.raises(GateMissedError) as caught:
        exported(hosted, edit_of(hosted, *SILENCED), tmp_path / "exported")
    assert "kl_intervened_exported_same_attention_mean" in caught.value.context["gates"]
    assert "unrecovered" in caught.value.context["gates"].split(", ")


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "qwen3", "gemma2"])
def test_rounding_is_measured_alone_and_the_parent_stays_as_it_is(family, tmp_path):
    """Silencing rounds nothing; a factor does, which moves answers and no parameter."""
    hosted = hosted_in(tiny_folder(family, tmp_path / "parent", dtype=torch.bfloat16), torch.float32)
    entries, text = read_entries(hosted.folder), export_texts(hosted, None).measured
    floor = finish(noise_floor(hosted, text, torch.bfloat16))
    before = {name: value.clone() for name, value in hosted.model.named_parameters()}
    for interventions in (SILENCED, (neuron(1, 4, Scale(factor=-3.3)),)):
        edit = edit_of(hosted, *interventions)
        changes = finish(compile_weights(hosted, entries, edit, text.windows)).changes
        found = finish(exact_floors(hosted, text, changes, interventions, floor))
        assert bool(rounding_errors(hosted, changes)) == (interventions is not SILENCED)
        assert (found.rounded.mean > 0) == (interventions is not SILENCED)
    assert all(torch.equal(value, before[name]) for name, value in hosted.model.named_parameters())


def test_a_tensor_of_a_wide_type_among_narrow_ones_has_no_rounding(tmp_path):
    """What is added to it is no error: counted as one, a wrong change would make room for itself."""
    hosted = hosted_in(tiny_folder("gpt2", tmp_path / "parent"), torch.float32)
    entries, text = read_entries(hosted.folder), export_texts(hosted, None).measured
    edit = edit_of(hosted, direction(SiteKind.MLP_OUT, 1, AXIS, Add(amount=0.5)))
    changes = finish(compile_weights(hosted, entries, edit, text.windows)).changes
    assert any(change.added is not None for change in changes)
    assert rounding_errors(hosted, changes) == {}

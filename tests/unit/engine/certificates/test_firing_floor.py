"""Floors where features fire, and what is in doubt where they do not."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.builders import hosted_from, tiny_folder
from tests.resident_sets import resident_set
from tests.unit.engine.exporting import edit_of, exported, hosted_in, planned, write_key
from tests.unit.engine.interventions import neuron
from tests.unit.engine.weights.folders import feature, parent
from trephine.domain.interventions import Ablate, Scale
from trephine.engine.certificates import certifier
from trephine.engine.certificates.firing import firing_masks
from trephine.engine.certificates.firing_floor import firing_floor
from trephine.engine.certificates.noise import noise_floor
from trephine.engine.models.quanta import finish
from trephine.engine.replacements.sets import opened
from trephine.engine.runs.retain import retain_text, window_logits
from trephine.engine.weights.operations import FeatureOp

TEXT = "The old mill by the river had not turned for years, and nobody in the village could say why. " * 4


@pytest.mark.parametrize(
    ("operation", "intervened_counts"),
    [(Ablate(), None), (Scale(factor=30.0), True)],
    ids=["ablate", "scale"],
)
@torch.inference_mode()
def test_the_files_type_costs_the_intervened_parent_what_a_load_in_that_type_says(
    operation, intervened_counts, tmp_path
):
    """Narrowed module by module with its interventions in place, against the same folder loaded narrow."""
    folder = tiny_folder("llama", tmp_path / "parent", dtype=torch.bfloat16)
    hosted = hosted_in(folder)
    resident_set(hosted, "relu")
    narrow = hosted_from(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval())
    narrow.replacements.update(hosted.replacements)
    edit, retain = (feature(0, 3, operation),), retain_text(hosted, TEXT)
    ops = [FeatureOp(feature=edit[0].target.feature)]
    floor = finish(noise_floor(hosted, retain, torch.bfloat16))
    found = finish(firing_floor(hosted, retain, ops, edit, floor, torch.bfloat16))
    masks = torch.cat(finish(firing_masks(hosted, retain.windows, ops, edit)))
    apart = [[window_logits(model, w, edit).float() for w in retain.windows] for model in (hosted, narrow)]
    intervened = float(torch.cat([certifier.kl(p, q) for p, q in zip(*apart, strict=True)])[masks].mean())
    unedited = float(floor.stored.values[masks].mean())
    assert found.stored == pytest.approx(max(unedited, intervened), rel=1e-3)
    assert found.stored >= unedited > 0
    assert intervened_counts is None or (intervened > 1.1 * unedited) == intervened_counts
    assert finish(firing_floor(hosted, retain, ops, edit, floor)).stored == pytest.approx(unedited)


def test_one_feature_that_never_fires_leaves_a_doubt(tmp_path):
    """Beside one that does: what is certified of both is of the one alone, and the plan names the other."""
    hosted = parent("llama", tmp_path / "parent", biases=False)
    resident_set(hosted, "jumprelu")
    with opened(hosted, "set", [2]) as layers:
        layers[2].encoder.support.threshold[8] = 1e4
    found = planned(hosted, edit_of(hosted, feature(0, 4, Ablate()), feature(2, 8, Ablate())))
    assert "nothing is certified about set:2:8" in found.doubt
    assert "set:0:4" not in found.doubt
    assert not planned(hosted, edit_of(hosted, feature(0, 4, Ablate()))).doubt


def test_what_is_not_carried_leaves_a_doubt(tmp_path):
    """A feature that can only be fitted, and never acts on the text, beside a strong edit that is exact."""
    hosted = parent("llama", tmp_path / "parent", biases=False)
    resident_set(hosted, "attn_out", name="sae")
    edit = edit_of(hosted, neuron(0, 3, Scale(factor=-6.0)), feature(1, 5, Ablate(), name="sae"))
    assert "interventions 1 of the edit" in planned(hosted, edit).doubt
    (tmp_path / "exports").mkdir()
    made = exported(
        hosted, edit, tmp_path / "exports" / "mixed", signing_key=str(write_key(tmp_path / "key.pem"))
    )
    assert made.certificate.verdict == "inconclusive"

"""Floors where features fire: rounding is of the parent, unedited or intervened in, whichever is more."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.builders import hosted_from, tiny_folder
from tests.resident_sets import resident_set
from tests.unit.engine.exporting import hosted_in
from tests.unit.engine.weights.folders import feature
from trephine.domain.interventions import Ablate, Scale
from trephine.engine import certifier
from trephine.engine.firing import firing_masks
from trephine.engine.firing_floor import firing_floor
from trephine.engine.noise import noise_floor
from trephine.engine.quanta import finish
from trephine.engine.retain import retain_text, window_logits
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

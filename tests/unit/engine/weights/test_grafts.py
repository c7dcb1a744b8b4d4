"""Grafted features on every family: the reloaded folder is the intervened runtime (law 8)."""

from __future__ import annotations

import json

import pytest
import torch

from tests.resident_sets import resident_set
from tests.unit.engine.weights.folders import compiled, distances, feature, parent, written
from trephine.domain.errors import EditNotExpressibleError
from trephine.domain.interventions import Ablate, Add, Clamp, ErrorTerm, Intervention, Scale, SetTo
from trephine.engine.models.shards import read_entries, sha256_of
from trephine.engine.replacements.sets import opened
from trephine.engine.weights.mlp import padded
from trephine.engine.weights.postnorm import nearest

ABLATIONS = (feature(0, 3, Ablate()), feature(1, 5, Ablate()), feature(1, 8, Scale(factor=-0.5)))
EVERY = (
    feature(0, 3, SetTo(value=1.5)),
    feature(1, 5, Clamp(low=0.2, high=1.0)),
    feature(1, 8, Add(amount=0.7)),
    feature(2, 4, Ablate(), at_least=1.0),
    feature(2, 6, Scale(factor=3.0)),
)


@pytest.mark.parametrize(
    ("family", "biases", "kind"),
    [
        ("llama", True, "jumprelu"),
        ("llama", True, "skip"),  # a skip path plays no part in what is added
        ("llama", False, "jumprelu"),
        ("gpt2", True, "jumprelu"),
        ("gpt_neox", True, "jumprelu"),
        ("gpt_neox_sequential", True, "relu"),
    ],
)
def test_where_there_are_biases_a_graft_is_the_feature(family, biases, kind, tmp_path):
    """Ablated, scaled, set, clamped, added to, conditional: to rounding, in stock transformers."""
    hosted = parent(family, tmp_path / "parent", biases=biases)
    resident_set(hosted, kind)
    program = compiled(hosted, EVERY)
    assert {note.tier for note in program.notes.values()} == {"graft"}
    assert not program.fitted
    left, whole = distances(hosted, EVERY, written(hosted, program, tmp_path / "exported"))
    assert whole > 1e-3
    assert left < 1e-3 * whole  # random features cross their thresholds densely; real ones do not
    assert ("mlp_bias" in program.config) == (not biases)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_without_biases_a_nearly_constant_direction_stands_in(family, tmp_path):
    """How constant it is, and how often it misfires, is in the plan; 0.99 of the edit is carried."""
    hosted = parent(family, tmp_path / "parent", common=4.0)
    resident_set(hosted, "relu")
    program = compiled(hosted, ABLATIONS)
    for note in program.notes.values():
        assert "nearly constant" in note.description
        assert "misfires on" in note.description
    assert program.fitted
    assert list(program.config) == ["intermediate_size"]
    left, whole = distances(hosted, ABLATIONS, written(hosted, program, tmp_path / "exported"))
    assert left < 0.01 * whole  # recovery 0.99, as asked of grafts; they reach more


def test_before_a_post_norm_a_graft_is_fitted_and_says_so(tmp_path):
    """Gemma-2 rescales what its MLP writes: what comes nearest behind the norm is fitted, above the gate."""
    hosted = parent("gemma2", tmp_path / "parent", common=0.5)
    resident_set(hosted, "relu")
    program = compiled(hosted, ABLATIONS)
    assert program.fitted
    assert all("the norm behind the MLP rescales" in note.description for note in program.notes.values())
    left, whole = distances(hosted, ABLATIONS, written(hosted, program, tmp_path / "exported"))
    assert left < 0.08 * whole  # a column to first order leaves 0.10


def test_before_a_post_norm_a_constant_has_no_gate_and_is_fitted(tmp_path):
    """Adding to a feature is the same on every token: no unit makes it, alone or beside what has one."""
    hosted = parent("gemma2", tmp_path / "parent", common=0.5)
    resident_set(hosted, "relu")
    added, scaled = feature(1, 3, Add(amount=2.0)), feature(1, 8, Scale(factor=-0.5))
    program = compiled(hosted, (added,))
    assert "what is added is a constant, which no gate makes" in program.notes[0].description
    left, whole = distances(hosted, (added,), written(hosted, program, tmp_path / "alone"))
    assert left < 0.08 * whole  # the nearest answers of the norm leave 0.06; a column to first order 0.11
    program = compiled(hosted, (added, scaled))
    assert [program.notes[number].tier for number in (0, 1)] == ["ridge", "graft"]
    left, whole = distances(hosted, (added, scaled), written(hosted, program, tmp_path / "beside"))
    assert left < 0.15 * whole  # the nearest answers leave 0.11


@pytest.mark.parametrize("pre", [-1.0, 0.0, 2.0])
def test_a_feature_that_reads_nothing_is_a_constant(pre, tmp_path):
    """One whose encoder died has one pre-activation for all inputs: no knee, and no range to divide by."""
    hosted = parent("llama", tmp_path / "parent")
    resident_set(hosted, "relu")
    with opened(hosted, "set", [1]) as layers:
        encoder = layers[1].encoder
        encoder.W_enc[:, 3], encoder.b_enc[3] = 0.0, pre
    still = compiled(hosted, (feature(1, 3, Clamp(low=-9.0)),))
    assert (still.notes[0].tier, still.changes) == ("noop", ())
    raised = (feature(1, 3, SetTo(value=3.0)),)
    program = compiled(hosted, raised)
    assert not program.fitted
    left, whole = distances(hosted, raised, written(hosted, program, tmp_path / "exported"))
    assert left < 1e-6 * whole


def test_the_nearest_answer_of_a_norm_is_nearest():
    """Of mean square 1 in front of the gain; no small turn comes closer, and what has its size stays."""
    draw = torch.Generator().manual_seed(0)
    gain, wanted = (torch.randn(*size, generator=draw).double() for size in ((24,), (40, 24)))
    found = nearest(gain, wanted)
    assert torch.allclose(found.square().mean(1), torch.ones(40, dtype=torch.float64))
    distance = (gain * found - wanted).norm(dim=1)
    for _ in range(20):
        turned = found + 1e-3 * torch.randn(40, 24, generator=draw)
        turned = turned / turned.square().mean(1, keepdim=True).sqrt()
        assert bool(((gain * turned - wanted).norm(dim=1) >= distance - 1e-12).all())
    assert torch.allclose(nearest(gain, gain * found), found)


def test_all_other_tensors_keep_their_bytes(tmp_path):
    """Names, order and bytes; grown tensors begin with their parent's numbers and end in zeros."""
    hosted = parent("llama", tmp_path / "parent")
    resident_set(hosted, "jumprelu")
    program = compiled(hosted, ABLATIONS)
    folder = written(hosted, program, tmp_path / "exported")
    before, after = read_entries(hosted.folder), read_entries(folder)
    changed = {change.name for change in program.changes}
    assert set(after) == set(before)
    for name in set(before) - changed:
        assert sha256_of(folder, after[name]) == sha256_of(hosted.folder, before[name])
    config = json.loads((folder / "config.json").read_text())
    old = json.loads((hosted.folder / "config.json").read_text())
    assert {key for key in config if config[key] != old.get(key)} == {"intermediate_size"}
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(e.end - e.start for e in after.values())


def test_widths_stay_friendly():
    """To a multiple of 256 where the parent's is one, else of the largest power of two in it."""
    assert [padded(n, 1536) for n in (1, 256, 257)] == [256, 256, 512]
    assert [padded(n, 64) for n in (1, 65)] == [64, 128]
    assert padded(3, 100) == 4


def test_bfloat16_gains_keep_large_numbers_out(tmp_path):
    """Biases of units stay under 100, and answers under what float16 can hold."""
    hosted = parent("llama", tmp_path / "parent", dtype=torch.bfloat16)
    resident_set(hosted, "jumprelu")
    program = compiled(hosted, ABLATIONS)
    for change in program.changes:
        if (
            change.name.endswith("gate_proj.bias")
            and change.growth is not None
            and change.growth.values is not None
        ):
            assert float(change.growth.values.abs().max()) <= 101.0
    assert max(note.predicted_error for note in program.notes.values()) < 1e-2


def test_an_error_term_that_is_dropped_is_refused(tmp_path):
    """The MLP is kept, so what the set does not explain is kept."""
    hosted = parent("llama", tmp_path / "parent")
    resident_set(hosted, "jumprelu")
    dropped = Intervention(target=ABLATIONS[0].target, operation=Ablate(), error_term=ErrorTerm.DROP)
    with pytest.raises(EditNotExpressibleError) as caught:
        compiled(hosted, (ABLATIONS[1], dropped))
    assert caught.value.context["field"] == "interventions[1].error_term"

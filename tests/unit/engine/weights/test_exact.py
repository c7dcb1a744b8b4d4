"""The exact tier: maps of what modules read and write, every writer's projection, constants."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.builders import tiny_folder
from tests.resident_sets import resident_set
from tests.unit.engine.exporting import hosted_in
from tests.unit.engine.interventions import direction, neuron, whole
from tests.unit.engine.weights.folders import MEASURED, compiled, distances, feature, parent, written
from trephine.domain.edit_strength import at_strength
from trephine.domain.errors import EditNotExpressibleError
from trephine.domain.interventions import Ablate, Add, Clamp, ProjectOut, Scale, SetTo
from trephine.domain.sites import SiteKind
from trephine.engine.weights.tensors import stochastic

V = torch.randn(32, generator=torch.Generator().manual_seed(3)).tolist()
WRITERS = (
    direction(SiteKind.EMBED, 0, V, ProjectOut()),
    *(
        direction(kind, n, V, ProjectOut())
        for n in range(3)
        for kind in (SiteKind.ATTN_OUT, SiteKind.MLP_OUT)
    ),
)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_direction_removed_at_every_writer_is_gone(family, tmp_path):
    """Embeddings, positions, attention, MLPs; a tied unembedding keeps the parent's matrix."""
    hosted = parent(family, tmp_path / "parent")
    program = compiled(hosted, WRITERS)
    assert {note.tier for note in program.notes.values()} == {"exact"}
    folder = written(hosted, program, tmp_path / "exported")
    left, whole_edit = distances(hosted, WRITERS, folder)
    assert left < 1e-9 < 1e-3 < whole_edit
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        states = model(torch.tensor(MEASURED), output_hidden_states=True).hidden_states[:-1]
    unit = torch.tensor(V) / torch.tensor(V).norm()
    assert max(float((state @ unit).abs().max()) for state in states) < 1e-4
    assert bool(program.config.get("tie_word_embeddings", True)) != hosted.info.tied_embeddings


def test_files_of_a_bare_model_are_untied_as_they_are_named(tmp_path):
    """GPT-2 as released: no prefix, and no unembedding among the names that transformers prefixes."""
    folder = tiny_folder("gpt2", tmp_path / "parent")
    shard = folder / "model.safetensors"
    bare = {name.removeprefix("transformer."): tensor for name, tensor in load_file(shard).items()}
    save_file({name: bare[name] for name in bare if name != "lm_head.weight"}, shard, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    hosted = hosted_in(folder)
    assert hosted.info.tied_embeddings
    program = compiled(hosted, WRITERS)
    assert {"lm_head.weight", "wte.weight", "wpe.weight"} <= {change.name for change in program.changes}
    left, whole_edit = distances(hosted, WRITERS, written(hosted, program, tmp_path / "exported"))
    assert left < 1e-9 < 1e-3 < whole_edit


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_an_unembedding_that_is_stored_beside_its_tied_twin_keeps_its_own(family, tmp_path):
    """The edit is the embedding's; the config must not say any longer that both are one."""
    folder = tiny_folder(family, tmp_path / "parent")
    shard = folder / "model.safetensors"
    tensors = load_file(shard)
    twin = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tensors | twin, shard, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    hosted = hosted_in(folder)
    assert hosted.info.tied_embeddings
    program = compiled(hosted, WRITERS)
    assert program.config["tie_word_embeddings"] is False
    assert "lm_head.weight" not in {change.name for change in program.changes}
    left, whole_edit = distances(hosted, WRITERS, written(hosted, program, tmp_path / "exported"))
    assert left < 1e-9 < 1e-3 < whole_edit


def test_the_same_at_residual_sites_moves_to_their_writers(tmp_path):
    """With every writer before it cleared, only the last one adds the direction to a residual site."""
    hosted = parent("llama", tmp_path / "parent")
    sites = [
        (SiteKind.RESID_PRE, 0),
        *((kind, n) for n in range(3) for kind in (SiteKind.RESID_MID, SiteKind.RESID_POST)),
    ]
    edit = tuple(direction(kind, n, V, ProjectOut()) for kind, n in sites)
    program = compiled(hosted, edit)
    assert {note.tier for note in program.notes.values()} == {"exact"}
    left, _ = distances(hosted, edit, written(hosted, program, tmp_path / "exported"))
    assert left < 1e-9
    alone = compiled(hosted, edit[2:3])
    assert alone.notes[0].tier == "ridge"
    assert "carries what earlier writers wrote" in alone.notes[0].description


MIXED = (
    whole(SiteKind.ATTN_Z, 0, Scale(factor=0.5)),
    direction(SiteKind.ATTN_Z, 1, [1.0, *[0.0] * 31], Ablate()),
    direction(SiteKind.MLP_OUT, 1, V, Scale(factor=-2.0)),
    direction(SiteKind.RESID_POST, 0, V, Add(amount=0.3)),
    neuron(2, 5, SetTo(value=0.7)),
    neuron(2, 6, Scale(factor=0.2)),
)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_heads_directions_and_constants_are_exact_where_there_are_biases(family, tmp_path):
    """What attention's projection reads, what MLPs write, steering, a neuron held at a value."""
    hosted = parent(family, tmp_path / "parent")
    program = compiled(hosted, MIXED)
    assert {note.tier for note in program.notes.values()} == {"exact"}
    left, whole_edit = distances(hosted, MIXED, written(hosted, program, tmp_path / "exported"))
    assert left < 1e-9 < whole_edit


def test_a_constant_without_a_bias_goes_along_what_is_nearly_constant(tmp_path):
    """How constant it is stands in the plan; nothing about the config changes."""
    hosted = parent("qwen3", tmp_path / "parent", common=4.0)
    steering = (direction(SiteKind.MLP_OUT, 1, V, Add(amount=0.5)),)
    program = compiled(hosted, steering)
    assert program.notes[0].tier == "near_constant"
    assert "there is no bias" in program.notes[0].description
    assert program.notes[0].predicted_error > 0
    assert program.config == {}
    left, whole_edit = distances(hosted, steering, written(hosted, program, tmp_path / "exported"))
    assert left < 0.2 * whole_edit


def test_attention_biases_are_switched_on_where_the_config_can(tmp_path):
    """A constant that a Llama's attention writes: four zero biases a layer, and one that is not."""
    hosted = parent("llama", tmp_path / "parent", biases=False)
    steering = (direction(SiteKind.ATTN_OUT, 1, V, Add(amount=0.5)),)
    program = compiled(hosted, steering)
    folder = written(hosted, program, tmp_path / "exported")
    assert program.config == {"attention_bias": True}
    assert not program.fitted
    assert len(program.changes) == 4 * hosted.info.n_layers
    left, whole_edit = distances(hosted, steering, folder)
    assert left < 1e-9 < whole_edit


def test_mlp_biases_are_switched_on_where_the_config_can(tmp_path):
    """A steering constant in a Llama without biases: three zero biases a layer, and one that is not."""
    hosted = parent("llama", tmp_path / "parent", biases=False)
    steering = (direction(SiteKind.MLP_OUT, 1, V, Add(amount=0.5)),)
    program = compiled(hosted, steering)
    folder = written(hosted, program, tmp_path / "exported")
    assert program.config == {"mlp_bias": True}
    assert json.loads((folder / "config.json").read_text())["mlp_bias"] is True
    left, whole_edit = distances(hosted, steering, folder)
    assert left < 1e-9 < whole_edit


def test_what_scales_and_shifts_is_carried_at_its_strength(tmp_path):
    """`set` and the projection of a decoder keep their strength in composed edits; a bound is no share."""
    hosted = parent("llama", tmp_path / "parent")
    resident_set(hosted, "relu")
    given = (
        neuron(0, 4, SetTo(value=1.5)),
        direction(SiteKind.ATTN_OUT, 1, V, SetTo(value=-2.0)),
        feature(1, 5, SetTo(value=1.5)),
        feature(2, 3, ProjectOut()),
    )
    part = at_strength(given, 0.4)
    assert {one.mode.strength for one in part} == {0.4}
    left, edit = distances(hosted, part, written(hosted, compiled(hosted, part), tmp_path / "exported"))
    assert edit > 1e-3
    assert left < 1e-6 * edit
    with pytest.raises(EditNotExpressibleError, match="clamp goes a share of its way in no weights"):
        compiled(hosted, at_strength((feature(1, 5, Clamp(high=1.0)),), 0.4))


@pytest.mark.parametrize("kind", [SiteKind.ATTN_OUT, SiteKind.MLP_OUT])
@pytest.mark.parametrize("operation", [Ablate(), Scale(factor=-1.5)])
def test_behind_a_post_norm_all_of_an_output_is_scaled_by_the_norms_gain(kind, operation, tmp_path):
    """Gemma-2's norm undoes what is scaled in front of it, and its files hold the gain less 1."""
    hosted = parent("gemma2", tmp_path / "parent")
    given = (whole(kind, 1, operation), neuron(1, 4, Ablate()))
    program = compiled(hosted, given)
    assert program.exact
    assert "gain of the norm behind its module" in program.notes[0].description
    left, edit = distances(hosted, given, written(hosted, program, tmp_path / "exported"))
    assert edit > 1e-3
    assert left < 1e-6 * edit
    beside = (given[0], direction(kind, 1, V, ProjectOut()))
    with pytest.raises(EditNotExpressibleError, match="leave one of them out") as refused:
        compiled(hosted, beside)
    assert refused.value.context["field"] == "interventions[0].operation"


def test_stochastic_rounding_keeps_small_deltas():
    """Nearest rounding to bfloat16 loses most of a delta of a thousandth; seeded draws keep its mean."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(400, 400, generator=draw).to(torch.bfloat16)
    delta = 1e-3 * torch.randn(400, 400, generator=draw, dtype=torch.float64)
    exact = weight.double() + delta

    def gain(rounded):
        return float(((rounded.double() - weight.double()) * delta).sum() / delta.square().sum())

    def drawn():
        return stochastic(exact, torch.bfloat16, torch.Generator().manual_seed(1))

    rounded = drawn()
    assert gain(exact.to(torch.bfloat16)) < 0.8
    assert abs(gain(rounded) - 1.0) < 0.03
    assert torch.equal(rounded, drawn())

"""A plan says what will be written and what must hold, before anything is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.builders import FAMILIES, tiny_folder
from tests.unit.engine.exporting import edit_of, hosted_in, planned
from tests.unit.engine.interventions import at, neuron
from trephine.domain.errors import (
    BrokenCheckpointError,
    EditNotExpressibleError,
    ParentChangedError,
    UnsupportedOptionError,
)
from trephine.domain.interventions import Ablate, Scale
from trephine.engine.certificates.rounding_floor import exact_floors
from trephine.engine.exports import planning
from trephine.engine.exports.planning import plan_hash
from trephine.engine.models.shards import overwrite, read_entries, read_tensor
from trephine.engine.weights.mlp import stored_mlp


@pytest.fixture
def hosted(tmp_path):
    """A tiny model from a folder of several shards."""
    return hosted_in(tiny_folder("llama", tmp_path / "parent", max_shard_size="40KB"))


def test_the_plan_names_every_tensor_that_changes(hosted):
    """One per layer, whatever the number of neurons; all others are counted as untouched."""
    plan = planned(
        hosted,
        edit_of(hosted, neuron(0, 3, Ablate()), neuron(0, 9, Ablate()), neuron(2, 5, Scale(factor=0.5))),
    )
    names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 2)]
    assert list(plan.changed_tensors) == names
    assert plan.untouched_tensors == len(read_entries(hosted.folder)) - 2
    assert [(s.intervention, s.tier, s.tensor) for s in plan.steps] == [
        (0, "exact", names[0]),
        (1, "exact", names[0]),
        (2, "exact", names[1]),
    ]
    assert "column 5" in plan.steps[2].description
    assert "0.5" in plan.steps[2].description
    assert plan.config_changes == ()
    assert plan.size_growth_bytes == 4 * (2 + 2) * (32 + 64), (
        "the factors of an adapter, all of one rank: two columns, and one"
    )
    assert plan.parent_hash == hosted.info.weight_hash


def test_a_plan_is_measured_once_for_the_same_edit_and_options(hosted, monkeypatch):
    """An export is planned three times on its way; what differs in anything gets a plan of its own."""
    passes = []

    def counted(*given: Any, **options: Any) -> Any:
        passes.append(given)
        return exact_floors(*given, **options)

    monkeypatch.setattr(planning, "exact_floors", counted)
    edit = edit_of(hosted, neuron(0, 3, Ablate()))
    first = planned(hosted, edit)
    assert planned(hosted, edit) == first
    assert len(passes) == 1
    renamed = planned(hosted, replace(edit, name="other"))
    assert (renamed.edit, len(passes)) == ("other", 2)
    stronger = planned(hosted, edit_of(hosted, neuron(0, 3, Ablate()), neuron(1, 3, Ablate())))
    assert (len(stronger.changed_tensors), len(passes)) == (2, 3)
    assert planned(hosted, edit) == first


def test_what_would_change_nothing_is_no_step_of_the_export(hosted):
    """A factor of 1, factors that cancel, and a column that is zero already."""
    entry = read_entries(hosted.folder)["model.layers.1.mlp.down_proj.weight"]
    tensor = read_tensor(hosted.folder, entry)
    tensor[:, 6] = 0
    overwrite(hosted.folder, entry, tensor)
    hosted = hosted_in(hosted.folder)
    edit = edit_of(
        hosted,
        neuron(0, 3, Scale(factor=1.0)),
        neuron(0, 4, Scale(factor=0.5)),
        neuron(0, 4, Scale(factor=2.0)),
        neuron(1, 6, Ablate()),
    )
    plan = planned(hosted, edit)
    assert {step.tier for step in plan.steps} == {"noop"}
    assert plan.changed_tensors == ()


def test_an_edit_of_no_interventions_plans_nothing(hosted):
    """It is its parent, and still has every gate, but for the share of an edit."""
    plan = planned(hosted, edit_of(hosted))
    assert (plan.steps, plan.changed_tensors) == ((), ())
    edited = planned(hosted, edit_of(hosted, neuron(0, 1, Ablate())))
    assert plan.gates == tuple(gate for gate in edited.gates if gate.name != "unrecovered")
    assert len(plan.gates) == len(edited.gates) - 1


@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_lie_along_the_axis_that_the_projection_reads(family, tmp_path):
    """Columns in Linear layers, rows in GPT-2's; the stored name may lack the model's prefix."""
    hosted = hosted_in(tiny_folder(family, tmp_path / family))
    down = stored_mlp(hosted, read_entries(hosted.folder), 1).down
    entry, axis = down.weight, down.input_axis
    stored = read_tensor(hosted.folder, entry)
    column = stored.select(axis, 7)
    assert axis == (0 if family == "gpt2" else 1)
    assert torch.equal(column, hosted.architecture.blocks[1].mlp.W_down[:, 7])


def test_an_edit_of_other_weights_is_refused(hosted):
    """Both hashes are named."""
    with pytest.raises(ParentChangedError) as caught:
        planned(hosted, edit_of(hosted, neuron(0, 1, Ablate()), weight_hash="f" * 64))
    assert caught.value.context["found"] == hosted.info.weight_hash


def test_a_model_with_an_adapter_is_refused(hosted):
    """Its files are not its weights."""
    hosted.info = replace(hosted.info, parent_hash="e" * 64)
    with pytest.raises(UnsupportedOptionError, match="adapter"):
        planned(hosted, edit_of(hosted, neuron(0, 1, Ablate())))


def test_an_edit_with_positions_is_refused_by_field(hosted):
    """Nothing is planned for the rest of it."""
    edit = edit_of(hosted, neuron(0, 1, Ablate()), neuron(0, 2, Ablate(), selector=at(14)))
    with pytest.raises(EditNotExpressibleError) as caught:
        planned(hosted, edit)
    assert caught.value.context["field"] == "interventions[1].selector.positions"


def test_files_that_do_not_hold_the_projection_are_refused(hosted):
    """A folder that was swapped under the loaded model shows at once."""
    entries = read_entries(hosted.folder)
    entry = entries.pop("model.layers.0.mlp.down_proj.weight")
    with pytest.raises(BrokenCheckpointError) as caught:
        stored_mlp(hosted, entries, 0)
    assert caught.value.context["tensor"] == entry.name


def test_the_hash_covers_everything_but_itself(hosted):
    """A loosened gate is another plan."""
    plan = planned(hosted, edit_of(hosted, neuron(0, 1, Ablate())))
    assert plan.plan_hash == plan_hash(plan) == plan_hash(replace(plan, plan_hash="anything"))
    loose = (replace(plan.gates[0], limit=1.0), *plan.gates[1:])
    assert plan_hash(replace(plan, gates=loose)) != plan.plan_hash
    assert planned(hosted, edit_of(hosted, neuron(0, 1, Ablate()))) == plan

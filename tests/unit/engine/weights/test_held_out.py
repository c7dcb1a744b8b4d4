"""What is fitted is judged on windows that it has not seen, and says so where there are none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.resident_sets import resident_set
from tests.unit.engine.exporting import edit_of
from tests.unit.engine.interventions import direction, neuron
from tests.unit.engine.weights.folders import compiled, distances, feature, parent, windows, written
from trephine.domain.errors import EditNotExpressibleError
from trephine.domain.interventions import Ablate, Add, Clamp, Scale
from trephine.domain.sites import Site, SiteKind
from trephine.engine.certificates.measurements import measurements_of
from trephine.engine.models.quanta import finish
from trephine.engine.models.shards import read_entries
from trephine.engine.weights import compiling, grafting
from trephine.engine.weights.capture import captured, stacked
from trephine.engine.weights.compiling import compile_weights
from trephine.engine.weights.held_out import split
from trephine.engine.weights.mlp import near_constant, stored_mlp
from trephine.engine.weights.operations import FeatureOp

V = torch.randn(32, generator=torch.Generator().manual_seed(3)).tolist()
CONSTANT = (direction(SiteKind.MLP_OUT, 1, V, Add(amount=0.5)),)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 24])
def test_nothing_is_tested_on_what_was_fitted_or_chosen_by_unless_that_is_said(count):
    """Every window has a part; fits and choices share none either, from three windows on."""
    parts = split(count)
    assert set(parts.taken) | set(parts.testing) == set(range(count))
    assert set(parts.fitting) | set(parts.choosing) == set(parts.taken)
    assert parts.held_out == (count >= 4) == (parts.measure == "held-out R^2")
    assert bool(parts.kept) == parts.held_out
    if count > 1:
        assert not set(parts.fitting) & set(parts.choosing)


def test_a_direction_that_is_constant_where_it_was_fitted_need_not_be_so_elsewhere():
    """More dimensions than tokens: hardly any residue where it was fitted, most of it on other tokens."""
    draw = torch.Generator().manual_seed(0)
    x, unseen = (1.0 + 4.0 * torch.randn(n, 64, generator=draw) for n in (40, 400))
    near = near_constant(x, unseen)
    assert near.residue < 0.01 < 0.1 < near.held_out == near.error
    assert "tokens kept back" in near.said
    alone = near_constant(x)
    assert (alone.held_out, alone.error) == (None, near.residue)
    assert "on the very tokens that u was fitted on" in alone.said


def compiled_on(hosted, interventions, text):
    """Compile an edit on a text of few windows."""
    edit = edit_of(hosted, *interventions)
    return finish(compile_weights(hosted, read_entries(hosted.folder), edit, text))


@torch.inference_mode()
def test_constants_without_a_bias_are_a_tier_of_their_own_with_an_error_of_windows_kept_back(tmp_path):
    """Not `exact`: an approximation, whose error on the fourth window is that of a fit on the other three."""
    hosted = parent("qwen2", tmp_path / "parent", common=4.0)
    text = windows(4, seed=3, length=24)
    program = compiled_on(hosted, CONSTANT, text)
    note = program.notes[0]
    site = Site(kind=SiteKind.NEURONS, layer=1)
    values = finish(captured(hosted, text, [site], ()))[site]
    near = near_constant(stacked(values[:3]), values[3])
    assert (note.tier, note.held_out) == ("near_constant", True)
    assert note.predicted_error == pytest.approx(near.held_out, rel=1e-3)
    assert near.held_out > 2 * near.residue
    assert (
        f"{near.held_out:.2g} on tokens kept back, {near.residue:.2g} where u was fitted" in note.description
    )
    assert program.calibration == {
        "near_constant_residue": pytest.approx(near.residue, rel=1e-3),
        "near_constant_residue_held_out": pytest.approx(near.held_out, rel=1e-3),
    }
    few = compiled_on(hosted, CONSTANT, text[:3])
    assert not few.notes[0].held_out
    assert "on the very tokens" in few.notes[0].description
    assert list(few.calibration) == ["near_constant_residue"]


@torch.inference_mode()
def test_misfires_of_a_graft_without_biases_are_of_windows_kept_back(tmp_path):
    """A jump near many tokens, fitted on few of them: told apart from where it was chosen."""
    hosted = parent("qwen3", tmp_path / "parent", common=2.0)
    resident_set(hosted, "jumprelu")
    edit, text = (feature(1, 30, Ablate()),), windows(16, seed=3, length=12)
    program = compiled_on(hosted, edit, text)
    note = program.notes[0]
    assert (note.tier, note.held_out) == ("graft", True)
    (each,) = finish(grafts_of(hosted, edit, text))
    assert each.unseen.error == note.predicted_error > 2 * each.fit.error
    assert each.unseen.misfires != each.fit.misfires
    measured = {one.name: one for one in measurements_of(program.calibration)}
    for name, value in (("", each.fit.misfires), ("_held_out", each.unseen.misfires)):
        assert (measured[f"graft_misfires{name}"].value, measured[f"graft_misfires{name}"].unit) == (
            value,
            "share",
        )
    assert measured["near_constant_residue_held_out"].unit == "square"
    assert f"misfires on {each.unseen.misfires:.2%} of the tokens kept back" in note.description
    assert f"{each.fit.misfires:.2%} where it was chosen" in note.description


def grafts_of(hosted, edit, text):
    """Compile the grafts of an edit alone."""
    ops = SimpleNamespace(grafts=compiling.sort_operations(hosted, edit).grafts)
    return compiling._grafts(hosted, read_entries(hosted.folder), ops, text, edit, False, None)


@torch.inference_mode()
def test_gains_are_chosen_on_what_the_server_reads_and_judged_by_what_the_runtime_answers(tmp_path):
    """Of bfloat16 files hosted in float32: the MLP's input is rounded when they are served."""
    hosted = parent("llama", tmp_path / "parent", dtype=torch.bfloat16)
    resident_set(hosted, "jumprelu")
    site, narrow = Site(kind=SiteKind.MLP_IN, layer=1), torch.bfloat16
    x = stacked(finish(captured(hosted, windows(12, seed=1), [site], ()))[site]).float()
    ref = feature(1, 5, Ablate()).target.feature
    op = compiling.sort_operations(hosted, (feature(1, 5, Ablate()),)).grafts[0]
    stored = stored_mlp(hosted, read_entries(hosted.folder), 1)
    made = grafting.graft(hosted, op, stored, x, narrow, biases=True)
    assert (op, ref.layer) == (FeatureOp(feature=ref, numbers=[0], changes=op.changes, order=0), 1)
    wanted = made.feature.difference(x.double() @ made.feature.w + made.feature.b)

    def error(read):
        answer = torch.zeros(len(read), dtype=torch.float64)
        for unit in made.fit.units:
            gate = (read @ unit.gate.float() + unit.gate_bias).to(narrow).float()
            answer += unit.amount * torch.nn.functional.silu(gate).to(narrow).double()
        return float((answer - wanted).square().mean() / wanted.square().mean())

    assert made.fit.error == pytest.approx(error(x.to(narrow).float()), rel=1e-6)
    assert made.fit.error != pytest.approx(error(x), rel=1e-2)


def test_a_constant_beside_scaled_neurons_reads_them_as_they_arrive(tmp_path):
    """They are scaled by the matrix that reads them, so that the direction is fitted on what reaches it."""
    hosted = parent("qwen2", tmp_path / "parent", common=4.0)
    edit = (*CONSTANT, *(neuron(1, n, Scale(factor=-3.0)) for n in range(40)))
    left, whole = distances(hosted, edit, written(hosted, compiled(hosted, edit), tmp_path / "exported"))
    assert left < 1e-4 * whole


def test_a_bound_on_what_attention_hands_over_is_fitted_into_what_reads_it(tmp_path):
    """And at the embeddings, where no matrix reads anything, it is refused by field."""
    hosted = parent("llama", tmp_path / "parent")
    bound = (direction(SiteKind.ATTN_Z, 0, V, Clamp(low=-0.1, high=0.1)),)
    program = compiled(hosted, bound)
    assert [change.name for change in program.changes] == ["model.layers.0.self_attn.o_proj.weight"]
    left, whole = distances(hosted, bound, written(hosted, program, tmp_path / "exported"))
    assert left < 0.1 * whole
    with pytest.raises(EditNotExpressibleError) as caught:
        compiled(hosted, (direction(SiteKind.EMBED, 0, V, Clamp(low=-0.1, high=0.1)),))
    assert caught.value.context["field"] == "interventions[0].operation"


def test_an_error_that_was_measured_nowhere_is_not_none_at_all(tmp_path):
    """A feature that never fires on the calibration text: no zero, and gains are said to be guesses."""
    hosted = parent("llama", tmp_path / "parent")
    resident_set(hosted, "jumprelu")
    hosted.replacements["set"].pager.layers[2].encoder.support.threshold[8] = 1e4
    note = compiled(hosted, (feature(2, 8, Ablate()),)).notes[0]
    assert note.predicted_error is None
    assert "its gains are guesses" in note.description

"""What meets at one module is compiled in the order of a forward pass, whatever order an edit names it in."""

from __future__ import annotations

import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import reside, resident_set, sae
from tests.unit.engine.interventions import direction, neuron, whole
from tests.unit.engine.weights.folders import MEASURED, compiled, distances, feature, parent, written
from trephine.domain.interventions import Add, Clamp, Intervention, ProjectOut, Scale, SetTo
from trephine.domain.sites import Site, SiteKind
from trephine.engine.runs.rows import RowInput, run_rows

V, U, W = (torch.randn(32, generator=torch.Generator().manual_seed(n)).tolist() for n in (3, 4, 5))
RESIDUAL = [
    (SiteKind.RESID_PRE, 0),
    *((kind, n) for n in range(3) for kind in (SiteKind.RESID_MID, SiteKind.RESID_POST)),
]
REMOVED = tuple(direction(kind, n, V, ProjectOut()) for kind, n in RESIDUAL)
"""Out of the residual stream, wherever something is added to it."""
EDITS: dict[str, tuple[Intervention, ...]] = {
    "added to a sum, scaled in its last summand": (
        direction(SiteKind.RESID_POST, 1, V, Add(amount=1.0)),
        whole(SiteKind.MLP_OUT, 1, Scale(factor=0.5)),
    ),
    "added to a sum, its last summand taken away": (
        direction(SiteKind.RESID_POST, 1, V, Add(amount=0.5)),
        whole(SiteKind.MLP_OUT, 1, Scale(factor=0.0)),
    ),
    "removed from a sum, added to its last summand": (
        *REMOVED,
        direction(SiteKind.MLP_OUT, 1, V, Add(amount=1.0)),
    ),
    "removed, and another direction scaled in a summand": (
        *REMOVED,
        direction(SiteKind.MLP_OUT, 1, U, Scale(factor=3.0)),
        direction(SiteKind.ATTN_OUT, 2, U, SetTo(value=0.7)),
    ),
    "removed, and added behind: the next removal finds it": (
        *REMOVED,
        direction(SiteKind.RESID_POST, 0, V, Add(amount=0.6)),
    ),
    "before the block and after the last one are one place": (
        direction(SiteKind.RESID_PRE, 2, V, Add(amount=0.4)),
        direction(SiteKind.MLP_OUT, 1, V, Scale(factor=-1.0)),
        neuron(1, 5, Scale(factor=2.0)),
    ),
    "embeddings by two names": (
        direction(SiteKind.RESID_PRE, 0, V, Scale(factor=0.3)),
        direction(SiteKind.EMBED, 0, U, Scale(factor=2.0)),
    ),
    "what heads hand over, and what comes of it": (
        direction(SiteKind.RESID_MID, 1, V, Add(amount=0.8)),
        direction(SiteKind.ATTN_OUT, 1, W, ProjectOut()),
        direction(SiteKind.ATTN_Z, 1, U, SetTo(value=0.5)),
    ),
}


@pytest.mark.parametrize("turned", [False, True], ids=["as it stands", "turned round"])
@pytest.mark.parametrize("name", EDITS)
def test_an_exact_edit_is_the_runtime_in_either_order(name, turned, tmp_path):
    """All of it is planned as exact, and is."""
    hosted = parent("llama", tmp_path / "parent")
    edit = EDITS[name][::-1] if turned else EDITS[name]
    program = compiled(hosted, edit)
    assert {note.tier for note in program.notes.values()} == {"exact"}
    left, whole_edit = distances(hosted, edit, written(hosted, program, tmp_path / "exported"))
    assert left < 1e-9 < 1e-4 < whole_edit


@pytest.mark.parametrize("turned", [False, True])
def test_what_is_not_the_same_at_every_writer_is_not_called_exact(turned, tmp_path):
    """Of two directions at an angle each removal brings a little of the other one back, sum after sum."""
    hosted = parent("llama", tmp_path / "parent")
    both = [direction(kind, n, v, ProjectOut()) for kind, n in RESIDUAL for v in (V, U)]
    program = compiled(hosted, tuple(both[::-1] if turned else both))
    tiers = [program.notes[number].tier for number in range(len(both))]
    assert tiers.count("ridge") >= 6
    assert program.fitted


@pytest.mark.parametrize("turned", [False, True])
def test_a_removal_behind_a_fit_is_not_called_exact(turned, tmp_path):
    """What a bound writes along the direction stands in the sum that is removed from."""
    hosted = parent("llama", tmp_path / "parent")
    bound = direction(SiteKind.RESID_PRE, 1, V, Clamp(low=0.1, high=1.0))
    edit = (*REMOVED, bound)
    program = compiled(hosted, edit[::-1] if turned else edit)
    notes = [program.notes[n] for n in (range(7, 0, -1) if turned else range(7))]
    assert [note.tier for note in notes] == ["exact"] * 3 + ["ridge"] * 4


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "around",
    [REMOVED, (whole(SiteKind.MLP_OUT, 1, Scale(factor=0.5)),)],
    ids=["removed behind it", "scaled where it is written"],
)
def test_a_graft_is_met_by_what_a_pass_reaches_later(around, turned, tmp_path):
    """A later site always; the same site where the edit names it later."""
    hosted = parent("llama", tmp_path / "parent")
    resident_set(hosted, "relu")
    added = feature(1, 8, Add(amount=2.0))
    edit = (added, *around) if turned else (*around, added)
    program = compiled(hosted, edit)
    assert {note.tier for note in program.notes.values()} == {"exact", "graft"}
    left, whole_edit = distances(hosted, edit, written(hosted, program, tmp_path / "exported"))
    assert left < 1e-6 < 1e-3 < whole_edit


def test_features_of_one_layer_arrive_together(tmp_path):
    """In the place of the first that the edit names, so that what stands between them meets both."""
    hosted = parent("llama", tmp_path / "parent")
    resident_set(hosted, "relu")
    between = whole(SiteKind.MLP_OUT, 1, Scale(factor=-1.0))
    edit = (feature(1, 8, Add(amount=2.0)), between, feature(1, 9, Add(amount=2.0)))
    program = compiled(hosted, edit)
    left, whole_edit = distances(hosted, edit, written(hosted, program, tmp_path / "exported"))
    assert left < 1e-6 < 1e-3 < whole_edit


@pytest.mark.parametrize("turned", [False, True])
def test_a_fit_is_met_by_what_a_pass_reaches_later_and_reads_what_came_before(turned, tmp_path):
    """Scaled by nothing behind it, nothing of it is written; scaled in front of it, all of it is."""
    hosted = parent("llama", tmp_path / "parent")
    reside(hosted, [sae(hosted, Site(kind=SiteKind.MLP_OUT, layer=1))], "set")
    fitted = feature(1, 7, Add(amount=2.0))
    gone = whole(SiteKind.MLP_OUT, 1, Scale(factor=0.0))
    edit = (fitted, gone) if turned else (gone, fitted)
    program = compiled(hosted, edit)
    left, _ = distances(hosted, edit, written(hosted, program, tmp_path / "exported"))
    alone, _ = distances(hosted, (gone,), tmp_path / "exported")
    if turned:
        assert left < 1e-9
    else:
        assert left < 0.2 * alone


def test_an_exact_add_is_not_lost_beside_a_fit(tmp_path):
    """The weights have the constant behind the scaled output, whatever is fitted elsewhere."""
    hosted = parent("llama", tmp_path / "parent")
    edit = (*EDITS["added to a sum, its last summand taken away"],)
    fit = direction(SiteKind.RESID_POST, 2, U, Scale(factor=0.6))
    program = compiled(hosted, (*edit, fit))
    assert [program.notes[n].tier for n in range(3)] == ["exact", "exact", "ridge"]
    (bias,) = (c for c in program.changes if c.name == "model.layers.1.mlp.down_proj.bias")
    own = hosted.model.model.layers[1].mlp.down_proj.bias.detach().double()
    unit = torch.tensor(V).double()
    torch.testing.assert_close(own + bias.added, 0.5 * unit)


def test_a_runtime_too_takes_two_sites_of_one_module_in_their_order():
    """`embed` comes before `resid_pre` 0, whichever of them a request names first."""
    hosted = tiny_hosted("llama")
    edit = EDITS["embeddings by two names"]
    rows = [RowInput(MEASURED[0], edit), RowInput(MEASURED[0], edit[::-1])]
    with torch.inference_mode():
        one, other = run_rows(hosted, rows[:1]).logits[0], run_rows(hosted, rows[1:]).logits[0]
    torch.testing.assert_close(one, other, atol=0.0, rtol=0.0)

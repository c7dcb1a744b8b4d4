"""The ridge tier: what no neuron computes is fitted, says why, and says what it leaves over."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.resident_sets import D_SAE, reside, resident_set, sae
from tests.unit.engine.weights.folders import compiled, distances, feature, parent, written
from trephine.domain.interventions import Ablate
from trephine.domain.sites import Site, SiteKind
from trephine.engine.replacements.support import Threshold
from trephine.engine.weights import behind, ridge
from trephine.engine.weights.held_out import split
from trephine.engine.weights.postnorm import nearest

REASONS = {
    "topk": "compares all features",
    "resid_post": "reads resid_post",
    "attn_out": "reads attn_out",
    "clt": "writes several layers",
    "normalised": "normalised by its own norm",
}
ABLATED = (feature(0, 3, Ablate()), feature(1, 7, Ablate()), feature(1, 9, Ablate()))


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(("llama", kind) for kind in sorted(REASONS)),
        *(("gpt2", kind) for kind in sorted(set(REASONS) - {"attn_out"})),  # there these never fire
        ("qwen3", "clt"),
        ("qwen3", "resid_post"),
        ("gemma2", "topk"),  # in front of a post-norm
        ("gemma2", "attn_out"),
    ],
)
def test_what_cannot_be_grafted_is_fitted_in_place(family, kind, tmp_path):
    """Shapes and config stay; part of the edit is carried, the rest is told."""
    hosted = parent(family, tmp_path / "parent")
    resident_set(hosted, kind)
    program = compiled(hosted, ABLATED)
    assert program.fitted
    assert program.config == {}
    assert all(change.keeps_shape for change in program.changes)
    for note in program.notes.values():
        assert note.tier == "ridge"
        assert REASONS[kind] in note.description
        assert note.predicted_error is None or note.predicted_error > 0.0
        assert (note.predicted_error is None) == ("it leaves over is not known" in note.description)
    left, whole = distances(hosted, ABLATED, written(hosted, program, tmp_path / "exported"))
    assert left < whole


def test_a_feature_that_the_module_can_compute_is_recovered(tmp_path):
    """Planted: it reads what its MLP writes and is always active, so that a linear fit has all of it.

    Its twin with a ReLU is no linear function of the neurons: less of it is carried, and the fit says so.
    """
    hosted = parent("llama", tmp_path / "parent")
    planted = sae(hosted, Site(kind=SiteKind.MLP_OUT, layer=1))
    bias = hosted.model.model.layers[1].mlp.down_proj.bias.detach()
    always = Threshold(threshold=torch.full((D_SAE,), -1e3), clamped=False)
    for name, support in (("planted", always), ("twin", Threshold())):
        encoder = replace(planted.encoder, support=support, b_enc=torch.zeros(D_SAE), shift=bias)
        reside(hosted, [replace(planted, encoder=encoder)], name)
    figures = {}
    for name in ("planted", "twin"):
        ablated = (feature(1, 7, Ablate(), name=name),)
        program = compiled(hosted, ablated)
        left, whole = distances(hosted, ablated, written(hosted, program, tmp_path / name))
        figures[name] = 1 - left / whole, 1 - program.notes[0].predicted_error
    assert min(figures["planted"]) >= 0.9
    assert max(figures["twin"]) < min(figures["planted"])


def test_what_does_not_act_on_the_calibration_text_is_not_carried_and_says_so(tmp_path):
    """Its delta would be zeros, which are no change of a tensor: a planned one that is unchanged fails."""
    hosted = parent("llama", tmp_path / "parent")
    resident_set(hosted, "attn_out")
    silent = feature(1, 5, Ablate())
    program = compiled(hosted, (feature(0, 3, Ablate()), feature(0, 1, Ablate()), silent))
    assert [change.layer for change in program.changes] == [0]
    assert program.fitted
    assert "held-out R^2" in program.notes[0].description
    assert "not carried" in program.notes[2].description
    assert "give a text on which it acts" in program.notes[2].description
    assert program.notes[2].predicted_error == 1.0
    assert compiled(hosted, (silent,)).changes == ()


def test_kept_shapes_turn_grafts_into_fits(tmp_path):
    """For servers that know one width only; the graft of the same edit is closer."""
    hosted = parent("llama", tmp_path / "parent")
    resident_set(hosted, "jumprelu")
    fitted = compiled(hosted, ABLATED, keep_shapes=True)
    assert {note.tier for note in fitted.notes.values()} == {"ridge"}
    grafted = compiled(hosted, ABLATED)
    left, whole = distances(hosted, ABLATED, written(hosted, fitted, tmp_path / "fitted"))
    closer, _ = distances(hosted, ABLATED, written(hosted, grafted, tmp_path / "grafted"))
    assert closer < 0.01 * left < 0.01 * whole


PARTS = split(8)
READ = [torch.randn(20, 6, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in range(8)]


def acting(everywhere):
    """Draw amounts per window; none in the windows that choose, unless everywhere."""
    draw = torch.Generator().manual_seed(9)
    amounts = [x[:, 0] + torch.randn(20, generator=draw, dtype=torch.float64) for x in READ]
    return [a if everywhere or n not in PARTS.choosing else 0 * a for n, a in enumerate(amounts)]


def under(ridges, x, moments):
    """Solve the normal equations under each ridge, `(d_in, k)` each."""
    gram = x.T @ x
    eye = gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return [torch.linalg.solve(gram + each * eye, moments) for each in ridges]


def nearest_of(found, candidates):
    """Return which candidate is found, which must be far nearer than all others."""
    away = sorted((float((found - each).norm() / each.norm()), n) for n, each in enumerate(candidates))
    assert away[0][0] < 0.2 * away[1][0]
    return away[0][1]


def test_an_operation_that_is_silent_where_ridges_are_chosen_has_the_strongest():
    """Whatever another operation of the same place is given, which acts there."""
    direction = torch.ones(3, dtype=torch.float64)
    wanted = [
        ridge._Wanted(number=n, direction=direction, amounts=acting(everywhere), arrives=((0, 0), n))
        for n, everywhere in enumerate((True, False))
    ]
    rows = ridge._solved(READ, wanted, PARTS)
    x = torch.cat([READ[n][1:] for n in PARTS.taken])
    chosen = []
    for each, row in zip(wanted, rows, strict=True):
        c = torch.cat([each.amounts[n][1:] for n in PARTS.taken])
        chosen.append(nearest_of(row, under(ridge._RIDGES, x, x.T @ c)))
    last = len(ridge._RIDGES) - 1
    assert chosen[0] < chosen[1] == last


@pytest.mark.parametrize("everywhere", [True, False])
def test_behind_a_norm_the_strongest_ridge_is_taken_where_nothing_chooses(everywhere):
    """All operations share the norm's answer and one ridge; where none acts, five zeros are no choice."""
    draw = torch.Generator().manual_seed(4)
    weight, gain = torch.randn(5, 6, generator=draw).double(), torch.ones(5)
    norm = SimpleNamespace(gain=gain, inverse_scale=lambda y: y.square().mean(-1, keepdim=True).rsqrt())
    module = behind.Behind(norm=norm, weight=weight, bias=None)
    unit = torch.randn(5, generator=draw).double()
    changes = [0.2 * a[:, None] * unit for a in acting(everywhere)]
    fit = behind.fit_behind(module, READ, changes, PARTS)
    x, wanted = (torch.cat([part[n][1:] for n in PARTS.taken]) for part in (READ, changes))
    written_there = x @ weight.T
    scale = norm.inverse_scale(written_there)
    goal = nearest(gain.double(), written_there * scale + wanted) - scale * written_there
    candidates = [each.T for each in under(behind._RIDGES, scale * x, (scale * x).T @ goal)]
    chosen = nearest_of(fit.left @ fit.right, candidates)
    last = len(behind._RIDGES) - 1
    assert chosen < last if everywhere else chosen == last

"""Scaled neurons, heads and sites in narrow files: what would vanish is drawn, its price is in the plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.unit.engine.interventions import neuron, whole
from tests.unit.engine.weights.folders import compiled, parent
from trephine.domain.interventions import Scale
from trephine.domain.sites import SiteKind
from trephine.engine.exports.reshaping import changed_tensor
from trephine.engine.models.shards import TensorEntry, read_tensor
from trephine.engine.weights.tensors import TensorChange, carried_out, fades, rounding_error

ENTRY = TensorEntry(name="w", file="f", dtype="BF16", shape=(300, 200), start=0, end=120_000)
W = torch.randn(300, 200, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)


def scaling(axis, factors, gain=1.0):
    """Describe a change of `W`."""
    return TensorChange(
        name="w", file="f", dtype="BF16", layer=0, entry=ENTRY, axis=axis, factors=factors, gain=gain
    )


def carried(written, exact):
    """Return the share of a change that stands in a tensor: 1 is all of it, 0 is none."""
    change = exact - W.double()
    return float(((written.double() - W.double()) * change).sum() / change.square().sum())


@pytest.mark.parametrize("factor", [0.999, 0.9975, 1.001])
@pytest.mark.parametrize("axis", [0, 1])
def test_factors_near_one_are_carried_in_the_mean(axis, factor):
    """Nearest rounding carries none of 0.999; seeded draws carry it, and other slices keep their bits."""
    scaled = list(range(150))
    change = scaling(axis, dict.fromkeys(scaled, factor) | {160: 0.37})
    written = carried_out(change, W.clone(), torch.bfloat16)
    exact = W.double()
    exact.select(axis, 160).mul_(0.37)
    assert torch.equal(written.select(axis, 160), exact.select(axis, 160).to(torch.bfloat16))
    exact.select(axis, 160).copy_(W.select(axis, 160))
    exact.narrow(axis, 0, 150).mul_(factor)
    written.select(axis, 160).copy_(W.select(axis, 160))
    assert carried(written, exact) == pytest.approx(1.0, abs=0.05)
    assert carried(exact.to(torch.bfloat16), exact) < 0.7
    assert torch.equal(written.narrow(axis, 150, 10), W.narrow(axis, 150, 10))
    again = carried_out(change, W.clone(), torch.bfloat16)
    again.select(axis, 160).copy_(W.select(axis, 160))
    assert torch.equal(written, again)


def test_the_gain_of_a_whole_site_is_carried_too():
    """One factor of all slices, as a head's output scaled as a whole is written."""
    written = carried_out(scaling(1, {}, gain=0.999), W.clone(), torch.bfloat16)
    assert carried(written, 0.999 * W.double()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("factor", "dtype", "drawn"),
    [
        (0.997, torch.bfloat16, True),
        (0.99, torch.bfloat16, False),
        (0.0, torch.bfloat16, False),
        (1.0, torch.bfloat16, False),
        (0.997, torch.float16, False),
        (0.9997, torch.float16, True),
        (0.997, torch.float32, False),
    ],
)
def test_what_nothing_is_lost_of_is_rounded_to_nearest(factor, dtype, drawn):
    """Half a step of the type decides; wider files lose nothing that a forward pass could show."""
    assert fades(factor, dtype) == drawn


def test_the_error_of_rounding_is_of_the_change():
    """Nothing is left over of a power of two; of a factor near 1 much is, though its mean is right."""
    assert rounding_error(scaling(1, {3: 0.5}), W, torch.bfloat16) == 0.0
    assert rounding_error(scaling(1, {3: 1.0}), W, torch.bfloat16) == 0.0
    near, far = (rounding_error(scaling(1, {3: factor}), W, torch.bfloat16) for factor in (0.9975, 0.9))
    assert far < 1e-3 < 0.5 < near < 2.0


@pytest.mark.parametrize(("factor", "left"), [(0.9975, 1.25), (0.995, 0.066), (0.95, 0.00093)])
def test_what_rounding_leaves_over_of_small_factors(factor, left):
    """The figures of the documentation: of a draw more than the change itself, to nearest ever less of it."""
    change = scaling(1, dict.fromkeys(range(200), factor))
    assert rounding_error(change, W, torch.bfloat16) == pytest.approx(left, rel=0.02)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_plans_say_what_rounding_leaves_over(family, tmp_path):
    """Per neuron and per site, as it is written; of a factor that rounds to itself nothing."""
    hosted = parent(family, tmp_path / "parent", dtype=torch.bfloat16)
    factors = (0.9975, 0.9, 0.5)
    edit = tuple(neuron(1, index, Scale(factor=factor)) for index, factor in enumerate(factors))
    program = compiled(hosted, (*edit, whole(SiteKind.ATTN_Z, 0, Scale(factor=0.999))))
    (change,) = (each for each in program.changes if each.layer == 1)
    before, after = read_tensor(hosted.folder, change.entry), changed_tensor(hosted.folder, change)
    for index, factor in enumerate(factors):
        old, new = (t.select(change.axis, index).double() for t in (before, after))
        error = float((new - factor * old).square().sum() / ((factor - 1) * old).square().sum())
        assert program.notes[index].predicted_error == pytest.approx(error)
    assert program.notes[0].predicted_error > 0.3 > 1e-2 > program.notes[1].predicted_error > 0
    assert program.notes[2].predicted_error == 0.0
    assert "stochastically" in program.notes[0].description
    assert "stochastically" not in program.notes[1].description
    assert program.notes[3].predicted_error > 1.0
    assert {note.tier for note in program.notes.values()} == {"exact"}
    wide = compiled(parent(family, tmp_path / "wide"), edit)
    assert [note.predicted_error for note in wide.notes.values()] == [0.0] * 3


def test_tensors_of_one_shape_draw_their_rounding_apart():
    """The name of the tensor decides with the seed: the same again, and another one otherwise."""
    left, right = (torch.full(shape, 1e-2, dtype=torch.float64) for shape in ((300, 1), (1, 200)))
    first = replace(scaling(1, {}), low_rank=(left, right))
    again, other = replace(first), replace(first, name="another")
    written = [carried_out(each, W.clone(), torch.bfloat16) for each in (first, again, other)]
    assert not written[0].equal(W)
    assert written[0].equal(written[1])
    assert not written[0].equal(written[2])

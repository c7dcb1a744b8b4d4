"""What is exact beside a graft or fit: each neuron, head and direction is held against what it does alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.resident_sets import resident_set
from tests.unit.engine.exporting import compiling, edit_of, planned
from tests.unit.engine.interventions import direction, neuron, whole
from tests.unit.engine.weights.folders import compiled, feature, parent
from trephine.domain.errors import GateMissedError
from trephine.domain.interventions import Ablate, Add, ProjectOut, Scale
from trephine.domain.sites import SiteKind
from trephine.engine.exports import planning
from trephine.engine.models.quanta import finish
from trephine.engine.weights.compiling import compile_weights

V, U = (torch.randn(32, generator=torch.Generator().manual_seed(n)).tolist() for n in (3, 4))
STRONG = feature(0, 3, Scale(factor=-4.0))
WEAK = neuron(1, 5, Scale(factor=1.5))
NAME = "neurons:1:interventions[1]"


@pytest.fixture(scope="module")
def hosted(tmp_path_factory):
    """A Llama with a set of features, of which neurons can be made."""
    hosted = parent("llama", tmp_path_factory.mktemp("parts") / "parent", biases=False)
    resident_set(hosted, "relu")
    return hosted


def made(hosted, edit, folder):
    """Plan and export."""
    with torch.inference_mode():
        return finish(compiling(hosted, edit, planned(hosted, edit), folder))


@pytest.mark.integration
def test_a_neuron_beside_a_graft_is_measured_alone(hosted, tmp_path):
    """And is carried, which the certificate says by its name."""
    certificate = made(hosted, edit_of(hosted, STRONG, WEAK), tmp_path / "edited").certificate
    found = {one.name: one.value for one in certificate.measurements}
    assert certificate.verdict == "passed"
    assert found[f"carried:{NAME}"] == pytest.approx(1.0, abs=0.02)
    assert f"uncarried:{NAME}" in {result.gate.name for result in certificate.gates}


@pytest.mark.integration
def test_a_neuron_that_is_lost_beside_a_fit_fails_the_export_by_name(hosted, tmp_path, monkeypatch):
    """In the share of the whole edit's KL that fits are granted there is room for it."""

    def forgetful(hosted, entries, edit, windows, keep_shapes, kind):
        how = {"keep_shapes": keep_shapes, "kind": kind}
        program = yield from compile_weights(hosted, entries, edit, windows, **how)
        partial = yield from compile_weights(hosted, entries, edit_of(hosted, STRONG), windows, **how)
        written = {change.name: change for change in (*program.changes, *partial.changes)}
        return replace(program, changes=tuple(written.values()), fitted=True)

    monkeypatch.setattr(planning, "compile_weights", forgetful)
    planning._KEPT.clear()
    try:
        with pytest.raises(GateMissedError) as caught:
            made(hosted, edit_of(hosted, STRONG, WEAK), tmp_path / "edited")
    finally:
        planning._KEPT.clear()
    assert f"uncarried:{NAME}" in caught.value.context["gates"].split(", ")
    assert "unrecovered" not in caught.value.context["gates"].split(", ")  # the whole has nothing to say


@torch.inference_mode()
def test_a_part_that_does_less_than_rounding_is_named_in_the_doubt(hosted):
    """No gate could tell it from its absence."""
    plan = planned(hosted, edit_of(hosted, STRONG, neuron(1, 5, Scale(factor=1.00001))))
    assert f"nothing is certified about {NAME}" in plan.doubt
    assert f"uncarried:{NAME}" not in {gate.name for gate in plan.gates}


@torch.inference_mode()
def test_what_is_one_thing_is_one_part(hosted):
    """A layer's neurons, a layer's heads, one direction at every writer; of an exact edit there are none."""
    removed = tuple(
        direction(kind, n, V, ProjectOut())
        for n in range(2)
        for kind in (SiteKind.ATTN_OUT, SiteKind.MLP_OUT)
    )
    edit = (
        *removed,
        neuron(1, 5, Ablate()),
        neuron(1, 6, Scale(factor=2.0)),
        neuron(2, 6, Scale(factor=1.0)),
        direction(SiteKind.ATTN_Z, 1, V, Ablate()),
        direction(SiteKind.ATTN_Z, 1, U, Ablate()),
        whole(SiteKind.MLP_OUT, 2, Scale(factor=0.5)),
        direction(SiteKind.RESID_POST, 2, U, Add(amount=0.5)),
    )
    assert compiled(hosted, edit).parts == ()
    assert [part.name for part in compiled(hosted, (*edit, STRONG)).parts] == [
        "neurons:1:interventions[4-5]",
        "attn_out:0:interventions[0-3]",
        "attn_z:1:interventions[7-8]",
        "mlp_out:2:interventions[9]",
        "resid_post:2:interventions[10]",
    ]

"""What a plan says on the terminal of the width of a model."""

from __future__ import annotations

import pytest

from trephine.client.cli.output import Output
from trephine.client.cli.plan import show_plan
from trephine.client.decoding import decode
from trephine.client.types import ExportPlan as Decoded
from trephine.domain.exports import ExportPlan, WidenedLayer
from trephine.rpc.wire.exports import plan_to_wire

PLAN = ExportPlan(
    edit="quiet", edit_hash="c", parent_hash="w", steps=(), changed_tensors=("a",), untouched_tensors=9,
    config_changes=(), size_growth_bytes=0, servers=(), gates=(), plan_hash="p",
    widened=(
        WidenedLayer(layer=0, neurons=256, zeros=256),
        WidenedLayer(layer=1, neurons=256, zeros=253),
    ),
)  # fmt: skip


def test_added_neurons_and_the_zeros_among_them_are_shown(capsys: pytest.CaptureFixture[str]):
    """From the engine's plan over the wire to the terminal."""
    plan = decode(Decoded, plan_to_wire(PLAN))
    assert [(one.layer, one.neurons, one.zeros) for one in plan.widened] == [(0, 256, 256), (1, 256, 253)]
    show_plan(Output(json=False), plan)
    shown = capsys.readouterr().out
    assert "2 layers by 256 neurons each; 3 of these carry the edit, 509 are zeros" in shown

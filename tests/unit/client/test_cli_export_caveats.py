"""Plans and certificates say on the terminal that a set of the edit failed admission."""

from __future__ import annotations

from pathlib import Path

import pytest

from trephine.client.cli.export import show_export
from trephine.client.cli.output import Output
from trephine.client.cli.plan import show_plan
from trephine.client.decoding import decode
from trephine.client.types import Export, ExportPlan
from trephine.v1 import edit_service_pb2 as pb

SAID = "The set small failed admission and was accepted all the same: layer 1: FVU 1.31 is not below 1"


@pytest.mark.parametrize("caveats", [(), (SAID,)])
def test_plans_and_exports_show_their_caveats(caveats: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    """A line for each, and none where there is nothing to say."""
    plan = decode(ExportPlan, pb.ExportPlan(edit="edits/quiet", caveats=caveats))
    made = decode(Export, pb.Export(name="exports/e", certificate=pb.Certificate(caveats=caveats)))
    show_plan(Output(json=False), plan)
    show_export(Output(json=False), made, Path("out/e"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("caveat")]
    assert [line.partition("  ")[2].strip() for line in lines] == [*caveats] * 2


def test_a_plan_says_what_its_errors_were_measured_on(capsys: pytest.CaptureFixture[str]):
    """A fit's own windows are not what others are; what was measured nowhere is unknown, not zero."""
    steps = (
        pb.PlanStep(tier="exact", predicted_error=0.0, description="a"),
        pb.PlanStep(tier="near_constant", predicted_error=0.01, held_out=True, description="b"),
        pb.PlanStep(tier="ridge", predicted_error=0.5, description="c"),
        pb.PlanStep(tier="graft", description="d"),
    )
    show_plan(Output(json=False), decode(ExportPlan, pb.ExportPlan(edit="edits/quiet", steps=steps)))
    shown = [line.split("\t")[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("0\t")]
    assert shown == [
        ["0.0e+00", "-", "a"],
        ["1.0e-02", "windows kept back", "b"],
        ["5.0e-01", "what was fitted on", "c"],
        ["unknown", "nothing changes there", "d"],
    ]


@pytest.mark.parametrize("doubt", ["", "nothing fires"])
def test_a_plan_says_that_nothing_can_be_certified(doubt: str, capsys: pytest.CaptureFixture[str]):
    """Before an hour is spent on it."""
    show_plan(Output(json=False), decode(ExportPlan, pb.ExportPlan(edit="edits/quiet", doubt=doubt)))
    shown = "INCONCLUSIVE at best: nothing fires" in capsys.readouterr().out
    assert shown == bool(doubt)

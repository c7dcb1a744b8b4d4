"""An export's plan, readable: what is written how, what it promises, who loads it."""

from __future__ import annotations

from typing import Any

from trephine.client.cli.invocation import Invocation
from trephine.client.cli.output import Output
from trephine.client.trephine import Trephine
from trephine.client.types import ExportPlan, PlanStep


def planned(given: Invocation, trephine: Trephine, edit: str, model: str | None, **how: Any) -> ExportPlan:
    """Plan an export of a stored edit, its model loaded first."""
    stored = trephine.edits.get(edit)
    loaded = given.load(trephine, model or stored.made_for.model.removeprefix("models/"))
    return trephine.edits.plan(stored, model=loaded.name, **how)


def show_plan(output: Output, plan: ExportPlan) -> None:
    """Print a plan."""
    if output.json:
        output.document(plan.to_json())
        return
    changed = len(plan.changed_tensors)
    output.facts(
        [
            ("edit", plan.edit),
            ("tensors", f"{changed} change, {plan.untouched_tensors} keep their bytes"),
            ("config", "; ".join(plan.config_changes) or "unchanged"),
            ("widened", _widened(plan)),
            ("growth", f"at most {plan.size_growth_bytes / 2**20:.1f} MiB, GGUF files and adapter included"),
            (
                "promise",
                "approximation, of which a share is promised" if plan.fitted else "the runtime itself",
            ),
            ("calibrated on", plan.text or "nothing"),
            *((("verdict", f"INCONCLUSIVE at best: {plan.doubt}"),) if plan.doubt else ()),
            *(("caveat", one) for one in plan.caveats),
        ]
    )
    output.table(
        ("STEP", "TIER", "ERROR", "MEASURED ON", "WHAT"),
        [(str(s.intervention), s.tier, *_error(s), s.description) for s in plan.steps],
    )
    output.table(
        ("SERVER", "LOADS", "WHY"), [(s.server, "yes" if s.loads else "NO", s.note) for s in plan.servers]
    )
    output.table(
        ("GATE", "LIMIT", "UNIT"), [(gate.name, f"{gate.limit:.3g}", gate.unit) for gate in plan.gates]
    )
    output.note("nothing was written")


def _error(step: PlanStep) -> tuple[str, str]:
    """The predicted error, and what it was measured on: a fit is no judge of itself."""
    if step.predicted_error is None:
        return "unknown", "nothing changes there"
    if step.tier in ("noop", "exact"):
        return f"{step.predicted_error:.1e}", "-"
    return f"{step.predicted_error:.1e}", "windows kept back" if step.held_out else "what was fitted on"


def _widened(plan: ExportPlan) -> str:
    """How many neurons are added, and how many of them do nothing."""
    if not plan.widened:
        return "no layer"
    most = max(one.neurons for one in plan.widened)
    every, zeros = (sum(getattr(one, name) for one in plan.widened) for name in ("neurons", "zeros"))
    return (
        f"{len(plan.widened)} layers by {most} neurons each; {every - zeros} of these carry the edit, "
        f"{zeros} are zeros"
    )

"""Chapters 1 to 5 and 7: load, discover, choose, verify, steer, audit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from trephine.client.circuit import Circuit
from trephine.client.cli.ablate import ablation_facts
from trephine.client.cli.audit import figure_row
from trephine.client.cli.discover import circuit_facts, node_row
from trephine.client.cli.edits import curve_rows
from trephine.client.cli.models import facts_of
from trephine.client.demo.interleaving import Interleaving
from trephine.client.demo.narration import Narrator
from trephine.client.interventions import feature
from trephine.client.model import Model
from trephine.client.selection import Selection
from trephine.client.terminal import printable
from trephine.client.trephine import Trephine
from trephine.client.types import NodeKind

PROMPT = "When Mary and John went to the store, John gave a drink to"
TARGET, AGAINST = " Mary", " John"
MAX_NEW_TOKENS = 40
AUDIT_ITEMS = 24
CONTROL_SETS = 99
AUDITOR = "unfaithful_reasoning"
_DETAIL = ("class:", "black box:", "resamples", "controls")
"""Figures that are left to the report."""
STEERING_PROMPT = "On Sunday morning I like to"
STEERED = (29, 1113)
"""A neuron of the last layer that, when negative, promotes ` food`, ` eat`, ` eating`."""
STRENGTH = -11.0


def load(trephine: Trephine, model: str, narrator: Narrator) -> Model:
    """Chapter 1: open the model and say what can be done with it."""
    with narrator.chapter("load", "1. Load the model into an engine of its own") as figures:
        with narrator.working(f"load {model}") as view:
            loaded = trephine.load_model(model, on_progress=view.show)
        narrator.facts(facts_of(loaded.info))
        found = loaded.capabilities()
        works = [one.name for one in found.capabilities if one.available]
        narrator.facts([("works", ", ".join(works))])
        for one in found.capabilities:
            if not one.available:
                narrator.facts([("does not", f"{one.name}: {one.note}")])
        figures |= {"model": loaded.name, "weight_hash": loaded.info.weight_hash, "capabilities": works}
    return loaded


def discover(model: Model, folder: Path, narrator: Narrator) -> Circuit:
    """Chapter 2: find the circuit, with its page and its JSON."""
    title = "2. Find the circuit: why does it say Mary and not John?"
    with narrator.chapter("discover", title) as figures:
        with narrator.working("discover") as view:
            circuit = model.discover(PROMPT, target=TARGET, against=AGAINST, on_progress=view.show)
        narrator.facts(circuit_facts(circuit.info))
        strongest = circuit.nodes(kind=NodeKind.FEATURE)[:8]
        narrator.table(
            ("NEURON", "POSITION", "INFLUENCE", "EFFECT", "ACTIVATION", "PROMOTES"),
            [node_row(node, circuit.info.tokens) for node in strongest],
        )
        for caveat in circuit.info.caveats:
            narrator.say(f"  note: {printable(caveat)}")
        for path in circuit.save(folder):
            narrator.say(f"  wrote {path.name}")
        info = circuit.info
        figures |= {"circuit": info.name, "baseline": info.baseline, "nodes": info.n_nodes}
        figures |= {"edges": info.n_edges, "selected_share": info.selected_share, "seconds": info.seconds}
        if info.quality is not None:
            figures["slope"] = asdict(info.quality.slope)
            figures["spearman"] = asdict(info.quality.spearman)
            figures["edge_slope"] = asdict(info.quality.edge_slope)
            figures["edge_spearman"] = asdict(info.quality.edge_spearman)
            figures["ablated_nodes"] = info.quality.nodes
    return circuit


def choose(circuit: Circuit, narrator: Narrator) -> Selection:
    """Chapter 3: the effect-against-damage curve and its smallest prefix that could ship."""
    with narrator.chapter("choose", "3. Choose an edit that could ship: effect against damage") as figures:
        with narrator.working("propose") as view:
            selection = circuit.shippable(on_progress=view.show)
        proposal = selection.proposal
        narrator.say("  Removing the first neurons of the ranking at every position. The damage, in nats per")
        narrator.say(f"  token, is measured on {proposal.retain_tokens} tokens of other text.")
        columns = ("NEURONS", "LOGIT DIFFERENCE", "GONE", "DAMAGE", "AT POSITIONS >= 1")
        narrator.table(columns, curve_rows(selection.curve, proposal.chosen))
        narrator.say(f"  {printable(selection.why)}")
        chosen = [str(ref) for ref in selection.features]
        if not chosen:
            narrator.say("  Nothing meets both bounds, so nothing is edited and nothing is exported.")
        figures |= {"baseline": proposal.baseline, "chosen": proposal.chosen, "features": chosen}
        figures |= {"retain_tokens": proposal.retain_tokens, "why": proposal.why}
        figures["curve"] = [asdict(point) for point in selection.curve]
    return selection


def verify(model: Model, circuit: Circuit, selection: Selection, narrator: Narrator) -> None:
    """Chapter 4: exactly the form that could ship, against matched random controls."""
    with narrator.chapter("verify", "4. Verify that form against matched random neurons") as figures:
        bound = _bound_positions(circuit, selection)
        narrator.say(f"  Everywhere, and beside it bound to positions {', '.join(map(str, bound))}:")
        measured = model.ablate(
            PROMPT,
            selection.ablate(),
            target=TARGET,
            against=AGAINST,
            controls=CONTROL_SETS,
            bound_positions=bound,
        )
        rows = [
            (effect.name, f"{effect.baseline:.3f}", f"{effect.intervened:.3f}", f"{effect.change:+.3f}")
            for effect in measured.effects
        ]
        narrator.table(("FORM", "BEFORE", "AFTER", "CHANGE"), rows)
        narrator.facts(ablation_facts(measured))
        for caveat in measured.caveats:
            narrator.say(f"  note: {printable(caveat)}")
        figures["effects"] = {effect.name: effect.change for effect in measured.effects}
        figures |= {"retain_kl": measured.retain_kl, "retain_kl_after_first": measured.retain_kl_after_first}
        if measured.controls is not None:
            figures |= {"p_value": measured.controls.p_value, "sets": len(measured.controls.changes)}
            figures |= {"matched": measured.controls.matched, "unmatched": len(measured.controls.unmatched)}


def _bound_positions(circuit: Circuit, selection: Selection) -> tuple[int, ...]:
    """Where the circuit has the chosen neurons; the last position if it has none of them."""
    chosen = {(ref.layer, ref.index) for ref in selection.features}
    places = {
        node.position
        for node in circuit.nodes(kind=NodeKind.FEATURE)
        if node.feature and (node.feature.layer, node.feature.index) in chosen and node.position >= 1
    }
    return tuple(sorted(places)) or (len(circuit.info.tokens) - 1,)


def steer(model: Model, narrator: Narrator) -> None:
    """Chapter 5: plain and steered side by side, streamed while a discovery runs in the same engine."""
    title = "5. Steer: plain and changed side by side, while another discovery runs"
    with narrator.chapter("steer", title) as figures:
        steering = feature(*STEERED).add(STRENGTH)
        narrator.say(f"  Adding {STRENGTH:g} to neuron {STEERED[0]}:{STEERED[1]} at every position.")
        other = model.start_discover(
            "The capital of France is", target=" Paris", max_feature_nodes=256, verify_nodes=0
        )
        with Interleaving(other) as beside:
            texts = ["", ""]
            for event in model.side_by_side(STEERING_PROMPT, [steering], max_new_tokens=MAX_NEW_TOKENS):
                texts[event.row] += event.text
                beside.token()
        for name, text in zip(("plain", "changed"), texts, strict=True):
            narrator.facts([(name, STEERING_PROMPT + text)])
        narrator.say(f"  {beside.sentence()}")
        figures |= {"plain": texts[0], "changed": texts[1], "tokens": beside.tokens}
        figures |= {"tokens_while_discovering": beside.tokens_meanwhile, "longest_gap": beside.longest_gap}


def audit(trephine: Trephine, model: Model, folder: Path, narrator: Narrator) -> None:
    """Chapter 7: ask whether the written reasoning is what the answer depends on."""
    title = "7. Audit: does the answer depend on the reasoning that it writes?"
    with narrator.chapter("audit", title) as figures:
        with narrator.working("audit") as view:
            report = trephine.audit(model, AUDITOR, items=AUDIT_ITEMS, on_progress=view.show)
        narrator.facts(
            [
                ("verdict", report.verdict.value.upper()),
                ("why", report.why),
                ("would decide", report.would_decide),
                ("blind spot", report.auditor.blind_spot),
            ]
        )
        shown = [one for one in report.figures if not one.name.startswith(_DETAIL)]
        narrator.table(("FIGURE", "VALUE", "INTERVAL"), [figure_row(figure) for figure in shown])
        for path in trephine.audits.save(report, folder / "audit"):
            narrator.say(f"  wrote audit/{path.name}")
        figures |= {"verdict": report.verdict.value, "why": report.why, "items": report.items}
        figures["figures"] = {figure.name: figure.value for figure in report.figures}
        figures["findings"] = [one.rule for one in report.findings]

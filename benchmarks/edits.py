"""What edits do, what they cost others, and what serving them costs: `python -m benchmarks.edits`.

Three edits of SmolLM2, each made on the evidence of a circuit: verbs pushed towards the plural by the
transcoder feature that pushes them most, the features that make a verb plural ablated, and the same with
neurons. Every one is measured beside the no-op, matched random features, another layer and, where it steers,
a prompt. Then the same text is generated plain, under an edit by name, and with the edit's interventions sent
along, in turn; the median over rounds of the ratio to the plain one of the same round is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.dataset_tasks import BEGIN
from trephine.client import Model, Trephine, connect
from trephine.client.evaluation_sets import item
from trephine.client.interventions import Handle, feature
from trephine.client.requests import Row
from trephine.client.types import (
    Edit,
    EditEvaluation,
    EvaluationArm,
    EvaluationRole,
    EvaluationSet,
    FeatureRef,
    Figure,
    Intervention,
    Node,
    NodeKind,
)

PROMPT, PLURAL, SINGULAR = f"{BEGIN}The men", " go", " goes"
PUSH = 12.0
TEXT = f"{BEGIN}The history of the town begins with"
TOKENS = 16
PLAIN = "plain"
NODES, VERIFIED = 128, 16
ARMS = {
    EvaluationArm.EDIT: "edit",
    EvaluationArm.NO_OP: "no-op",
    EvaluationArm.PROMPT: "prompt",
    EvaluationArm.MATCHED_EDIT: "edit at the prompt's behaviour",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An edit and what it is to change."""

    name: str
    interventions: tuple[Intervention, ...]
    evidence: str
    target: EvaluationSet


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def agreement(data: Path, case: str, count: int) -> EvaluationSet:
    """Subjects of one number, whose log-odds of the verb in the plural are the behaviour."""
    lines = (data / "agreement" / "simple.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["case"] == case]
    right, wrong = ("clean_answer", "patch_answer") if case == "plural" else ("patch_answer", "clean_answer")
    chosen = rows[:: max(1, len(rows) // count)][:count]
    items = tuple(item(f"{BEGIN}{row['clean_prefix']}", row[right], row[wrong]) for row in chosen)
    return EvaluationSet(name=f"{case} subjects", role=EvaluationRole.TARGET, items=items)


def cases(model: Model, replacement: str, data: Path, items: int) -> list[Case]:
    """Make edits of what two circuits say: the features with the largest effect on the choice."""
    of_set, of_neurons = (
        model.discover(
            PROMPT,
            target=PLURAL,
            against=SINGULAR,
            replacement=name,
            max_feature_nodes=NODES,
            verify_nodes=VERIFIED,
        )
        for name in (replacement, None)
    )
    strong = strongest(of_set.nodes(kind=NodeKind.FEATURE), 3)
    plural, singular = agreement(data, "plural", items), agreement(data, "singular", items)
    neurons = strongest(of_neurons.nodes(kind=NodeKind.FEATURE), 3)
    return [
        Case(
            name="plural",
            interventions=(_handle(strong[0]).add(PUSH),),
            evidence=of_set.name,
            target=singular,
        ),
        Case(
            name="no-plural",
            interventions=tuple(_handle(ref).ablate() for ref in strong),
            evidence=of_set.name,
            target=plural,
        ),
        Case(
            name="no-plural-neurons",
            interventions=tuple(_handle(ref).ablate() for ref in neurons),
            evidence=of_neurons.name,
            target=plural,
        ),
    ]


def strongest(nodes: Sequence[Node], count: int) -> list[FeatureRef]:
    """Return the features above the first layers that push most towards the target, each once.

    The first two layers tell words apart: whoever ablates there ablates the word.
    """
    found: dict[FeatureRef, float] = {}
    for node in nodes:
        if node.feature is not None and node.layer > 1:
            found[node.feature] = found.get(node.feature, 0.0) + node.effect
    return sorted(found, key=lambda ref: -found[ref])[:count]


def _handle(ref: FeatureRef) -> Handle:
    return feature(ref.layer, ref.index, replacement=ref.replacement)


# --- effect and damage ---------------------------------------------------------------------------


HEADER = "| edit | on | of | effect or damage | top-1 agreement | perplexity ratio, or accuracy change |"


def lines(found: EditEvaluation) -> list[str]:
    """Write one evaluation: arms with their intervals, controls with their range, prompt and word."""
    edit = found.edit.removeprefix("edits/")
    rows = [
        f"| {edit} | {one.name} | {ARMS[arm.arm]} | {shown(arm.figures, 'log_odds_change', 'kl')} "
        f"| {shown(arm.figures, 'top1_agreement')} "
        f"| {shown(arm.figures, 'accuracy_change', 'perplexity_ratio')} |"
        for one in found.sets
        for arm in one.arms
        if arm.arm in ARMS
    ]
    rows += [
        f"| {edit} | {one.name} | {len(control.values)} {control.arm.value.replace('_', ' ')} sets "
        f"| {min(control.values):+.3f} to {max(control.values):+.3f}; the edit there {control.effect:+.3f}, "
        f"p = {control.adjusted_p_value:.3g} | | |"
        for one in found.sets
        for control in one.controls
    ]
    if found.prompting is not None:
        rows.append(f"<!-- prompting: {found.prompting.standing.value}: {found.prompting.why} -->")
    rows.append(f"<!-- {edit}: {found.verdict.value.upper()}: {found.why} ({found.seconds:.0f} s) -->")
    return rows


def shown(figures: Sequence[Figure], *names: str) -> str:
    """The first figure of these names that is there, with its interval."""
    by_name = {figure.name: figure for figure in figures}
    found = next((by_name[name] for name in names if name in by_name), None)
    if found is None:
        return ""
    span = "" if found.low is None or found.high is None else f" [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{found.value:+.3f}{span}"


def evaluate(trephine: Trephine, case: Case, model: Model, controls: int) -> EditEvaluation:
    """Store an edit and measure it; damage is measured on the built-in text."""
    edit = trephine.edits.create(
        case.name,
        case.interventions,
        model=model.name,
        reason="the benchmark of edits",
        evidence=[case.evidence],
    )
    return trephine.edits.evaluate(edit, [case.target], controls=controls, tokens=64, shots=(2,))


# --- what serving costs --------------------------------------------------------------------------


def serving(model: Model, edit: Edit, rounds: int) -> dict[str, list[float]]:
    """Seconds of one generation by round, served in every way."""
    ways: dict[str, Callable[[], Row]] = {
        PLAIN: lambda: Row(TEXT, plain=True),
        "plain again": lambda: Row(TEXT, plain=True),
        "interventions sent along": lambda: Row(TEXT, edit.interventions, plain=True),
        "edit by name": lambda: Row(TEXT, edits=[edit.name]),
        "edit by default": lambda: Row(TEXT),
    }
    model.set_live_edits([edit])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, row in ways.items():
            began = time.perf_counter()
            with model.generate([row()], max_new_tokens=TOKENS) as stream:
                stream.result()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    model.set_live_edits([])
    return seconds


def report_serving(edit: Edit, seconds: dict[str, list[float]]) -> None:
    """Print each way beside the plain request of its round: what else the machine does is in both."""
    say(f"\n| {TOKENS} tokens under {edit.reference} | median, ms | beside plain | all rounds |")
    say("|---" * 4 + "|")
    for name, taken in seconds.items():
        ratios = sorted(mine / plain for mine, plain in zip(taken, seconds[PLAIN], strict=True))
        say(
            f"| {name} | {1e3 * statistics.median(taken):.0f} | {statistics.median(ratios):.3f} "
            f"| {ratios[0]:.3f} to {ratios[-1]:.3f} |"
        )


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Effect and damage of edits, and what serving them costs.")
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds `agreement`")
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--controls", type=int, default=99)
    parser.add_argument("--rounds", type=int, default=9, help="0: measure no serving")
    parser.add_argument("--edits", type=int, default=3, help="0: evaluate none")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="trephine-bench-edits-") as state,
        connect(state=state) as trephine,
    ):
        model = trephine.load_model("smollm2")
        replacement = model.load_replacements(given.transcoders)
        made = cases(model, replacement.set_id, given.data, given.items)
        say(f"{HEADER}\n{'|---' * 6}|")
        for case in made[: given.edits]:
            for line in lines(evaluate(trephine, case, model, given.controls)):
                say(line)
        if given.rounds:
            served = trephine.edits.create("served", made[0].interventions, model=model.name)
            report_serving(served, serving(model, served, given.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())

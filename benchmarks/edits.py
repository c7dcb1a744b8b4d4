"""What edits do, what they cost others, and what serving them costs: `python -m benchmarks.edits`.

Three edits of SmolLM2, each made on the evidence of a circuit: verbs pushed towards the plural by the
transcoder feature that pushes them most, the features that make a verb plural ablated, and the same with
neurons. Effect and damage stand beside the no-op, matched random features and another layer, and beside the
prompt that comes nearest to its behaviour, out of instructions and solved examples: the edit is scaled until
it behaves as under that prompt, and the damage of both is compared there. Then the same text is generated
plain, under an edit by name, and with the edit's interventions sent along, in turn; the median over rounds of
the ratio to the plain one of the same round is printed.
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
    EvaluatedSet,
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
CONTROLS = (EvaluationArm.RANDOM, EvaluationArm.WRONG_LAYER)
TEXT = f"{BEGIN}The history of the town begins with"
TOKENS = 16
PLAIN = "plain"
NODES, VERIFIED = 128, 16
MORE, LESS = (
    (f"{BEGIN}Several people are spoken of, so every verb is in the plural: they go, they do, they are.\n",),
    (f"{BEGIN}One person is spoken of, so every verb is in the singular: he goes, he does, he is.\n",),
)
"""Instructions for either behaviour; solved examples, one, two and four, are tried beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An edit and what it is to change."""

    name: str
    interventions: tuple[Intervention, ...]
    evidence: str
    target: EvaluationSet
    prompts: tuple[str, ...]
    """Instructions that ask for what the edit does."""


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
            prompts=MORE,
        ),
        Case(
            name="no-plural",
            interventions=tuple(_handle(ref).ablate() for ref in strong),
            evidence=of_set.name,
            target=plural,
            prompts=LESS,
        ),
        Case(
            name="no-plural-neurons",
            interventions=tuple(_handle(ref).ablate() for ref in neurons),
            evidence=of_neurons.name,
            target=plural,
            prompts=LESS,
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


HEADER = (
    "| edit | effect, nats | no-op | random, matched | another layer | retain KL, nats/token | no-op | top-1 "
    "| perplexity | word |"
)
DAMAGE_HEADER = "| edit | damage on the controls' tokens | the edit | random, matched | another layer |"
PROMPT_HEADER = (
    "| edit | prompt | log-odds: plain, edit, prompt | strength of the edit at the prompt's | its retain KL "
    "| the prompt's | prompt less edit | the edit |"
)


def line(found: EditEvaluation) -> str:
    """One edit: effect and damage with their intervals, beside the no-op and controls, and its word."""
    target, retain = (
        next(one for one in found.sets if one.role is role)
        for role in (EvaluationRole.TARGET, EvaluationRole.RETAIN)
    )
    cells = [
        found.edit.removeprefix("edits/"),
        shown(target, EvaluationArm.EDIT, "log_odds_change"),
        shown(target, EvaluationArm.NO_OP, "log_odds_change", brief=True),
        *(controlled(target, arm, "log_odds_change") for arm in CONTROLS),
        shown(retain, EvaluationArm.EDIT, "kl"),
        shown(retain, EvaluationArm.NO_OP, "kl", brief=True),
        shown(retain, EvaluationArm.EDIT, "top1_agreement", brief=True),
        shown(retain, EvaluationArm.EDIT, "perplexity_ratio", brief=True),
        found.verdict.value.upper(),
    ]
    return f"| {' | '.join(cells)} |"


def damage_lines(found: EditEvaluation) -> str:
    """Damage of one edit beside that of its controls, on the very same tokens, figure by figure."""
    retain = next(one for one in found.sets if one.role is EvaluationRole.RETAIN)
    lines = []
    for own in (one for one in retain.controls if one.arm is EvaluationArm.RANDOM):
        cells = [
            found.edit.removeprefix("edits/"),
            f"{own.statistic}, {own.units} texts, {own.tokens} tokens",
            f"{own.effect:.4f}",
            *(controlled(retain, arm, own.statistic) for arm in CONTROLS),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def prompt_line(found: EditEvaluation) -> str:
    """One edit beside the prompt that comes nearest to its behaviour, at that behaviour."""
    prompting = found.prompting
    if prompting is None:
        return f"| {found.edit.removeprefix('edits/')} | no prompt was tried |" + " |" * 6
    retain = next(one for one in found.sets if one.role is EvaluationRole.RETAIN)
    chosen = next((one for one in prompting.candidates if one.label == prompting.chosen), None)
    behaviours = (prompting.plain_behaviour, prompting.edit_behaviour, chosen and chosen.behaviour)
    tried = f"of {len(prompting.candidates)}"
    cells = [
        found.edit.removeprefix("edits/"),
        f"none {tried}" if chosen is None else f"{chosen.label}, {chosen.tokens} tokens ({tried})",
        ", ".join("-" if one is None else f"{one:+.2f}" for one in behaviours),
        "none up to 4" if prompting.strength is None else f"{prompting.strength:.3g}",
        shown(retain, EvaluationArm.MATCHED_EDIT, "kl"),
        shown(retain, EvaluationArm.PROMPT, "kl"),
        "; ".join(map(interval, prompting.differences)),
        prompting.standing.value.replace("_", " ").upper(),
    ]
    return f"| {' | '.join(cells)} |"


def shown(one: EvaluatedSet, arm: EvaluationArm, name: str, *, brief: bool = False) -> str:
    """A figure of an arm, with its interval unless `brief`; empty where the arm was not run."""
    found = one.arm(arm)
    figure = None if found is None else found.figure(name)
    if figure is None:
        return ""
    return f"{figure.value:.3f}" if brief else interval(figure)


def interval(figure: Figure) -> str:
    """A figure with its interval."""
    span = "" if figure.low is None or figure.high is None else f" [{figure.low:+.3f}, {figure.high:+.3f}]"
    return f"{figure.value:+.3f}{span}"


def controlled(one: EvaluatedSet, arm: EvaluationArm, statistic: str) -> str:
    """Median and range of one kind of controls, how many do as much as the edit, and its p beside them."""
    named = (control for control in one.controls if control.statistic == statistic)
    found = next((control for control in named if control.arm is arm), None)
    if found is None:
        return ""
    low, high, signed = min(found.values), max(found.values), "+" if statistic.endswith("_change") else ""
    span = f"{found.quantiles[1]:{signed}.3f}, {low:{signed}.3f} to {high:{signed}.3f}"
    return f"{span} ({found.reached} of {len(found.values)}, p {found.adjusted_p_value:.2g})"


def evaluate(trephine: Trephine, case: Case, model: Model, controls: int) -> EditEvaluation:
    """Store an edit and measure it; damage is measured on the built-in text."""
    edit = trephine.edits.create(
        case.name,
        case.interventions,
        model=model.name,
        reason="the benchmark of edits",
        evidence=[case.evidence],
    )
    return trephine.edits.evaluate(
        edit,
        [case.target],
        controls=controls,
        tokens=64,
        retain_tokens=256,
        prompts=case.prompts,
        always_prompt=True,
    )


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
        found = []
        for case in made[: given.edits]:
            found.append(evaluate(trephine, case, model, given.controls))
            say(f"<!-- {found[-1].edit}: {found[-1].why} ({found[-1].seconds:.0f} s) -->")
        for header, written in ((HEADER, line), (DAMAGE_HEADER, damage_lines), (PROMPT_HEADER, prompt_line)):
            say(f"\n{header}\n{'|---' * header.count(' |')}|")
            for one in found:
                say(written(one))
        if given.rounds:
            served = trephine.edits.create("served", made[0].interventions, model=model.name)
            report_serving(served, serving(model, served, given.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())

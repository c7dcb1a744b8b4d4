"""Evaluations of edits on the terminal."""

from __future__ import annotations

from trephine.client.cli.evaluate import shown
from trephine.client.cli.output import Output
from trephine.client.types import (
    ControlComparison,
    EditEvaluation,
    EvaluatedSet,
    EvaluationArm,
    PromptingResult,
    Standing,
)

_ARMS = {
    EvaluationArm.EDIT: "edit",
    EvaluationArm.NO_OP: "no-op",
    EvaluationArm.RANDOM: "random, matched",
    EvaluationArm.WRONG_LAYER: "wrong layer",
    EvaluationArm.PROMPT: "prompt",
    EvaluationArm.MATCHED_EDIT: "edit, matched",
}
_STANDINGS = {
    Standing.BEATS: "LESS DAMAGE",
    Standing.DOES_NOT_BEAT: "NO LESS DAMAGE",
    Standing.INCONCLUSIVE: "INCONCLUSIVE",
}


def show_evaluation(output: Output, found: EditEvaluation) -> None:
    """Print every figure of every set, the controls, the prompt, and the word."""
    if output.json:
        output.document(found.to_json())
        return
    output.table(("SET", "ROLE", "OF", "FIGURE", "VALUE"), [row for one in found.sets for row in _rows(one)])
    compared = [(one, control) for one in found.sets for control in one.controls]
    if compared:
        output.line()
        output.table(
            ("SET", "ON", "CONTROLS", "FIGURE", "EDIT", "5 %", "MEDIAN", "95 %", "AS MUCH", "P", "ADJUSTED"),
            [_comparison(one, control) for one, control in compared],
        )
    if found.prompting is not None:
        _show_prompting(output, found.prompting)
    output.line()
    output.facts(_facts(found))


def _rows(one: EvaluatedSet) -> list[tuple[str, ...]]:
    return [
        (one.name, one.role.value, _ARMS.get(arm.arm, arm.arm.value), figure.name, shown(figure))
        for arm in one.arms
        for figure in arm.figures
    ]


def _comparison(one: EvaluatedSet, control: ControlComparison) -> tuple[str, ...]:
    sign = "+" if control.statistic.endswith("_change") else ""
    return (
        one.name,
        f"{control.units} ({control.tokens} tokens)" if control.tokens else f"{control.units}",
        f"{len(control.values)} {_ARMS[control.arm]}",
        control.statistic,
        *(f"{value:{sign}.4f}" for value in (control.effect, *control.quantiles)),
        f"{control.reached} of {len(control.values)}",
        f"{control.p_value:.3g}",
        f"{control.adjusted_p_value:.3g}",
    )


def _show_prompting(output: Output, found: PromptingResult) -> None:
    output.line()
    rows = [("plain model", "0", f"{found.plain_behaviour:+.3f}")]
    rows += [("edit", "0", f"{found.edit_behaviour:+.3f}")]
    rows += [
        (f"{one.label}{' <' if one.label == found.chosen else ''}", str(one.tokens), f"{one.behaviour:+.3f}")
        for one in found.candidates
    ]
    output.table(("PROMPT", "TOKENS", "BEHAVIOUR, NATS"), rows)
    output.line()
    facts = [("prompting", f"{_STANDINGS.get(found.standing, '?')}: {found.why}")]
    facts += [(one.name, shown(one)) for one in found.differences]
    output.facts(facts)


def _facts(found: EditEvaluation) -> list[tuple[str, str]]:
    facts = [
        ("evaluation", found.name),
        ("edit", f"{found.edit}, content {found.content_hash[:12]}"),
        ("verdict", found.verdict.value.upper()),
        ("why", found.why),
    ]
    facts += [("would decide", found.would_decide)] if found.would_decide else []
    facts += [("matching", note) for note in found.matching.notes]
    facts += [("other layer", layer) for layer in found.matching.wrong_layers]
    facts += [("mind", caveat) for caveat in found.caveats]
    return [*facts, ("took", f"{found.seconds:.0f} s")]

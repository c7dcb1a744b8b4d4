"""The model card of an export: what was changed, what was measured, what that does not prove."""

from __future__ import annotations

import json
from collections.abc import Sequence

from trephine.domain.edit_kinds import is_removing, is_steering
from trephine.domain.edits import Edit
from trephine.domain.exports import Certificate, ExportPlan, PlanStep, WidenedLayer
from trephine.domain.removal import AttackFigure, Interval
from trephine.engine.card_features import feature_table
from trephine.engine.gates import told_apart
from trephine.engine.hosted import HostedModel

CARD_NAME = "README.md"
PARENT_CARD_NAME = "README.parent.md"

_SHOWN = (
    ("kl_intervened_exported_mean", "KL, intervened runtime to this checkpoint, mean over all positions"),
    ("kl_intervened_exported_p50", "the same, median"),
    ("kl_intervened_exported_p99", "the same, 99th percentile"),
    ("kl_intervened_exported_p999", "the same, 99.9th percentile"),
    ("kl_intervened_exported_max", "the same, maximum"),
    ("kl_intervened_exported_firing_mean", "the same, mean over tokens on which an edited feature fires"),
    ("kl_intervened_exported_after_first_mean", "the same, mean over positions >= 1"),
    ("kl_intervened_exported_first_mean", "the same, mean over position 0"),
    ("retain_kl_original_exported_mean", "KL, parent to this checkpoint, mean over all positions"),
    ("retain_kl_original_exported_after_first_mean", "the same, positions >= 1"),
    ("retain_kl_original_exported_p99", "the same, 99th percentile over all positions"),
    ("retain_kl_original_exported_max", "the same, maximum"),
    ("retain_kl_original_intervened_mean", "KL, parent to intervened runtime, mean"),
    ("retain_builtin_kl_original_exported_mean", "KL, parent to this checkpoint, built-in retain text, mean"),
    ("retain_builtin_kl_original_exported_p99", "the same, 99th percentile"),
    ("retain_builtin_kl_original_exported_max", "the same, maximum"),
    ("retain_builtin_kl_original_intervened_mean", "KL, parent to intervened runtime, built-in retain text"),
    ("noise_floor_attention_mean", "the parent's noise floor, attention implementation"),
    ("noise_floor_dtype_mean", "the parent's noise floor, float32 against bfloat16 arithmetic"),
    ("noise_floor_dtype_firing_mean", "that floor on tokens on which an edited feature fires"),
    ("top1_agreement", "next-token agreement, intervened runtime and this checkpoint"),
    ("noise_top1_agreement", "that agreement between the parent in the runtime and under stock attention"),
    ("kl_intervened_exported_in_stored_dtype_mean", "KL, intervened runtime to this checkpoint as stored"),
    ("kl_intervened_exported_in_stored_dtype_firing_mean", "the same on firing tokens"),
    ("greedy_match", "greedy tokens agreed on before the first difference, 64 each"),
    ("perplexity_ratio", "perplexity of this checkpoint over the intervened runtime's"),
    ("firing_share", "share of tokens on which an edited feature fires"),
    (
        "near_constant_residue_held_out",
        "how far what stands in for biases is from 1, on text it was not fitted on",
    ),
    ("near_constant_residue", "the same residue where it was fitted"),
    ("graft_misfires_held_out", "share of tokens on which grafts misfire, on text they were not chosen on"),
    ("graft_misfires", "the same misfires where they were chosen"),
    ("recovery", "share of the intervention that the checkpoint carries, by KL"),
    ("recovery_firing", "the same on firing tokens"),
    ("recovery_in_stored_dtype", "share that it carries when it is run as stored, rounding included"),
    ("recovery_in_stored_dtype_firing", "the same on firing tokens"),
    ("recovery_both_in_stored_dtype", "share that it carries where runtime and checkpoint are run as stored"),
    ("recovery_both_in_stored_dtype_firing", "the same on firing tokens"),
    (
        "top1_agreement_in_stored_dtype",
        "next-token agreement, intervened runtime and this checkpoint as stored",
    ),
    ("top1_agreement_both_in_stored_dtype", "the same, the runtime run as stored too"),
    ("noise_top1_agreement_in_stored_dtype", "that agreement between the parent and itself as stored"),
    (
        "greedy_match_in_stored_dtype",
        "greedy tokens agreed on, intervened runtime and this checkpoint as stored",
    ),
    ("greedy_match_both_in_stored_dtype", "the same, the runtime run as stored too"),
    ("noise_greedy_match_in_stored_dtype", "that greedy match between the parent and itself as stored"),
    (
        "perplexity_ratio_in_stored_dtype",
        "perplexity of this checkpoint as stored over the intervened runtime's",
    ),
    ("perplexity_ratio_both_in_stored_dtype", "the same, the runtime run as stored too"),
    ("noise_perplexity_ratio_in_stored_dtype", "that perplexity ratio of the parent as stored over itself"),
)


def model_card(hosted: HostedModel, edit: Edit, plan: ExportPlan, certificate: Certificate) -> str:
    """Write the card as Markdown with a YAML header; texts of the edit are quoted as code."""
    info = hosted.info
    changed, tensors = len(plan.changed_tensors), len(plan.changed_tensors) + plan.untouched_tensors
    return f"""---
base_model: {json.dumps(info.name)}
base_model_relation: finetune
library_name: transformers
tags: [model-editing, interpretability]
---

# {_plain(info.name)}, edited: {_plain(edit.name)}

A copy of `{_plain(info.name)}` ({info.architecture}) in which {changed} of {tensors} tensors were
changed. All others have their parent's bytes. It is a plain checkpoint: stock tools load it.

- Edit: `{_plain(edit.name)}`, version {edit.version}, content `{edit.content_hash}`
- Reason: `{_plain(edit.reason) or "none given"}`
- Author: `{_plain(edit.author) or "none given"}`
- Parent weights: `{info.weight_hash}`
- Stored as: {certificate.dtype}; the runtime computed in {certificate.environment.get("compute_dtype", "it")}

## What was changed

{_changes(plan)}

## What it takes to load it

{_form(info.architecture, plan)}

## What was measured

In a clean process without Trephine, on the files of this folder, on {certificate.n_tokens} tokens of
`{_plain(certificate.text)}`. Units are nats per token unless they are shares.

**{_verdict(certificate)}**

{_table(certificate)}

{_more(certificate)}## Gates, fixed before anything was written

{_gates(certificate)}

## Intended use

Where the parent is used, if the change above is wanted. Whoever deploys it decides on the evidence for the
change, which is named in `edit_manifest.json`, and on the figures here.

## Limits

{_promise(certificate)}
- {_removal(edit, certificate)}
- Whoever has the parent can undo the edit.
{_edit_limits(plan)}- Damage was measured on one text only. Measure it on your own before you rely on it.
- The parent's own limits hold as before; its card is `{PARENT_CARD_NAME}` where it had one.

Check this folder with `trephine verify DIR`; `sha256sum --check trephine.sha256` checks the bytes alone.
"""


def _more(certificate: Certificate) -> str:
    """Write features apart, GGUF files and attacks; whole paragraphs, or nothing of what was not measured."""
    return f"{feature_table(certificate)}{_quantised(certificate)}{_attacks(certificate)}"


def _verdict(certificate: Certificate) -> str:
    """Say what the gates come to."""
    if certificate.verdict == "inconclusive":
        return f"Inconclusive: {' '.join(_plain(certificate.doubt).split())}."
    return {
        "passed": "Passed: every gate below holds.",
        "failed": "Failed: not every gate below holds.",
    }[certificate.verdict]


def _promise(certificate: Certificate) -> str:
    """Say what the certificate says of the intervention; whole lines."""
    if certificate.verdict == "inconclusive":
        return (
            "- **Inconclusive, and no pass**: the certificate cannot tell whether this checkpoint does what\n"
            "  the intervention did; the text shows no more of it than of rounding."
        )
    return (
        "- The certificate says that this checkpoint does what the intervention did. It does not say that\n"
        "  the intervention removes a behaviour on other prompts, in other languages or after other training."
    )


def _removal(edit: Edit, certificate: Certificate) -> str:
    """Say the word, and what it means of an edit of this kind."""
    removal = certificate.removal
    if removal is None:
        return _not_attacked(edit, certificate)
    meaning = {
        "removed": "under the attacks above, at their strengths; stronger ones may bring it back.",
        "suppressed": "the model still holds the behaviour, and an attack brings it back.",
        "inconclusive": "the attacks above decide nothing; it counts as suppressed.",
    }
    word = f"**{removal.verdict.capitalize()}**"
    if is_steering(edit.interventions) and not is_removing(edit.interventions):
        word += ", of what the parent does in place of what was put in"
    return f"{word}: {meaning[removal.verdict]}"


def _not_attacked(edit: Edit, certificate: Certificate) -> str:
    """Say what the word that stands for want of an attack says of what was taken away, put in, or neither."""
    word = f"{certificate.fate.verdict} ({certificate.fate.reason})"
    taken, put = is_removing(edit.interventions), is_steering(edit.interventions)
    if not taken and not put:
        return (
            "No recovery attack has been run, and there is nothing that one could bring back: the edit\n"
            f"  takes nothing away and puts nothing in. The certificate's word, {word}, says no\n"
            "  more of it."
        )
    if not taken:
        return (
            "No recovery attack has been run. The edit puts something in and takes nothing away, so that\n"
            f"  the certificate's word, {word}, is of nothing ablated; a short fine-tuning may undo\n"
            "  what was put in."
        )
    undone = ", and undo what was put in" if put else ""
    return (
        f"No recovery attack has been run: what was taken away counts as {word},\n"
        f"  not removed, and a short fine-tuning may bring it back{undone}."
    )


def _attacks(certificate: Certificate) -> str:
    """Write what attacks brought back; whole paragraphs, or nothing."""
    removal = certificate.removal
    if removal is None:
        return ""
    rows = "\n".join(
        f"| {f.kind.replace('_', '-')} | {f.strength:g} | {_interval(f.returned)} | {_interval(f.unrelated)} "
        f"| {_most(f)} | {_interval(f.excess)} |"
        for f in removal.figures
    )
    table = (
        "\n\n| attack | strength | behaviour back | unrelated ones | most of one | excess |\n"
        "|---|---|---|---|---|---|\n" + rows
        if rows
        else ""
    )
    return f"""## Attacks: {removal.verdict}

{removal.why.capitalize()}.

On {removal.n_tokens} tokens in {removal.n_contexts} contexts on which the edit acts, by
{removal.effect:.2g} nats. Recovery perturbs the residual stream by a share of its norm, off the directions
that the edited features read. Benign training is on the next tokens of natural text in which the behaviour
occurs, few-shot training on a few contexts with the original's answers, each for a number of steps. Shares of
the behaviour with 95 % intervals over contexts; unrelated behaviours have its size and geometry, and their
intervals are over several of them as well. Benign training is held against the unedited parent trained alike,
too; few-shot training is not run on it: those are its own answers, and its gradient is zero.{table}

"""


def _quantised(certificate: Certificate) -> str:
    """Write how the edit survived in GGUF files; whole paragraphs, or nothing."""
    if not certificate.quantised:
        return ""
    rows = "\n".join(
        f"| {c.kind} | {c.edit_kl:.3g} | {c.kl:.3g} | {_share(c.recovery)} | {_share(c.recovery_firing)} "
        f"| {c.perplexity_ratio:.4f} | {c.quantisation_kl:.3g} |"
        for c in certificate.quantised
    )
    return f"""## As GGUF files

In `gguf/`, each reloaded alone by stock transformers and held against the parent quantised in the same way,
in which the runtime intervenes; the last column is what quantising alone does to the parent. Nats per token.

| file | edit | left | recovery | on firing tokens | perplexity ratio | quantising |
|---|---|---|---|---|---|---|
{rows}

"""


def _share(share: float | None) -> str:
    return "nothing to recover" if share is None else f"{share:.4f}"


def _most(figure: AttackFigure) -> str:
    """Say how much returned of the unrelated behaviour of which most did, and of how many."""
    if figure.unrelated_most is None:
        return "not kept"
    return f"{figure.unrelated_most:.2f} of {figure.unrelated_behaviours}"


def _interval(interval: Interval) -> str:
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _edit_limits(plan: ExportPlan) -> str:
    """Say which sets are not what they claim, and what grafts and fits do not promise; whole lines."""
    lines = "".join(f"- {' '.join(_plain(one).split())}\n" for one in plan.caveats)
    if any(step.tier == "graft" for step in plan.steps):
        lines += (
            "- Features are changed by added neurons, which are visible and can be removed by anyone.\n"
            "  Their gates are steep: further fine-tuning meets sharp gradients there.\n"
        )
    if plan.fitted:
        lines += (
            "- Approximate: a part of the edit is fitted and carries a share of the intervention,\n"
            "  `recovery`; where its features fire, `recovery_firing`. Its distances in nats are no gates.\n"
        )
    return lines


def _changes(plan: ExportPlan) -> str:
    lines = [f"- `{step.tensor}` ({_tier(step)}): {step.description}" for step in plan.steps]
    return "\n".join(lines) or "Nothing: an export without interventions is its parent."


def _form(architecture: str, plan: ExportPlan) -> str:
    """Say what a loader meets that the parent has not: config, width, size; and which servers take it."""
    fields = ", ".join(f"`{_plain(one)}`" for one in plan.config_changes)
    lines = [
        f"- Architecture: `{_plain(architecture)}`, as the parent's.",
        f"- Fields of `config.json` that changed: {fields or 'none'}.",
        f"- Neurons added to MLPs: {_widening(plan.widened) or 'none; every tensor keeps its shape'}.",
        f"- Size: at most {plan.size_growth_bytes / 2**20:.1f} MiB more than the parent, "
        "GGUF files included.",
    ]
    lines += [
        f"- {_plain(one.server)}: {'loads it' if one.loads else '**does not load it**'}; {_plain(one.note)}."
        for one in plan.servers
    ]
    return "\n".join(lines)


def _widening(widened: Sequence[WidenedLayer]) -> str:
    """List layers with what is added to them; those that are given zeros alone stand together, at the end."""
    used = [one for one in widened if one.zeros < one.neurons]
    parts = [f"{one.neurons} in layer {one.layer}, {one.zeros} of them zeros" for one in used]
    padded = [one for one in widened if one.zeros == one.neurons]
    if padded:
        parts.append(
            f"{padded[0].neurons} in each of the layers {_ranges([one.layer for one in padded])}, all of "
            "them zeros, since layers share one width"
        )
    return "; ".join(parts)


def _ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers as ranges: `0-3, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _tier(step: PlanStep) -> str:
    """Name the tier, and what of a change it is expected to miss."""
    if step.tier in ("noop", "exact"):
        return (
            f"{step.tier}, error {step.predicted_error:.2g} by rounding"
            if step.predicted_error
            else step.tier
        )
    if step.predicted_error is None:
        return f"{step.tier}, error not known"
    where = "on windows kept back" if step.held_out else "on what it was calibrated on"
    return f"{step.tier}, error {step.predicted_error:.2g} {where}"


def _table(certificate: Certificate) -> str:
    found = {m.name: m.value for m in certificate.measurements}
    rows = [f"| {text} | {_value(name, found[name])} |" for name, text in _SHOWN if name in found]
    return "\n".join(["| measurement | value |", "|---|---|", *rows])


def _value(name: str, value: float) -> str:
    """Write three digits; ratios of perplexities lie so close to 1 that they have more."""
    return f"{value:.5f}" if "perplexity_ratio" in name else f"{value:.3g}"


def _gates(certificate: Certificate) -> str:
    rows = [
        f"| {r.gate.name} | {' | '.join(told_apart(r.measured, r.gate.limit))} {r.gate.unit} "
        f"| {'held' if r.passed else '**missed**'} | {r.gate.reason.replace('|', chr(92) + '|')} |"
        for r in certificate.gates
    ]
    return "\n".join(["| gate | measured | limit | | why this limit |", "|---|---|---|---|---|", *rows])


def _plain(text: str) -> str:
    """Leave printable characters that end neither a line nor a code span."""
    return "".join(c if c.isprintable() and c != "`" else " " for c in text)

"""The model card of an export: what was changed, what was measured, what that does not prove."""

from __future__ import annotations

import json
from collections.abc import Sequence

from trephine.domain.edits import Edit
from trephine.domain.exports import Certificate, ExportPlan, PlanStep, WidenedLayer
from trephine.engine.certificates.card_attacks import attack_table, removal_word
from trephine.engine.certificates.card_features import feature_table
from trephine.engine.certificates.gates import told_apart
from trephine.engine.models.hosted import HostedModel

CARD_NAME = "README.md"
PARENT_CARD_NAME = "README.parent.md"

_FLOOR = "noise_floor_dtype_mean"
_GREEDY = "greedy_match"
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
    (_FLOOR, "the parent's noise floor"),
    ("noise_floor_dtype_firing_mean", "that floor on tokens on which an edited feature fires"),
    ("top1_agreement", "next-token agreement, intervened runtime and this checkpoint"),
    ("noise_top1_agreement", "that agreement between the parent in the runtime and under stock attention"),
    ("kl_intervened_exported_in_stored_dtype_mean", "KL, intervened runtime to this checkpoint as stored"),
    ("kl_intervened_exported_in_stored_dtype_firing_mean", "the same on firing tokens"),
    (_GREEDY, "greedy tokens agreed on before the first difference"),
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
    ("kl_intervened_exported_in_float32_mean", "KL, runtime to checkpoint, both computing in float32, mean"),
    ("recovery_in_float32", "share that it carries where both compute in float32"),
    ("recovery_in_float32_firing", "the same on firing tokens"),
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
- Reason, in its author's words: `{_plain(edit.reason) or "none given"}`
- Author, as given: `{_plain(edit.author) or "none given"}`
- Parent weights: `{info.weight_hash}`{_sets(certificate)}
- Stored as: {certificate.dtype}; the runtime computed in {certificate.environment.get("compute_dtype", "it")}

## What was changed

{_changes(plan)}

## What it takes to load it

{_form(info.architecture, plan)}

## What was measured

In a clean process without Trephine, on the files of this folder, on {certificate.n_tokens} tokens of
`{_plain(certificate.text)}`. Units are nats per token unless they are shares.

{_also_measured(certificate)}**{_verdict(certificate)}**

{_table(certificate)}

{_more(certificate)}## Gates, fixed before anything was written

{_gates(certificate)}

## Intended use

Where the parent is used, if the change above is wanted. Whoever deploys it decides on the evidence for the
change, which is named in `edit_manifest.json`, and on the figures here.

## Limits

{_promise(plan, certificate)}
- {removal_word(edit, certificate)}
- Whoever has the parent can undo the edit.
{_edit_limits(plan)}{_damage(certificate)}
- The parent's own limits hold as before; its card is `{PARENT_CARD_NAME}` where it had one, byte for byte:
  its claims are its makers', of the parent, and were not looked at here.
- Name, reason and author of the edit are its author's words, as they were given.

Check this folder with `trephine verify DIR`; `sha256sum --check trephine.sha256` checks the bytes alone.
"""


def _sets(certificate: Certificate) -> str:
    """Name the sets whose features were compiled; whole lines behind another one."""
    return "".join(
        f"\n- Features of: `{_plain(one.name)}`, content `{one.content_hash}`" for one in certificate.sets
    )


def _more(certificate: Certificate) -> str:
    """Write features apart, GGUF files and attacks; whole paragraphs, or nothing of what was not measured."""
    return f"{feature_table(certificate)}{_quantised(certificate)}{attack_table(certificate)}"


def _verdict(certificate: Certificate) -> str:
    """Say what the gates come to."""
    if certificate.verdict == "inconclusive":
        return f"Inconclusive: {' '.join(_plain(certificate.doubt).split())}."
    return {
        "passed": "Passed: every gate below holds.",
        "failed": "Failed: not every gate below holds.",
    }[certificate.verdict]


def _promise(plan: ExportPlan, certificate: Certificate) -> str:
    """Say what the certificate says of the intervention; whole lines."""
    if certificate.failed:
        return (
            "- **Not certified**: a gate above was missed, so that nothing says that this checkpoint does\n"
            "  what the intervention did."
        )
    if certificate.verdict == "inconclusive":
        if not certificate.changed_tensors:
            return (
                "- **Inconclusive, and no pass**: no tensor was changed. This checkpoint does what its\n"
                "  parent does, and the certificate says nothing of the intervention."
            )
        return (
            "- **Inconclusive, and no pass**: the certificate cannot tell whether this checkpoint does what\n"
            "  the intervention did, for the reason that stands under `What was measured`."
        )
    said = "does what the intervention did. It does not say that"
    if plan.fitted:
        said = (
            f"carries {_carried(certificate)}:\n"
            "  a part of the edit is fitted, and what is missing is not in it. It does not say that"
        )
    return (
        f"- The certificate says that this checkpoint {said}\n"
        "  the intervention removes a behaviour on other prompts, in other languages or after other training."
    )


def _carried(certificate: Certificate) -> str:
    """Name the share that a fit carries beside the one that was asked for."""
    recovery = _found(certificate).get("recovery")
    share = "a share" if recovery is None else f"{recovery:.3g}"
    limits = [one.gate.limit for one in certificate.gates if one.gate.name == "unrecovered"]
    asked = f" (at least {1.0 - limits[0]:.3g} was asked for)" if limits else ""
    return f"{share} of the intervention, by KL on the measured text{asked}"


def _damage(certificate: Certificate) -> str:
    """Say on how few texts damage was measured; a whole line."""
    second = _second_text(certificate)
    texts = "two texts only, the measured one and the built-in one" if second else "one text only"
    return f"- Damage was measured on {texts}. Measure it on your own before you rely on it."


def _second_text(certificate: Certificate) -> str:
    """Name and count the text that damage was measured on beside a caller's; empty: there is none."""
    name, tokens = (certificate.environment.get(key) for key in ("retain_text", "retain_tokens"))
    return f"{tokens} tokens of `{_plain(name)}`" if name and tokens else ""


def _also_measured(certificate: Certificate) -> str:
    """Say which figures are of the second text; a whole paragraph, or nothing."""
    second = _second_text(certificate)
    if not second:
        return ""
    return f"""Damage was also measured on the built-in retain text, {second}: there the edit is to
change nothing, where on the text above what changes is its effect as well.

"""


def _quantised(certificate: Certificate) -> str:
    """Write how the edit survived in GGUF files; whole paragraphs, or nothing."""
    if not certificate.quantised:
        return ""
    rows = "\n".join(
        f"| {c.kind} | {c.edit_kl:.3g} | {c.kl:.3g} | {_share(c.recovery, c.kl)} "
        f"| {_share(c.recovery_firing, c.kl_firing)} "
        f"| {c.perplexity_ratio:.4f} | {c.quantisation_kl:.3g} |"
        for c in certificate.quantised
    )
    return f"""## As GGUF files

In `gguf/`, each reloaded alone by stock transformers and held against the parent quantised in the same way,
in which the runtime intervenes; the last column is what quantising alone does to the parent. Nats per token.
Firing tokens are those on which an edited feature of a set fires; without any, nothing is measured on them.

| file | edit | left | recovery | on firing tokens | perplexity ratio | quantising |
|---|---|---|---|---|---|---|
{rows}

"""


def _share(share: float | None, left: float | None) -> str:
    """Write a share; without one, whether nothing was measured, or what was measured did not move."""
    if share is not None:
        return f"{share:.4f}"
    return "not measured" if left is None else "nothing to recover"


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
            "  `recovery`; where its features fire, `recovery_firing`. How far it is from the\n"
            "  intervention in nats is no gate.\n"
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
        "GGUF files and adapter included, certificate and other papers not.",
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
    found = _found(certificate)
    rows = [
        f"| {text}{_besides(name, certificate)} | {_value(name, found[name])} |"
        for name, text in _SHOWN
        if name in found
    ]
    return "\n".join(["| measurement | value |", "|---|---|", *rows])


def _besides(name: str, certificate: Certificate) -> str:
    """Say of a figure what it is of, where that differs from certificate to certificate."""
    if name == _FLOOR:
        return _types(certificate)
    each = certificate.environment.get("greedy_tokens") if name == _GREEDY else None
    return "" if each is None else f", {each} each"


def _types(certificate: Certificate) -> str:
    """Say between which types' arithmetic the floor was measured."""
    names = [certificate.environment.get(key) for key in ("compute_dtype", "floor_dtype")]
    return f", {names[0]} against {names[1]} arithmetic" if all(names) else ", another type's arithmetic"


def _found(certificate: Certificate) -> dict[str, float]:
    """Return measurements by name."""
    return {one.name: one.value for one in certificate.measurements}


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
    """Leave printable characters that end no line and no code span: a backtick becomes an apostrophe."""
    return "".join(c if c.isprintable() else " " for c in text).replace("`", "'")

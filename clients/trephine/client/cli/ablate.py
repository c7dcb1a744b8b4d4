from __future__ import annotations

from statistics import median
from typing import Annotated

import typer

from trephine.client.cli.arguments import (
    DEFAULT_MODEL,
    AgainstOption,
    EditOption,
    FeatureOption,
    ModelOption,
    TargetOption,
    ablations,
    read_edits,
    read_positions,
)
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.cli.sets import DEGRADED, ReplacementsOption, note_caveats, open_sets
from trephine.client.types import Ablation, ControlResult

ABLATE_EXAMPLES = examples(
    'trephine ablate "When Mary and John went to the store, John gave a drink to" \\',
    '    --target " Mary" --against " John" --feature 20:345 --feature 25:1027',
    'trephine ablate "The capital of France is" --target " Paris" \\',
    "    --replacements smollm2-135m-tc --feature smollm2-135m-tc:20:345",
)


def ablate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="The text whose next token is measured.")],
    target: TargetOption,
    features: FeatureOption = None,
    edits: EditOption = None,
    against: AgainstOption = None,
    model: ModelOption = DEFAULT_MODEL,
    replacements: ReplacementsOption = None,
    controls: Annotated[int, typer.Option(help="Matched random sets; 0 skips them and the p-value.")] = 99,
    positions: Annotated[
        str | None, typer.Option(help="Measure the form bound to these positions beside, as in 9,13.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Unset 0.")] = None,
) -> None:
    """Remove features everywhere and measure what that does, beside random ones moved to write as much."""
    given = invocation(context)
    interventions = ablations(features)
    bound = read_positions(positions) if positions else ()
    with given.connect() as trephine:
        loaded = given.load(trephine, model)
        open_sets(given, trephine, loaded, replacements)
        measured = loaded.ablate(
            prompt,
            interventions,
            target=target,
            against=against,
            edits=read_edits(edits or ()),
            controls=controls,
            seed=seed,
            bound_positions=bound,
        )
    show_ablation(given.output, measured)


def show_ablation(output: Output, measured: Ablation) -> None:
    """Print effects, controls and damage."""
    if output.json:
        output.document(measured.to_json())
        return
    output.table(
        ("FORM", "BEFORE", "AFTER", "CHANGE", "KL AT THE LAST POSITION"),
        [
            (
                effect.name,
                f"{effect.baseline:.3f}",
                f"{effect.intervened:.3f}",
                f"{effect.change:+.3f}",
                f"{effect.kl_last:.4f} nats",
            )
            for effect in measured.effects
        ],
    )
    output.facts(ablation_facts(measured))
    note_caveats(output, measured.caveats)


def _stand_ins(found: ControlResult) -> str:
    """Out of how many they were drawn, and how far they had to be moved to write as much."""
    counts = [one.candidates for one in found.found]
    least, most = min(counts), max(counts)
    told = f"of {least} candidates" if least == most else f"of {least} to {most} candidates each"
    shares = [one.written for one in found.found if one.written is not None]
    if not shares:
        return f"{told}, which usually write about as much"
    return f"{told}, moved to write as much; as the features are, {median(shares):.2f} of it (median)"


def ablation_facts(measured: Ablation) -> list[tuple[str, str]]:
    """Controls and damage, for people."""
    facts = []
    if measured.controls is not None:
        found = measured.controls
        told = " for matched_only" if found.unmatched and found.matched else ""
        facts = [
            ("p-value", f"{found.p_value:.3g}{told} against {len(found.changes)} matched random sets"),
            ("matched", f"{found.matched} {'feature' if found.matched == 1 else 'features'}"),
        ]
        if found.found:
            facts.append(("stand-ins", _stand_ins(found)))
        if found.unmatched:
            listed = ", ".join(f"{one.feature} ({one.candidates} candidates)" for one in found.unmatched)
            facts.append(("unmatched", listed))
    damage = (
        f"{measured.retain_kl:.4f} nats per token on {measured.retain_tokens} tokens of other text; "
        f"{measured.retain_kl_after_first:.4f} at positions >= 1"
    )
    facts.append(("damage", damage))
    degraded = any(one.degraded for effect in measured.effects for one in effect.applied)
    return [*facts, ("degraded", DEGRADED)] if degraded else facts

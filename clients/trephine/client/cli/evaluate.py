from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from trephine.client.cli.arguments import DEFAULT_MODEL, DetachOption, ModelOption
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.cli.sets import (
    AcceptDegradedOption,
    BudgetOption,
    FormatOption,
    SetArgument,
    UnverifiedOption,
    open_set,
    read_bytes,
    read_layers,
)
from trephine.client.errors import LocalFileError
from trephine.client.types import (
    Claim,
    DepthFaithfulness,
    Dictionary,
    EvaluationInfo,
    Figure,
    LayerScore,
    SplicedScore,
)

BUILT_IN = "built-in"
EVALUATE_EXAMPLES = examples(
    "trephine replacements evaluate smollm2-135m-tc",
    "trephine replacements evaluate ./my-set --text heldout.txt --layers 0,15,29 --out out/evaluation",
    "trephine replacements evaluate smollm2-135m-tc --predict",
)
_TITLES = {
    Dictionary.GIVEN: "THE SET",
    Dictionary.RANDOM: "RANDOM",
    Dictionary.FROZEN_DECODER: "FROZEN DECODER",
    Dictionary.FROZEN_ENCODER: "FROZEN ENCODER",
}
_BY_LAYER = (
    (("FVU", "fvu"), ("CE SCORE", "ce_score")),
    (("KL SCORE", "kl_score"), ("TOP-1", "top1_agreement")),
    (("CE, OF ZERO", "ce_score_zero"), ("KL, OF ZERO", "kl_score_zero")),
    (("ERROR SHARE", "error_share"),),
)
"""Figures of layers that share a table, each with its controls beside it."""
_SPLICED = (
    ("cross-entropy, model", "ce_plain"),
    ("cross-entropy, spliced", "ce_spliced"),
    ("cross-entropy, mean-ablated", "ce_mean_ablated"),
    ("cross-entropy, zero-ablated", "ce_zero_ablated"),
    ("cross-entropy recovered", "ce_score"),
    ("  of zero ablation", "ce_score_zero"),
    ("divergence from the model", "kl"),
    ("divergence avoided", "kl_score"),
    ("  of zero ablation", "kl_score_zero"),
    ("same most likely token", "top1_agreement"),
    ("share of the error", "error_share"),
)


def evaluate(
    context: typer.Context,
    name: SetArgument,
    model: ModelOption = DEFAULT_MODEL,
    text: Annotated[str, typer.Option(help="File with text that it was not trained on.")] = BUILT_IN,
    layers: Annotated[
        str | None, typer.Option(help="Layers scored one by one, as in 0,5,10-12; unset: all.")
    ] = None,
    contexts: Annotated[int | None, typer.Option(help="At most this many; unset 32.")] = None,
    context_tokens: Annotated[int | None, typer.Option(help="Tokens of each; unset 128.")] = None,
    no_controls: Annotated[bool, typer.Option("--no-controls", help="Leave the controls out.")] = False,
    perturbations: Annotated[
        int | None, typer.Option(help="Features perturbed for the figures by depth; unset 32, 0 skips.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Unset 0.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for evaluation.html, .json and .csv.")] = None,
    format: FormatOption = None,
    memory_budget: BudgetOption = None,
    accept_degraded: AcceptDegradedOption = False,
    unverified_format: UnverifiedOption = False,
    predict: Annotated[
        bool, typer.Option("--predict", help="Say what it would take; measure nothing.")
    ] = False,
    detach: DetachOption = False,
) -> None:
    """Measure how good a set is on held-out text, with random and half-trained dictionaries beside it.

    Splices each layer alone, then all at once. What does not beat its controls is said not to.
    """
    given = invocation(context)
    words = None if text == BUILT_IN else _read(Path(text))
    with given.connect() as trephine:
        found = open_set(
            given,
            trephine,
            given.load(trephine, model),
            name,
            format=format,
            memory_budget_bytes=read_bytes(memory_budget),
            accept_degraded=accept_degraded,
            allow_unverified=unverified_format,
        )
        options: dict[str, Any] = {
            "text_name": None if words is None else Path(text).name,
            "context_tokens": context_tokens,
            "max_contexts": contexts,
            "layers": read_layers(layers),
            "controls": () if no_controls else None,
            "perturbations": perturbations,
            "seed": seed,
        }
        if predict:
            _show_prediction(given.output, found.predict_evaluate(words, **options))
            return
        started = found.start_evaluate(words, **options)
        evaluation = given.complete(trephine, started, f"evaluate {name}", detach=detach)
        paths = evaluation.save(out) if out is not None else ()
    show_evaluation(given.output, evaluation.info)
    for path in paths:
        given.output.note(f"wrote {path}")


def _show_prediction(output: Output, info: EvaluationInfo) -> None:
    if output.json:
        output.document(info.to_json())
        return
    output.facts(
        [("would take", f"{info.seconds:,.0f} s"), ("memory", f"{info.peak_extra_bytes / 1e6:,.0f} MB")]
    )


def show_evaluation(output: Output, info: EvaluationInfo) -> None:
    """Print layers with their controls side by side, all layers spliced, depths, claims and caveats."""
    if output.json:
        output.document(info.to_json())
        return
    found = {one.dictionary for one in info.layers} | {one.dictionary for one in info.spliced}
    dictionaries = [one for one in _TITLES if one in found]
    _show_layers(output, info.layers, dictionaries)
    _show_spliced(output, info.spliced, dictionaries)
    _show_depths(output, info.depths, dictionaries)
    output.line()
    output.facts(_facts(info))


def shown(figure: Figure) -> str:
    """A figure with its interval: `0.214 (0.209 to 0.220)`."""
    unit = f" {figure.unit}" if figure.unit else ""
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}{unit}"
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f}){unit}"


def _show_layers(output: Output, scores: Sequence[LayerScore], dictionaries: list[Dictionary]) -> None:
    """Print a table per group of figures: side by side all of them would not fit a terminal."""
    by_layer: dict[int, dict[Dictionary, LayerScore]] = {}
    for score in scores:
        by_layer.setdefault(score.layer, {})[score.dictionary] = score
    controls = [one for one in dictionaries if one is not Dictionary.GIVEN]
    for number, figures in enumerate(_BY_LAYER):
        if number:
            output.line()
        titles = [each for title, _ in figures for each in (title, *(_TITLES[one] for one in controls))]
        sizes = () if number else ("L0", "DEAD")
        rows = [
            (str(layer), *_sizes(by_layer[layer])[: len(sizes)], *_beside(by_layer[layer], figures, controls))
            for layer in sorted(by_layer)
        ]
        output.table(("LAYER", *sizes, *titles), rows)


def _sizes(found: dict[Dictionary, LayerScore]) -> tuple[str, str]:
    given = found.get(Dictionary.GIVEN)
    return ("", "") if given is None else (f"{given.l0.value:.1f}", f"{given.dead_share:.1%}")


def _beside(
    found: dict[Dictionary, LayerScore],
    figures: Sequence[tuple[str, str]],
    controls: Sequence[Dictionary],
) -> list[str]:
    """The set's figure and its controls', figure by figure; empty where one was not measured."""
    measured: list[Figure | None] = [
        getattr(found[one], name) if one in found else None
        for _, name in figures
        for one in (Dictionary.GIVEN, *controls)
    ]
    return ["" if figure is None else f"{figure.value:.3f}" for figure in measured]


def _show_spliced(output: Output, scores: Sequence[SplicedScore], dictionaries: list[Dictionary]) -> None:
    if not scores:
        return
    by_dictionary = {score.dictionary: score for score in scores}
    chosen = [one for one in dictionaries if one in by_dictionary]
    output.line()
    output.table(
        ("ALL LAYERS SPLICED", *(_TITLES[one] for one in chosen)),
        [(title, *(shown(getattr(by_dictionary[one], name)) for one in chosen)) for title, name in _SPLICED],
    )


def _show_depths(output: Output, depths: Sequence[DepthFaithfulness], dictionaries: list[Dictionary]) -> None:
    if not depths:
        return
    found = {(one.depth, one.dictionary): one for one in depths}
    chosen = [one for one in dictionaries if any(row.dictionary is one for row in depths)]
    titles = ["" if one is Dictionary.GIVEN else f", {_TITLES[one]}" for one in chosen]
    columns = [f"{name}{title}" for name in ("COSINE", "SQUARED ERROR") for title in titles]
    rows = []
    for depth in dict.fromkeys(one.depth for one in depths):
        cells = [found.get((depth, one)) for one in chosen]
        figures = [
            shown(getattr(cell, name)) if cell else "" for name in ("cosine", "nmse") for cell in cells
        ]
        rows.append((str(depth), *figures, str(max(cell.pairs for cell in cells if cell))))
    output.line()
    output.table(("DEPTH", *columns, "PAIRS"), rows)


def _facts(info: EvaluationInfo) -> list[tuple[str, str]]:
    found = info.replacement_set
    claims = [("claim", line) for line in claim_lines(info.claims)]
    facts = [
        *(claims or [("claim", "none: no controls were measured")]),
        ("set", f"{found.name}, content {found.content_hash}"),
        ("model", f"{found.version.model}, weights {found.version.weight_hash}"),
        ("text", f"{info.text}, {info.tokens} tokens in {info.contexts} contexts, seed {info.seed}"),
        ("evaluation", f"{info.name}, {info.seconds:.1f} s"),
        *(("caveat", caveat) for caveat in info.caveats),
    ]
    return [*facts, ("degraded", f"yes: {found.admission.why}")] if found.degraded else facts


def claim_lines(claims: Sequence[Claim]) -> list[str]:
    """Per control how much is beaten, every figure that is not, and the whole reconstruction's figures."""
    lines = []
    for control in dict.fromkeys(one.control for one in claims):
        against = [one for one in claims if one.control is control]
        beaten = sum(one.beats for one in against)
        name = f"the {_TITLES[control].lower()} control"
        lines.append(f"beats {name} on {beaten} of {len(against)} figures")
        for one in against:
            if not one.beats:
                lines.append(f"DOES NOT BEAT {name} on {one.figure}: {shown(one.difference)}")
            elif not one.figure.startswith("layer "):
                lines.append(f"beats {name} on {one.figure}: {shown(one.difference)}")
    return lines


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise LocalFileError(f"cannot read {path} as UTF-8 text: {failure}") from failure

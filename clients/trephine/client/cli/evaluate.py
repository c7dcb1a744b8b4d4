from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from trephine.client.cli.arguments import (
    DEFAULT_MODEL,
    DetachOption,
    ModelOption,
    path_option,
)
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.cli.predictions import require_files, write_prediction
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
from trephine.client.downloads import require_writable
from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.evaluation_files import files_of
from trephine.client.types import (
    Claim,
    DepthFaithfulness,
    Dictionary,
    EvaluationInfo,
    Figure,
    LayerScore,
    SplicedLayer,
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
    (("L0", "l0"), ("DEAD", "dead_share")),
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
    ("variance unexplained, mean of layers", "fvu"),
    ("active features, mean of layers", "l0"),
    ("dead features, mean of layers", "dead_share"),
)
_BY_SPLICED_LAYER = ((("FVU, ALL SPLICED", "fvu"),), (("L0, ALL SPLICED", "l0"), ("DEAD", "dead_share")))


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
    controls: Annotated[
        str | None,
        typer.Option(help="Some of random, frozen-decoder and frozen-encoder, with commas; unset: all."),
    ] = None,
    no_controls: Annotated[bool, typer.Option("--no-controls", help="Leave the controls out.")] = False,
    control_text: Annotated[
        Path | None,
        path_option(
            "--control-text",
            "File with text that controls are fitted on; unset: the rest of the text, and a probe.",
        ),
    ] = None,
    bootstrap: Annotated[int | None, typer.Option(help="Samples for the intervals; unset 1000.")] = None,
    perturbations: Annotated[
        int | None, typer.Option(help="Features perturbed for the figures by depth; unset 32, 0 skips.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Unset 0.")] = None,
    out: Annotated[Path | None, path_option("--out", "Folder for evaluation.html, .json and .csv.")] = None,
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
    require_files(out, predict=predict, detach=detach)
    if out is not None:
        require_writable(*(file for _, file in files_of(out)))
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
            "controls": _controls(controls, without=no_controls),
            "control_text": None if control_text is None else _read(control_text),
            "bootstrap": bootstrap,
            "perturbations": perturbations,
            "seed": seed,
        }
        if predict:
            would = found.predict_evaluate(words, **options)
            _show_prediction(given.output, would)
            write_prediction(given.output, out, would.to_json())
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


def shown(figure: Figure | float | None) -> str:
    """A figure with its interval, `0.214 (0.209 to 0.220)`; shares have none, what is absent is empty."""
    if not isinstance(figure, Figure):
        return _short(figure)
    unit = f" {figure.unit}" if figure.unit else ""
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}{unit}"
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f}){unit}"


def _show_layers(output: Output, scores: Sequence[LayerScore], dictionaries: list[Dictionary]) -> None:
    found = {(score.layer, score.dictionary): score for score in scores}
    for number, figures in enumerate(_BY_LAYER):
        if number:
            output.line()
        _show_group(output, found, figures, dictionaries)


def _show_group(
    output: Output,
    found: Mapping[tuple[int, Dictionary], LayerScore | SplicedLayer],
    figures: Sequence[tuple[str, str]],
    dictionaries: list[Dictionary],
) -> None:
    """Print figures by layer, the set's with its controls' beside it; empty where one was not measured."""
    controls = [one for one in dictionaries if one is not Dictionary.GIVEN]
    titles = [each for title, _ in figures for each in (title, *(_TITLES[one] for one in controls))]
    columns = [(name, one) for _, name in figures for one in (Dictionary.GIVEN, *controls)]
    rows = [
        (str(layer), *(_short(getattr(found.get((layer, one)), name, None)) for name, one in columns))
        for layer in sorted({layer for layer, _ in found})
    ]
    output.table(("LAYER", *titles), rows)


def _short(figure: Figure | float | None) -> str:
    """A figure without its interval; shares of features in percent."""
    if figure is None:
        return ""
    return f"{figure.value:.3f}" if isinstance(figure, Figure) else f"{figure:.1%}"


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
    found = {(layer.layer, score.dictionary): layer for score in scores for layer in score.layers}
    for figures in _BY_SPLICED_LAYER if found else ():
        output.line()
        _show_group(output, found, figures, dictionaries)


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


def _controls(listed: str | None, *, without: bool) -> tuple[str, ...] | None:
    """Controls by name; empty: none, None: all. Names are checked where the request is made.

    Raises:
        InvalidRequestError: If controls are named and left out.
    """
    if listed is None:
        return () if without else None
    if without:
        raise InvalidRequestError("name controls, or leave them out, not both", field="controls")
    return tuple(name.strip() for name in listed.split(","))


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise LocalFileError(f"cannot read {path} as UTF-8 text: {failure}") from failure

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from trephine.client.cli.arguments import (
    DEFAULT_MODEL,
    DetachOption,
    ModelOption,
    path_argument,
    path_option,
)
from trephine.client.cli.decisions import decision_of
from trephine.client.cli.evaluate import shown
from trephine.client.cli.exit_codes import ExitCode
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import Invocation, invocation
from trephine.client.cli.output import Output
from trephine.client.cli.predictions import require_files, write_prediction
from trephine.client.cli.sets import open_set, read_layers
from trephine.client.cli.text_files import TextFiles
from trephine.client.downloads import require_writable, write_file
from trephine.client.errors import InvalidRequestError
from trephine.client.labelled_files import TextColumns, read_swaps
from trephine.client.spurious_requests import check_counts, read_overrides
from trephine.client.trephine import Trephine
from trephine.client.types import (
    EffectEstimator,
    JudgedFeature,
    RemovalArm,
    SpuriousRemoval,
    Verdict,
)

REMOVE_SPURIOUS_EXAMPLES = examples(
    "trephine remove-spurious biographies.jsonl --label-column profession --attribute-texts others.jsonl \\",
    "    --attribute-column gender --test balanced.jsonl --edit no-gender --page out/decisions.html",
    "trephine remove-spurious reviews.csv --attribute-name gender --layer 12 --pooling mean",
    "trephine remove-spurious reviews.csv --token 'good= great' --token 'bad= awful' \\",
    "    --template '{text} It was' --swaps swaps.csv",
    "trephine remove-spurious answers.jsonl --reward judge --positive-label helpful --twin-column longer",
    "trephine remove-spurious preferences.jsonl --layer 2 --pooling mean --attribute-texts tones.jsonl \\",
    "    --attribute-column tone --test balanced.jsonl",
)
_STATUS = {Verdict.PASS: ExitCode.PASS, Verdict.FAIL: ExitCode.FINDINGS}
_ESTIMATORS = tuple(one.value for one in EffectEstimator if one.value not in ("unspecified", "exact"))


def remove_spurious(
    context: typer.Context,
    texts: Annotated[
        Path,
        path_argument(
            "TEXTS", "Ambiguous texts, or pairs: .jsonl, .csv, a folder of them, a saved data set."
        ),
    ],
    text_column: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column with the label; two labels.")] = "label",
    attribute_column: Annotated[
        str | None, typer.Option(help="Column with the spurious attribute; empty: unknown.")
    ] = None,
    twin_column: Annotated[
        str | None, typer.Option(help="Column with the same text and label, the attribute edited; or empty.")
    ] = None,
    environment_column: Annotated[
        str | None, typer.Option(help="Column with where a text is from, or with what several repeat.")
    ] = None,
    pair_column: Annotated[
        str | None,
        typer.Option(help="Column with the pair that a text stands in: one text of either label."),
    ] = None,
    pairs: Annotated[
        bool | None,
        typer.Option(
            "--pairs/--no-pairs",
            help="Train a probe on differences within pairs; unset: if there are pairs (columns chosen and "
            "rejected make some).",
        ),
    ] = None,
    validation: Annotated[Path | None, path_option("--validation", "Texts that choose how many go.")] = None,
    test: Annotated[Path | None, path_option("--test", "Texts for the report alone; best balanced.")] = None,
    attribute_texts: Annotated[
        Path | None, path_option("--attribute-texts", "Examples of the attribute, of whatever label.")
    ] = None,
    attribute_name: Annotated[str, typer.Option(help="gender: edits by a built-in lexicon.")] = "",
    swaps: Annotated[
        Path | None, path_option("--swaps", "Lexicon: .csv or .jsonl with first and second.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="A probe of this layer's stream; unset: the stock form.")
    ] = None,
    pooling: Annotated[
        str | None, typer.Option(help="How a probe reads a text: last or mean; unset: last.")
    ] = None,
    token: Annotated[
        list[str] | None, typer.Option(help="LABEL=TOKEN: the model itself decides. Once per label.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Prompt of label tokens, with {text}; unset: the text alone.")
    ] = None,
    classifier: Annotated[str | None, typer.Option(help="A stock classifier of this model.")] = None,
    reward: Annotated[str | None, typer.Option(help="The same with one output, a reward.")] = None,
    positive_label: Annotated[
        str | None, typer.Option(help="Label that a high reward stands for; needed with --reward.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    replacements: Annotated[
        str | None, typer.Option("--replacements", "-r", metavar="SET", help="Set or folder; unset: neurons.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Layers whose features may go, as in 0,5,10-12.")] = None,
    estimator: Annotated[
        str | None, typer.Option(help=f"{', '.join(_ESTIMATORS)}; unset: the first.")
    ] = None,
    candidates: Annotated[int | None, typer.Option(help="Features to judge; unset 2048.")] = None,
    counts: Annotated[str | None, typer.Option(help="Numbers to remove, as in 10,100,500.")] = None,
    fit_texts: Annotated[
        int | None,
        typer.Option(
            help="Texts that compared heads are trained on; the final one adds held-out ones; unset 1024."
        ),
    ] = None,
    effect_texts: Annotated[
        int | None, typer.Option(help="Texts that effects are measured on; unset 256.")
    ] = None,
    random_sets: Annotated[int | None, typer.Option(help="Matched random feature sets; unset 3.")] = None,
    refit: Annotated[
        bool | None,
        typer.Option(
            "--refit/--no-refit",
            help="Train the head again after the removal; unset: if it is a probe or a classifier.",
        ),
    ] = None,
    erase: Annotated[bool, typer.Option(help="Train it with no weight along the attribute.")] = True,
    neutral_examples: Annotated[
        bool, typer.Option("--neutral-examples", help="The attribute's texts hold neither label.")
    ] = False,
    overrides: Annotated[
        Path | None, path_option("--overrides", "Your own words, .json: feature to remove and reason.")
    ] = None,
    edit: Annotated[
        str | None, typer.Option(help="Store an edit under this name, if the removal is shown to hold.")
    ] = None,
    unproven: Annotated[bool, typer.Option("--unproven", help="Store it even where it is not.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of every draw; unset 0.")] = None,
    top: Annotated[int, typer.Option(min=0, help="Features to print.")] = 15,
    page: Annotated[
        Path | None, path_option("--page", "Write the decision list into this .html file.")
    ] = None,
    out: Annotated[Path | None, path_option("--out", "Write everything into this .json file.")] = None,
    predict: Annotated[bool, typer.Option("--predict", help="Check, and say what it would take.")] = False,
    detach: DetachOption = False,
) -> None:
    """Find what a decision rests on, judge which of it is spurious, remove that, and measure what came of it.

    Nobody judges by hand: features are told apart by examples of the attribute, by edits of it, by groups,
    environments or clusters. What cannot be told apart is undecided and stays. Texts in which label and
    attribute come apart tell whether it held. Status 3: it did not; 4: it cannot be told, or nothing went.
    """
    given = invocation(context)
    targets = [target for target in (page, out) if target is not None]
    require_files(*targets, predict=predict, detach=detach)
    for target in targets:
        require_writable(target)
    columns = TextColumns(
        text=text_column,
        label=label_column,
        attribute=attribute_column,
        twin=twin_column,
        environment=environment_column,
        pair=pair_column,
    )
    balanced = TextColumns(text=text_column, label=label_column, attribute=attribute_column, pair=pair_column)
    named = () if attribute_texts is None else ("attribute",)  # a misspelt column is found in that file
    elsewhere = any((attribute_texts, twin_column, environment_column, attribute_name, swaps))
    told = ("attribute",) if elsewhere else ()  # so that the ambiguous set need not
    files = TextFiles(given.output)
    training = files.split("training", texts, columns, told)
    options: dict[str, Any] = {
        "validation": files.split("validation", validation, columns, (*told, "twin", "environment", "pair")),
        "test": files.split("test", test, balanced, (*named, "pair")),
        "attribute_texts": files.examples(attribute_texts, text_column, attribute_column),
        "attribute_name": attribute_name,
        "swaps": () if swaps is None else read_swaps(swaps),
        "decision": decision_of(
            layer=layer,
            pooling=pooling,
            tokens=token or (),
            template=template,
            classifier=classifier,
            reward=reward,
            positive_label=positive_label,
            pairs=pairs,
            paired=any(one.pair is not None for one in training),
        ),
        "layers": read_layers(layers),
        "estimator": _estimator(estimator),
        "candidates": candidates,
        "counts": _counts(counts),
        "fit_texts": fit_texts,
        "effect_texts": effect_texts,
        "random_sets": random_sets,
        "refit": refit,
        "erase": erase,
        "neutral_examples": neutral_examples,
        "overrides": () if overrides is None else read_overrides(overrides),
        "edit_id": edit,
        "unproven": unproven,
        "seed": seed,
    }
    with files.told(), given.connect() as trephine:
        loaded = given.load(trephine, model)
        if replacements is not None and replacements != "neurons":
            options["replacement"] = open_set(given, trephine, loaded, replacements).set_id
        if predict:
            would = loaded.predict_remove_spurious(training, **options)
            _show_prediction(given.output, would)
            write_prediction(given.output, out, would.to_json())
            return
        started = loaded.start_remove_spurious(training, **options)
        found = given.complete(trephine, started, "remove spurious features", detach=detach)
        show_removal(given.output, found, top)  # first: files may fail, and this is what was waited for
        if out is not None:
            given.output.note(f"wrote {write_file(out, found.to_json().encode())}")
        if page is not None:
            _write_page(given, trephine, found, page)
    raise typer.Exit(_STATUS.get(found.outcome.verdict, ExitCode.INCONCLUSIVE))


def _write_page(given: Invocation, trephine: Trephine, found: SpuriousRemoval, page: Path) -> None:
    artifact = trephine.spurious_removals.page(found)
    given.output.note(f"wrote {write_file(page, trephine.artifacts.read(artifact))}")


def _estimator(value: str | None) -> str | None:
    if value is None:
        return None
    name = value.replace("-", "_")
    if name not in _ESTIMATORS:
        raise InvalidRequestError(
            f"--estimator must be one of {', '.join(_ESTIMATORS)}, got {value!r}", field="estimator"
        )
    return name


def _counts(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InvalidRequestError(f"{text!r} are no counts; write them as in 10,100,500", field="counts")
    counts = tuple(map(int, parts))
    check_counts(counts)
    return counts


def _show_prediction(output: Output, found: SpuriousRemoval) -> None:
    if output.json:
        output.document(found.to_json())
        return
    training, validation, test = found.texts
    output.facts(
        [
            ("texts", f"{training} ambiguous, {validation} for validation, {test} to test on"),
            ("decides", " or ".join(found.labels)),
            ("would take", f"{found.seconds:,.0f} s"),
            ("memory", f"{found.peak_extra_bytes / 1e6:,.0f} MB"),
        ]
    )


_UNMADE = re.compile(r"the edit \S+ was not made: ")
"""How the caveat of an edit that was lost begins."""
_WITHOUT_FEATURES = (RemovalArm.LEACE, RemovalArm.INLP, RemovalArm.TOKEN_DELETION)
"""Stand in a table of their own: one of all arms is wider than a terminal."""


def show_removal(output: Output, found: SpuriousRemoval, top: int) -> None:
    """Print what came of it, the strongest decisions, and what a reader must know."""
    if output.json:
        output.document(found.to_json())
        return
    output.facts(
        [*_outcome(found), ("why", found.why), ("pairing", found.pairing), ("judged by", _judges(found))]
    )
    output.line()
    apart = [arm for arm in found.arms if arm.arm in _WITHOUT_FEATURES]
    for arms in filter(None, ([arm for arm in found.arms if arm not in apart], apart)):
        names = list(dict.fromkeys(figure.name for arm in arms for figure in arm.figures))
        rows = []
        for name in names:
            figures = [arm.figure(name) for arm in arms]
            rows.append((name, *("" if one is None else shown(one) for one in figures)))
        output.table(("", *(_titled(found, arm.arm) for arm in arms)), rows)
        output.line()
    header = ("FEATURE", "DECISION", "SHARE", "EFFECT", "ALONE", "FIRES ON")
    output.table(header, [_row(one) for one in found.features[:top]])
    output.line()
    output.facts(_facts(found))


def _outcome(found: SpuriousRemoval) -> list[tuple[str, str]]:
    """Whether it held, first of all; what would settle a doubt."""
    outcome = found.outcome
    said = [("outcome", f"{outcome.verdict.value.upper()}: {outcome.why}")]
    return said + ([("settled by", outcome.settles)] if outcome.settles else [])


def _titled(found: SpuriousRemoval, arm: RemovalArm) -> str:
    return f"{arm.value.upper()} (SHIPS)" if arm is found.ships and found.chosen else arm.value.upper()


def _edit(found: SpuriousRemoval) -> str:
    if found.edit:
        return found.edit
    if any(_UNMADE.match(caveat) for caveat in found.caveats):
        return "none could be made, as a caveat says"
    if found.held or not found.chosen:
        return "none was made; --edit NAME makes one"
    return "none is made of what was not shown to hold; --edit NAME --unproven makes one all the same"


def _judges(found: SpuriousRemoval) -> str:
    return ", ".join(one.value.replace("_", " ") for one in found.judges) or "nobody: too few texts"


def _row(one: JudgedFeature) -> tuple[str, ...]:
    tokens = " ".join(dict.fromkeys(firing.token.strip() for firing in one.firings))
    return (
        str(one.feature),
        one.standing.value + (", removed" if one.removed else "") + (", by you" if one.override else ""),
        f"{one.score:.2f}",
        f"{one.effect:+.3f}",
        "" if one.exact is None else f"{one.exact:+.3f}",
        tokens,
    )


def _facts(found: SpuriousRemoval) -> list[tuple[str, str]]:
    scores = [f"SCR {found.scr:.3f}" if found.scr is not None else ""]
    scores.append(f"TPP {found.tpp:.3f}" if found.tpp is not None else "")
    return [
        ("removed", f"{found.chosen} of {found.considered} features of {found.replacement}"),
        ("chosen by", found.criterion),
        *([("SAEBench", ", ".join(filter(None, scores)))] if any(scores) else []),
        ("edit", _edit(found)),
        ("model", f"{found.version.model}, weights {found.version.weight_hash}"),
        ("stored as", f"{found.name}, {found.seconds:.1f} s, seed {found.seed}"),
        *(("caveat", caveat) for caveat in found.caveats),
    ]

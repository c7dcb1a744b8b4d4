from __future__ import annotations

from itertools import zip_longest
from math import isfinite, isnan
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
from trephine.client.cli.discover import layers_words
from trephine.client.cli.evaluate import shown
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.cli.predictions import require_files, write_prediction
from trephine.client.cli.sets import opened_name, read_layers
from trephine.client.datasets import Columns, Split, read_examples, split_examples
from trephine.client.downloads import require_writable, write_file
from trephine.client.errors import InvalidRequestError
from trephine.client.terminal import printable
from trephine.client.types import (
    ContextCircuit,
    ContextClustering,
    DatasetCircuit,
    DatasetNode,
    EffectEstimator,
    ErrorTerm,
    FaithfulnessPoint,
    HeldOutFaithfulness,
    NodeAblation,
    PositionRule,
)

DISCOVER_DATASET_EXAMPLES = examples(
    "trephine discover-dataset agreement.jsonl --begin '<|im_start|>' --out out/agreement.json",
    "trephine discover-dataset pairs.csv --clean text --corrupted other --answer right --wrong not \\",
    "    --positions kept -r smollm2-135m-tc",
    "trephine discover-dataset agreement.jsonl --beside heads --layers 10-29 --ablation resample",
    "trephine discover-dataset texts.jsonl --corrupted '' --wrong '' --clusters auto",
)
INCONCLUSIVE = "inconclusive, since ablating everything hardly moves the metric"
NO_NUMBER = "inconclusive, since an ablated run gave no number"
NO_CONTROL = "each is the circuit itself, there being no other nodes to draw: no control, and no p"
_OWN = ("neurons", "heads", "errors")
_MOST_CLUSTERS = 32
_CHOICES = {
    "estimator": tuple(one.value for one in EffectEstimator if one is not EffectEstimator.UNSPECIFIED),
    "positions": tuple(one.value for one in PositionRule if one is not PositionRule.UNSPECIFIED),
    "ablation": tuple(one.value for one in NodeAblation if one is not NodeAblation.UNSPECIFIED),
    "patch": tuple(one.value for one in NodeAblation if one is not NodeAblation.UNSPECIFIED),
    "error-term": tuple(one.value for one in ErrorTerm if one is not ErrorTerm.UNSPECIFIED),
}


def discover_dataset(
    context: typer.Context,
    file: Annotated[Path, path_argument("FILE", "Contexts as .jsonl or .csv, one a row.")],
    held_out_file: Annotated[
        Path | None, path_option("--held-out-file", "Contexts to measure on; unset: a share of FILE.")
    ] = None,
    held_out: Annotated[float, typer.Option(help="Share of FILE that is kept back.")] = 0.5,
    limit: Annotated[int, typer.Option(min=2, help="Use at most so many different contexts of FILE.")] = 400,
    clean: Annotated[str, typer.Option(help="Column with the context.")] = "clean_prefix",
    corrupted: Annotated[
        str, typer.Option(help="Column with its twin of the other answer; '' for none.")
    ] = "patch_prefix",
    answer: Annotated[
        str, typer.Option(help="Column with the right next token, several divided by |.")
    ] = "clean_answer",
    wrong: Annotated[
        str, typer.Option(help="Column with the wrong next token; '' for the mean of all.")
    ] = "patch_answer",
    begin: Annotated[str, typer.Option(help="Put in front of every context.")] = "",
    model: ModelOption = DEFAULT_MODEL,
    replacements: Annotated[
        str | None,
        typer.Option("--replacements", "-r", metavar="SET", help="Set, folder or heads; unset: neurons."),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(help="Nodes too: heads, errors (error terms of sets), a set or folder. Repeatable."),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="As in 0,5,10-12; unset: all of the sets.")] = None,
    estimator: Annotated[
        str | None, typer.Option(help=f"{', '.join(_CHOICES['estimator'])}; unset: the first.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of integrated gradients; unset 5.")] = None,
    exact_nodes: Annotated[
        int | None, typer.Option(help="Candidates that exact patching measures; unset 256.")
    ] = None,
    patch: Annotated[
        str | None, typer.Option(help="mean, zero or resample; unset: the twins, else zero.")
    ] = None,
    positions: Annotated[str | None, typer.Option(help="kept or summed; unset: summed.")] = None,
    ablation: Annotated[
        list[str] | None, typer.Option(help="mean, zero, resample. Repeatable; unset: mean and zero.")
    ] = None,
    error_term: Annotated[str | None, typer.Option(help="live, frozen or drop; unset: live.")] = None,
    nodes: Annotated[int | None, typer.Option(help="Budget of nodes; unset 100.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Smallest mean effect, logits.")] = None,
    edge_nodes: Annotated[
        int | None, typer.Option(help="Edges between so many of the strongest; unset 64.")
    ] = None,
    edge_examples: Annotated[
        int | None, typer.Option(help="Contexts that edges are averaged over; unset 32.")
    ] = None,
    random_circuits: Annotated[int | None, typer.Option(help="Controls of equal size; unset 20.")] = None,
    no_curve: Annotated[bool, typer.Option("--no-curve", help="Leave the budgets 1, 2, 4, ... out.")] = False,
    draws: Annotated[int | None, typer.Option(help="Random parts for stability; unset 20.")] = None,
    share: Annotated[
        float | None, typer.Option(help="Share of the contexts in each part; unset 0.5.")
    ] = None,
    keep: Annotated[float | None, typer.Option(help="Share of them for a stable node; unset 0.9.")] = None,
    clusters: Annotated[str, typer.Option(help="auto, or 1 to 32 groups of contexts.")] = "1",
    seed: Annotated[int | None, typer.Option(help="Of the split and every draw; unset 0.")] = None,
    top: Annotated[int, typer.Option(min=0, help="Nodes to print.")] = 15,
    out: Annotated[Path | None, path_option("--out", "Write everything into this .json file.")] = None,
    predict: Annotated[
        bool, typer.Option("--predict", help="Check, and say what it would take; find nothing.")
    ] = False,
    detach: DetachOption = False,
) -> None:
    """Find the circuit of a behaviour over many contexts, and measure it on contexts that were held back.

    Random circuits of the same size stand beside every figure. Nodes that random parts of the data do not
    agree on are listed as abstained.
    """
    given = invocation(context)
    require_files(out, predict=predict, detach=detach)
    if out is not None:
        require_writable(out)
    columns = Columns(clean=clean, corrupted=corrupted or None, answer=answer, wrong=wrong or None)
    split = _split(file, held_out_file, columns, begin=begin, share=held_out, limit=limit, seed=seed or 0)
    options: dict[str, Any] = {
        "layers": read_layers(layers),
        "estimator": _chosen(estimator, "estimator"),
        "steps": steps,
        "exact_nodes": exact_nodes,
        "patch": _chosen(patch, "patch"),
        "positions": _chosen(positions, "positions"),
        "ablations": tuple(_required(one, "ablation") for one in ablation or ()),
        "error_term": _chosen(error_term, "error-term"),
        "nodes": nodes,
        "threshold": threshold,
        "edge_nodes": edge_nodes,
        "edge_examples": edge_examples,
        "random_circuits": random_circuits,
        "curve": not no_curve,
        "stability_draws": draws,
        "stability_share": share,
        "stability_keep": keep,
        "clusters": _clusters(clusters),
        "seed": seed,
    }
    if split.duplicates:
        given.output.note(f"{split.duplicates} duplicate rows were left out")
    if split.bound:
        given.output.note(
            f"{split.bound} contexts were left out: they share texts with others, on the side that was full"
        )
    with given.connect() as trephine:
        loaded = given.load(trephine, model)
        names = [
            opened_name(given, trephine, loaded, name, own=_OWN)
            for name in (replacements or "neurons", *(beside or ()))
        ]
        options["replacement"], options["beside"] = names[0], names[1:]
        if predict:
            would = loaded.predict_discover_dataset(split.training, split.held_out, **options)
            _show_prediction(given.output, would)
            write_prediction(given.output, out, would.to_json())
            return
        started = loaded.start_discover_dataset(split.training, split.held_out, **options)
        found = given.complete(trephine, started, "discover over a dataset", detach=detach)
    show_dataset_circuit(given.output, found, top)
    if out is not None:
        given.output.note(f"wrote {write_file(out, found.to_json().encode())}")


def _split(
    file: Path,
    held_out_file: Path | None,
    columns: Columns,
    *,
    begin: str,
    share: float,
    limit: int,
    seed: int,
) -> Split:
    found = read_examples(file, columns, prefix=begin)
    if held_out_file is None:
        return split_examples(found, held_out=share, seed=seed, limit=limit)
    other = read_examples(held_out_file, columns, prefix=begin)
    unique, others = list(dict.fromkeys(found)), list(dict.fromkeys(other))
    return Split(
        training=tuple(unique[:limit]),
        held_out=tuple(others),
        duplicates=len(found) - len(unique) + len(other) - len(others),
    )


def _chosen(value: str | None, option: str) -> str | None:
    return None if value is None else _required(value, option)


def _required(value: str, option: str) -> str:
    name = value.replace("-", "_")
    if name not in _CHOICES[option]:
        raise InvalidRequestError(
            f"--{option} must be one of {', '.join(_CHOICES[option])}, got {value!r}", field=option
        )
    return name


def _clusters(text: str) -> int:
    if text == "auto":
        return 0
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_CLUSTERS:
        raise InvalidRequestError(
            f"--clusters must be auto, or 1 to {_MOST_CLUSTERS}, got {text!r}", field="clusters"
        )
    return int(text)


def _show_prediction(output: Output, found: DatasetCircuit) -> None:
    if output.json:
        output.document(found.to_json())
        return
    output.facts(
        [
            ("contexts", f"{found.training} to find it on, {found.held_out} held out"),
            ("nodes", f"{found.candidates:,} of {_named(found)}"),
            ("found by", _found_by(found)),
            ("would take", f"{found.seconds:,.0f} s"),
            ("memory", f"{found.peak_extra_bytes / 1e6:,.0f} MB"),
        ]
    )


def show_dataset_circuit(output: Output, found: DatasetCircuit, top: int) -> None:
    """Print every circuit: nodes, figures on held-out contexts, the curve, what was abstained on."""
    if output.json:
        output.document(found.to_json())
        return
    for circuit in found.circuits:
        _show_circuit(output, circuit, top)
        output.line()
    output.facts(_facts(found))


def _show_circuit(output: Output, circuit: ContextCircuit, top: int) -> None:
    output.facts(
        [
            (circuit.label, f"{circuit.training} contexts, {circuit.held_out} held out"),
            *(
                ("such as", repr(text) + (f": {printable(choice)}" if choice else ""))
                for text, choice in zip_longest(circuit.contexts, circuit.choices, fillvalue="")
            ),
            (
                "nodes",
                f"{len(circuit.nodes)}, {_stable(circuit)}; they have "
                f"{circuit.effect_share:.0%} of the summed absolute effects of all",
            ),
            ("abstained", _abstained(circuit)),
            ("edges", str(len(circuit.edges))),
        ]
    )
    output.table(("NODE", "POSITION", "EFFECT", "SELECTED", "EDITS"), [_row(n) for n in circuit.nodes[:top]])
    for measured in circuit.faithfulness:
        output.line()
        _show_faithfulness(output, measured)


def _was_drawn(circuit: ContextCircuit) -> bool:
    """True if subsamples were drawn and say anything, which is what stability is."""
    return not circuit.nodes or circuit.nodes[0].frequency is not None


def _stable(circuit: ContextCircuit) -> str:
    told = f"of which {sum(node.stable for node in circuit.nodes)} stable"
    return told if _was_drawn(circuit) else "no draws say which are stable"


def _abstained(circuit: ContextCircuit) -> str:
    """How many there are, which is not how many are listed."""
    if not _was_drawn(circuit):
        return "not looked for: no draws say anything"
    listed, there_are = len(circuit.abstained), circuit.n_abstained
    if there_are is None:
        return f"at least {listed:,} nodes that the data do not agree on; more were not counted"
    told = f"{there_are:,} nodes that the data do not agree on"
    return told if there_are == listed else f"{told}; the likeliest {listed} are listed"


def _row(node: DatasetNode) -> tuple[str, ...]:
    return (
        str(node.feature),
        "all" if node.position < 0 else str(node.position),
        f"{node.effect:+.3f}",
        "" if node.frequency is None else f"{node.frequency:.0%}" + ("" if node.stable else " (abstain)"),
        "" if node.certified_edits is None else str(node.certified_edits),
    )


def _show_faithfulness(output: Output, measured: HeldOutFaithfulness) -> None:
    rows = [("circuit", measured.circuit)]
    rows += [] if measured.core is None else [("stable core", measured.core)]
    rows += [("strongest", point) for point in measured.curve]
    output.facts(
        [
            (
                f"{measured.ablation.value} ablation",
                f"{measured.examples} held-out contexts; the model {shown(measured.whole)}, "
                f"all nodes ablated {shown(measured.empty)}",
            ),
            ("random circuits", _random(measured)),
            ("for 80 %", _goal(measured)),
        ]
    )
    output.table(("", "NODES", "FAITHFULNESS", "COMPLETENESS"), [_point(name, point) for name, point in rows])


def _goal(measured: HeldOutFaithfulness) -> str:
    if measured.nodes_for_80 is not None:
        return f"{measured.nodes_for_80} nodes"
    if isnan(measured.circuit.faithfulness.value):
        return _inconclusive(measured)
    return "not reached" if measured.curve else "not measured: there is no curve"


def _inconclusive(measured: HeldOutFaithfulness) -> str:
    """Say why there is no share: there is nothing to share out, or something overflowed."""
    numbers = (measured.whole.value, measured.empty.value, measured.circuit.metric)
    none = isnan(measured.circuit.faithfulness.value) and all(map(isfinite, numbers))
    return INCONCLUSIVE if none else NO_NUMBER


def _point(name: str, point: FaithfulnessPoint) -> tuple[str, ...]:
    shares = (point.faithfulness, point.completeness)
    return name, str(point.nodes), *("none" if isnan(share.value) else shown(share) for share in shares)


def _random(measured: HeldOutFaithfulness) -> str:
    if not measured.random:
        return "none were drawn"
    if measured.p_value is None:
        numbers = all(map(isfinite, (measured.circuit.faithfulness.value, *measured.random)))
        why = NO_CONTROL if numbers else _inconclusive(measured)
        return f"{len(measured.random)} of the same size and layers: {why}"
    mean = sum(measured.random) / len(measured.random)
    return (
        f"{len(measured.random)} of the same size and layers: faithfulness {mean:.3f} on average, at most "
        f"{max(measured.random):.3f}; p = {measured.p_value:.3f}"
    )


def _found_by(found: DatasetCircuit) -> str:
    return f"{found.estimator.value}, patched with {found.patch.value}, positions {found.positions.value}"


def _named(found: DatasetCircuit) -> str:
    """What nodes are of, sets with the beginning of their contents' hashes, and the layers."""
    hashes = {each.name: each.content_hash for each in found.sets}
    names = [f"{name} {hashes.get(name, '')[:12]}".rstrip() for name in (found.replacement, *found.beside)]
    return ", ".join(names) + (f"; layers {layers_words(found.layers)}" if found.layers else "")


def _facts(found: DatasetCircuit) -> list[tuple[str, str]]:
    facts = [
        ("found by", _found_by(found)),
        ("among", f"{found.candidates} nodes of {_named(found)}"),
        ("error terms", found.error_term.value),
        ("stability", found.certificate),
        ("model", f"{found.version.model}, weights {found.version.weight_hash}"),
        ("stored as", f"{found.name}, {found.seconds:.1f} s, seed {found.seed}"),
        *(("caveat", caveat) for caveat in found.caveats),
    ]
    if found.clustering is not None:
        facts.insert(0, ("clusters", _clusters_found(found.clustering)))
    return facts


def _clusters_found(one: ContextClustering) -> str:
    """How many there are, and how far apart beside clouds without groups."""
    if one.clusters < 2:
        return f"one, of all {sum(one.sizes)} contexts: no groups were told apart"
    sizes = ", ".join(map(str, one.sizes))
    return (
        f"{one.clusters} of {sizes}: silhouette {one.silhouette:.3f}, without groups at most "
        f"{one.null_silhouette:.3f}"
    )

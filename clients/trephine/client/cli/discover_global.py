from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trephine.client.circuit import Circuit
from trephine.client.circuit_files import files_of
from trephine.client.cli.arguments import (
    DEFAULT_MODEL,
    DetachOption,
    ModelOption,
    path_argument,
    path_option,
    read_feature,
)
from trephine.client.cli.circuit_verification import STANDINGS
from trephine.client.cli.discover import known, sets_words
from trephine.client.cli.evaluate import shown
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.cli.predictions import require_files, write_prediction
from trephine.client.cli.sets import opened_name, read_layers
from trephine.client.cli.targets import read_direction
from trephine.client.downloads import require_writable
from trephine.client.errors import InvalidRequestError
from trephine.client.terminal import printable
from trephine.client.texts import TextSplit, read_texts, split_texts
from trephine.client.types import (
    CircuitInfo,
    Edge,
    EdgeWeighting,
    FeatureRef,
    Figure,
    GlobalBaseline,
    GlobalFigures,
    HeldOutTransfer,
    MeasuredTokens,
    Node,
)

DISCOVER_GLOBAL_EXAMPLES = examples(
    "trephine discover-global texts.txt --begin '<|im_start|>' -r smollm2-135m-tc --out out/global",
    "trephine discover-global pages.jsonl --column body -r smollm2-135m-tc --start-feature 20:311",
    "trephine discover-global texts.txt --start-token ' Paris' --nodes 64 --layers 10-29",
    "trephine discover-global texts.txt --held-out-file others.txt -r smollm2-135m-tc --predict",
)
_WEIGHTINGS = tuple(one.value for one in EdgeWeighting if one is not EdgeWeighting.UNSPECIFIED)
_BASELINES = {
    GlobalBaseline.VIRTUAL: "virtual weight alone, absolute",
    GlobalBaseline.VIRTUAL_ACTIVATION: "virtual weight x activation",
    GlobalBaseline.PERMUTED: "permuted edges",
}
_MEASURED = {
    MeasuredTokens.SOURCE_ACTIVE: "where the source is active",
    MeasuredTokens.TARGET_ACTIVE: "where the target is active",
}


def discover_global(
    context: typer.Context,
    file: Annotated[Path, path_argument("FILE", "Texts as .txt (one a line), .jsonl or .csv.")],
    held_out_file: Annotated[
        Path | None, path_option("--held-out-file", "Texts to check on; unset: a share of FILE.")
    ] = None,
    held_out: Annotated[float, typer.Option(help="Share of FILE that is kept back.")] = 0.3,
    limit: Annotated[int, typer.Option(min=2, help="Use at most so many different texts of FILE.")] = 400,
    column: Annotated[str, typer.Option(help="Column with the text, of .jsonl and .csv.")] = "text",
    begin: Annotated[str, typer.Option(help="Put in front of every text.")] = "",
    model: ModelOption = DEFAULT_MODEL,
    replacements: Annotated[
        str | None,
        typer.Option("--replacements", "-r", metavar="SET", help="Set or folder; unset: neurons."),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="As in 0,5,10-12; unset: all of the set.")] = None,
    start_feature: Annotated[
        list[str] | None, typer.Option(metavar="LAYER:INDEX", help="Grow from this feature. Repeatable.")
    ] = None,
    start_token: Annotated[
        list[str] | None,
        typer.Option(help="Grow from the logit of this token (mind the leading space), or #ID. Repeatable."),
    ] = None,
    start_direction: Annotated[
        Path | None,
        path_option("--start-direction", "Grow from a direction of the stream.", metavar="FILE.npy"),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            "--site", metavar="[KIND:]LAYER", help="Where the direction is read: resid_post:12 (or 12)."
        ),
    ] = None,
    weighting: Annotated[
        str | None, typer.Option(help=f"{' or '.join(_WEIGHTINGS)}; unset: the first.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="At most this many features; unset 256.")] = None,
    edges_per_node: Annotated[int | None, typer.Option(help="Edges into one node; unset 8.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Nodes that are tokens; unset 32.")] = None,
    logits: Annotated[int | None, typer.Option(help="Nodes that are logits; unset 32.")] = None,
    candidates: Annotated[
        int | None, typer.Option(help="Features between which edges are measured; unset 2048.")
    ] = None,
    min_active: Annotated[
        int | None, typer.Option(help="Training tokens that a feature must be active on; unset 10.")
    ] = None,
    context_tokens: Annotated[
        int | None, typer.Option(help="Read at most so many tokens of every text; unset 128.")
    ] = None,
    verify_edges: Annotated[
        int | None, typer.Option(help="Edges checked by ablations on held-out texts; unset 64, 0 skips it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split and every draw; unset 0.")] = None,
    top: Annotated[int, typer.Option(min=0, help="Edges to print.")] = 20,
    out: Annotated[
        Path | None, path_option("--out", "A folder, or one .html, .json or .graphml file.")
    ] = None,
    predict: Annotated[
        bool, typer.Option("--predict", help="Check, and say what it would take; find nothing.")
    ] = False,
    detach: DetachOption = False,
) -> None:
    """Find edges between features that hold over many texts, and check them on texts that were held back.

    Edges come from the weights, weighted by how features are active together. What targets lose on other
    texts when their sources are ablated stands beside what the edges, and baselines, say.
    """
    given = invocation(context)
    require_files(out, predict=predict, detach=detach)
    if out is not None:
        require_writable(*(path for _, path in files_of(out)))
    split = _split(file, held_out_file, column, begin=begin, share=held_out, limit=limit, seed=seed or 0)
    if (site is None) != (start_direction is None):
        raise InvalidRequestError("--start-direction and --site go together", field="site")
    options: dict[str, Any] = {
        "layers": read_layers(layers),
        "start_features": [_address(text) for text in start_feature or ()],
        "start_tokens": start_token or (),
        "start_direction": read_direction(start_direction, site) if start_direction and site else None,
        "weighting": _weighting(weighting),
        "max_nodes": nodes,
        "max_edges_per_node": edges_per_node,
        "max_tokens": tokens,
        "max_logits": logits,
        "candidates": candidates,
        "min_active": min_active,
        "context_tokens": context_tokens,
        "verify_edges": verify_edges,
        "seed": seed,
    }
    if split.duplicates:
        given.output.note(f"{split.duplicates} duplicate texts were left out")
    with given.connect() as trephine:
        loaded = given.load(trephine, model)
        options["replacement"] = opened_name(given, trephine, loaded, replacements or "neurons")
        if predict:
            found = loaded.predict_discover_global(split.training, split.held_out, **options)
            _show_prediction(given.output, found)
            write_prediction(given.output, out, found.to_json())
            return
        started = loaded.start_discover_global(split.training, split.held_out, **options)
        circuit = given.complete(trephine, started, "discover over texts", detach=detach)
        show_global_circuit(given.output, circuit, top)
        if out is not None:
            for path in circuit.save(out):
                given.output.note(f"wrote {path}")


def _split(
    file: Path, held_out_file: Path | None, column: str, *, begin: str, share: float, limit: int, seed: int
) -> TextSplit:
    found = read_texts(file, column, prefix=begin)
    if held_out_file is None:
        return split_texts(found, held_out=share, seed=seed, limit=limit)
    other = read_texts(held_out_file, column, prefix=begin)
    unique = list(dict.fromkeys(found))[:limit]
    others = [text for text in dict.fromkeys(other) if text not in set(unique)]
    return TextSplit(
        training=tuple(unique),
        held_out=tuple(others),
        duplicates=len(found) - len(dict.fromkeys(found)) + len(other) - len(others),
    )


def _address(text: str) -> FeatureRef:
    target = read_feature(text).target
    if not isinstance(target, FeatureRef):
        raise InvalidRequestError(f"{text!r} is no feature; write LAYER:INDEX", field="start_features")
    return target


def _weighting(text: str | None) -> str | None:
    if text is not None and text not in _WEIGHTINGS:
        raise InvalidRequestError(
            f"--weighting must be one of {', '.join(_WEIGHTINGS)}, got {text!r}", field="weighting"
        )
    return text


def _show_prediction(output: Output, found: CircuitInfo) -> None:
    if output.json:
        output.document(found.to_json())
        return
    facts = (
        []
        if found.across is None
        else [("texts", _texts(found.across)), ("among", _among(found, found.across))]
    )
    output.facts(
        [
            *facts,
            ("would take", f"{found.seconds:,.0f} s of one core"),
            ("memory", f"{found.peak_extra_bytes / 1e6:,.0f} MB beyond the model"),
        ]
    )


def show_global_circuit(output: Output, circuit: Circuit, top: int) -> None:
    """Print a global circuit: where it is from, what was shown of it, its heaviest edges."""
    if output.json:
        output.document(circuit.to_json())
        return
    output.facts(global_facts(circuit.info))
    for caveat in circuit.info.caveats:
        output.line(f"note: {printable(caveat)}")
    nodes = {node.index: node for node in circuit.nodes()}
    output.line()
    rows = [_row(edge, nodes) for edge in circuit.edges()[:top]]
    output.table(("FROM", "PROMOTES", "TO", "PROMOTES", "WEIGHT"), rows)


def global_facts(info: CircuitInfo) -> list[tuple[str, str]]:
    """A global circuit's figures, for people; empty of any other."""
    across = info.across
    if across is None:
        return []
    half = "not measured" if across.split_half is None else shown(across.split_half)
    both = (
        "" if across.split_half_overlap is None else f"; {across.split_half_overlap:.0%} of edges are in both"
    )
    return [
        ("circuit", info.name),
        ("texts", _texts(across)),
        ("among", _among(info, across)),
        ("nodes, edges", f"{info.n_nodes}, {info.n_edges} ({info.edge_rule})"),
        *(fact for one in across.transfer for fact in _transfer(one)),
        ("halves", f"rank correlation {half}{both}"),
        ("coverage", _coverage(across.coverage)),
        ("took", f"{info.seconds:.1f} s, {info.peak_extra_bytes / 1e6:.0f} MB beyond what was held"),
    ]


def _texts(across: GlobalFigures) -> str:
    return (
        f"{across.training} to find it on ({across.training_tokens:,} tokens), {across.held_out} held out "
        f"({across.held_out_tokens:,})"
    )


def _among(info: CircuitInfo, across: GlobalFigures) -> str:
    return f"{across.candidates:,} of {across.features:,} features of {sets_words(info)}"


def _transfer(one: HeldOutTransfer) -> list[tuple[str, str]]:
    where = _MEASURED.get(one.measured, one.measured.value)
    lines = [
        ("held out", f"{where}: rank correlation with ablations {shown(one.spearman)}, {one.edges} edges")
    ]
    for each in one.comparisons:
        verdict = STANDINGS[each.standing]
        lines.append(
            ("", f"{verdict} {_BASELINES.get(each.baseline, each.baseline.value)}: {shown(each.spearman)}")
        )
    return lines


def _coverage(figure: Figure | None) -> str:
    if figure is None:
        return "not measured"
    return f"{shown(figure)} of what features below add directly, on held-out tokens"


def _row(edge: Edge, nodes: dict[int, Node]) -> tuple[str, ...]:
    ends = (nodes[edge.source], nodes[edge.target])
    words = [
        part
        for end in ends
        for part in (repr(end.label) if end.feature is None else str(end.feature), _told(end))
    ]
    return (*words, known(edge.weight, "+.4g"))


def _told(node: Node) -> str:
    return " ".join(repr(token) for token in node.promotes[:2])

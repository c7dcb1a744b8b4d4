from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Annotated, Any

import typer

from trephine.client.circuit import Circuit
from trephine.client.circuit_files import files_of
from trephine.client.cli.arguments import (
    DEFAULT_MODEL,
    AgainstOption,
    DetachOption,
    ModelOption,
    path_option,
)
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.cli.predictions import require_files, write_prediction
from trephine.client.cli.sets import opened_name, read_layers
from trephine.client.cli.targets import (
    MassOption,
    PositionsOption,
    SiteOption,
    TargetAttentionOption,
    TargetDirectionOption,
    TargetFeatureOption,
    TargetsOption,
    TopLogitsOption,
    wanted_target,
)
from trephine.client.downloads import require_writable
from trephine.client.node_addresses import placed
from trephine.client.terminal import printable
from trephine.client.types import (
    CircuitInfo,
    EstimateQuality,
    Figure,
    GraphScores,
    HierarchicalAttribution,
    Node,
    NodeKind,
    Pruning,
    TargetKind,
    Token,
)

DISCOVER_EXAMPLES = examples(
    'trephine discover "When Mary and John went to the store, John gave a drink to" \\',
    '    --target " Mary" --against " John" --out out/circuit',
    'trephine discover "The capital of France is" --target " Paris" --replacements smollm2-135m-tc',
    'trephine discover "The capital of France is" --target " Paris" -r mlp-transcoders --beside attn-saes',
    'trephine discover "The capital of France is" --top-logits 10 --mass 0.95 -r smollm2-135m-tc',
    'trephine discover "The capital of France is" --target-feature 20:311@4 -r smollm2-135m-tc',
    'trephine discover "The capital of France is" --target-direction probe.npy --site resid_post:12',
    'trephine discover "The capital of France is" --target-attention 12.3:4:3',
)


def discover(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="Whose next token is explained; at least two tokens.")],
    target: TargetsOption = None,
    against: AgainstOption = None,
    position: PositionsOption = None,
    top_logits: TopLogitsOption = None,
    mass: MassOption = None,
    target_feature: TargetFeatureOption = None,
    target_direction: TargetDirectionOption = None,
    site: SiteOption = None,
    target_attention: TargetAttentionOption = None,
    model: ModelOption = DEFAULT_MODEL,
    out: Annotated[
        Path | None, path_option("--out", "Write circuit.html and circuit.json into this folder.")
    ] = None,
    replacements: Annotated[
        str | None,
        typer.Option(
            "--replacements",
            "-r",
            metavar="SET",
            help="Replacement set, or folder, whose features span the graph; unset: neurons.",
        ),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SET",
            help="Features too: a further set or folder, or neurons (of MLPs that no set reconstructs). "
            "Repeatable.",
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Open only these, as in 0,5,10-12; unset: all of the sets.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="At most this many features; unset 512.")] = None,
    min_attribution: Annotated[
        float | None,
        typer.Option(
            help="Choose features by hierarchical attribution: those whose attribution is at least this, in "
            "units of the target. Unset: by influence."
        ),
    ] = None,
    node_threshold: Annotated[
        float | None, typer.Option(help="Prune before storing: share of the influence that nodes reach.")
    ] = None,
    edge_threshold: Annotated[
        float | None, typer.Option(help="Prune before storing: the same for edges.")
    ] = None,
    max_nodes: Annotated[
        int | None, typer.Option(help="Prune before storing: at most so many features and errors.")
    ] = None,
    max_edges: Annotated[
        int | None, typer.Option(help="Prune before storing: at most so many edges.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Unset 0.")] = None,
    predict: Annotated[
        bool, typer.Option("--predict", help="Check everything and say what it would take; find nothing.")
    ] = False,
    top: Annotated[int, typer.Option(min=0, help="Features to print.")] = 15,
    detach: DetachOption = False,
) -> None:
    """Find the circuit behind a next-token choice: which features push for it, and through which others."""
    given = invocation(context)
    require_files(out, predict=predict, detach=detach)
    if out is not None and not predict:
        require_writable(*(file for _, file in files_of(out)))
    wanted = wanted_target(
        tokens=target,
        top_logits=top_logits,
        mass=mass,
        feature=target_feature,
        direction=target_direction,
        site=site,
        attention=target_attention,
        positions=position,
    )
    bounds = Pruning(
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
        max_nodes=max_nodes,
        max_edges=max_edges,
    )
    with given.connect() as trephine:
        loaded = given.load(trephine, model)
        chosen = None
        if replacements is not None:
            chosen = opened_name(given, trephine, loaded, replacements)
        options: dict[str, Any] = {
            "target": wanted.target,
            "against": against,
            "positions": wanted.positions,
            "replacement": chosen,
            "beside": [opened_name(given, trephine, loaded, name) for name in beside or ()],
            "layers": read_layers(layers),
            "max_feature_nodes": nodes,
            "min_attribution": min_attribution,
            "prune": None if bounds == Pruning() else bounds,
            "seed": seed,
        }
        if predict:
            predicted = loaded.predict_discover(prompt, **options)
            show_prediction(given.output, predicted)
            write_prediction(given.output, out, predicted.to_json())
            return
        started = loaded.start_discover(prompt, **options)
        circuit = given.complete(trephine, started, "discover", detach=detach)
        show_circuit(given.output, circuit, top)
        if out is not None:
            for path in circuit.save(out):
                given.output.note(f"wrote {path}")


def show_prediction(output: Output, found: CircuitInfo) -> None:
    """Print predicted time and memory."""
    if output.json:
        output.document(found.to_json())
        return
    output.facts(
        [
            ("tokens", str(len(found.tokens))),
            ("would take", f"{found.seconds:,.0f} s of one core"),
            ("memory", f"{found.peak_extra_bytes / 1e6:,.0f} MB beyond the model"),
        ]
    )


def show_circuit(output: Output, circuit: Circuit, top: int) -> None:
    """Print a circuit with its strongest features."""
    if output.json:
        output.document(circuit.to_json())
        return
    output.facts(circuit_facts(circuit.info))
    for caveat in circuit.info.caveats:
        output.line(f"note: {printable(caveat)}")
    features = circuit.nodes(kind=NodeKind.FEATURE)[:top]
    output.line()
    output.table(
        (circuit.info.noun.upper(), "POSITION", "INFLUENCE", "EFFECT", "ACTIVATION", "PROMOTES"),
        [node_row(node, circuit.info.tokens) for node in features],
    )


def circuit_facts(info: CircuitInfo) -> list[tuple[str, str]]:
    """A circuit's figures, for people."""
    facts = [
        ("circuit", info.name),
        ("prompt", repr(info.prompt)),
        ("target", _targets(info)),
        ("features of", sets_words(info)),
        ("nodes, edges", f"{info.n_nodes}, {info.n_edges} ({_rule(info)})"),
        (
            "inside",
            f"{known(info.selected_share, '.1%')} of the {info.noun}s' influence; "
            f"{known(info.error_share, '.1%')} of all influence is through errors",
        ),
        ("took", f"{info.seconds:.1f} s, {info.peak_extra_bytes / 1e6:.0f} MB beyond what was held"),
    ]
    if info.scores is not None:
        facts[6:6] = scores_facts(info.scores)
    if info.provenance.origin != "imported" and info.provenance.how:
        parent = f"from {info.provenance.parent}: " if info.provenance.parent else ""
        facts[5:5] = [("pruned", f"{parent}{info.provenance.how}; figures are of the whole graph")]
    if info.hierarchy is not None:
        facts[5:5] = [("chosen", hierarchy_words(info.hierarchy))]
    if info.quality is not None:
        facts[5:5] = quality_facts(info.quality, info.edge_rule)
    return facts


def _rule(info: CircuitInfo) -> str:
    """How edges were computed; those into a target may be estimates where all others are exact."""
    estimated = info.edge_rule == "exact" and any(target.estimated for target in info.targets)
    return "exact, but for those into the target" if estimated else info.edge_rule


def sets_words(info: CircuitInfo) -> str:
    """What a circuit spans: its sets with the beginning of their contents' hashes, and its layers."""
    hashes = {each.name: each.content_hash for each in info.sets}
    named = [f"{name} {hashes.get(name, '')[:12]}".rstrip() for name in info.set_names]
    layers = f"; layers {layers_words(info.layers)}" if info.layers else ""
    return printable(", ".join(named)) + layers


def layers_words(layers: Sequence[int]) -> str:
    """Ascending layers as `0-5, 8`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _targets(info: CircuitInfo) -> str:
    """What is explained, with every target's share where there are several."""
    if not info.targets:
        return "-"
    ranked = sorted(info.targets, key=lambda target: -target.share)
    units = " logits" if all(target.kind is TargetKind.LOGIT for target in ranked) else ""
    named = [
        printable(target.label) + ("" if len(ranked) == 1 else f" ({target.share:.0%})") for target in ranked
    ]
    return f"{', '.join(named)}: {known(info.baseline, '+.3f')}{units}"


def scores_facts(scores: GraphScores) -> list[tuple[str, str]]:
    """How much is explained, by circuit-tracer's definition and with everything left out charged."""
    return [
        (
            "replacement",
            f"{scores.replacement:.3f} by circuit-tracer's definition; {scores.charged_replacement:.3f} with "
            "unselected features and position 0 charged",
        ),
        (
            "completeness",
            f"{scores.completeness:.3f} by circuit-tracer's definition; {scores.charged_completeness:.3f} "
            "with the same charged",
        ),
    ]


def hierarchy_words(found: HierarchicalAttribution) -> str:
    """How features were chosen, and what was stopped."""
    raised = "" if found.threshold == found.asked_threshold else f", raised from {found.asked_threshold:.3g}"
    return (
        f"hierarchically: {found.survivors} features of at least {found.threshold:.3g}{raised}; stopped "
        f"{found.stopped_features}, {found.stopped:+.3f} of {found.root:+.3f} "
        f"({found.stopped_mass:.3f} in absolute terms)"
    )


def known(value: float, form: str) -> str:
    """A figure, or a dash where there is none, as in imported circuits."""
    return "-" if isnan(value) else format(value, form)


def quality_facts(quality: EstimateQuality, rule: str) -> list[tuple[str, str]]:
    """How far effects and edges can be trusted: each beside what real ablations do."""
    measured = f"against {quality.nodes} real ablations: "
    return [
        ("effects", measured + _agreement(quality.slope, quality.spearman)),
        ("edges", f"{measured}{_agreement(quality.edge_slope, quality.edge_spearman)} ({rule}, all paths)"),
    ]


def _agreement(slope: Figure, rank: Figure) -> str:
    if isnan(slope.value):
        return "not measured"  # a circuit that was stored before this was
    return (
        f"slope {slope.value:.2f}{_interval(slope.low, slope.high)}, "
        f"rank correlation {rank.value:.2f}{_interval(rank.low, rank.high)}"
    )


def token_at(position: int, tokens: Sequence[Token]) -> str:
    """The token at a position as it is shown; empty of no position, and where a tool's file does not say it.

    A circuit of all positions together has one token, `every position`.
    """
    return repr(tokens[position].display) if 0 <= position < len(tokens) else ""


def node_row(node: Node, tokens: Sequence[Token]) -> tuple[str, ...]:
    """A node of a circuit of these tokens as a row of a table."""
    return (
        str(node.feature),
        f"{placed(node)} {token_at(node.position, tokens)}".rstrip(),
        f"{node.influence:.4f}",
        known(node.effect, "+.3f"),
        known(node.activation, "+.3f"),
        " ".join(repr(token) for token in node.promotes[:4]),
    )


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"

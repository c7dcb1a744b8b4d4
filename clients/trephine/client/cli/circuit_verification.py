from __future__ import annotations

import json
from collections.abc import Iterable
from math import isclose, isnan
from pathlib import Path
from typing import Annotated

import typer

from trephine.client.cli.arguments import DetachOption, path_option
from trephine.client.cli.evaluate import shown
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.cli.predictions import require_files, write_prediction
from trephine.client.downloads import require_writable, write_file
from trephine.client.types import CircuitExamination, CircuitVerification, Standing
from trephine.client.types.circuit_verification import CircuitFaithfulness

VERIFY_EXAMPLES = (
    "trephine circuits verify circuits/3f9c",
    'trephine circuits verify 3f9c --counterfactual "The capital of Italy is" --out out/verification.json',
    "trephine circuits verify 3f9c --predict",
)
_SAME = 1e-3
"""Of a target, and what is printed of it: nearer values differ by rounding, as where errors are frozen."""
STANDINGS = {
    Standing.BEATS: "BEATS",
    Standing.DOES_NOT_BEAT: "DOES NOT BEAT",
    Standing.INCONCLUSIVE: "INCONCLUSIVE",
}


def verify(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="circuits/..., as `trephine circuits list` shows it.")],
    counterfactual: Annotated[
        str | None, typer.Option(help="A prompt of as many tokens, for resample ablation too.")
    ] = None,
    ablation: Annotated[
        list[str] | None, typer.Option(help="zero, mean or resample. Repeatable; unset: zero and mean.")
    ] = None,
    error_term: Annotated[str, typer.Option(help="Of a set: live, frozen or drop.")] = "live",
    node_threshold: Annotated[
        float | None,
        typer.Option(help="Share of the influence that its nodes reach; unset 0.8, all if it was pruned."),
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Single-node ablations, at least 100; unset 120.")] = None,
    groups: Annotated[int | None, typer.Option(help="Random groups; unset 24, 0: no groups.")] = None,
    random_circuits: Annotated[int | None, typer.Option(help="At least 20; unset 20.")] = None,
    adversary_steps: Annotated[
        int | None, typer.Option(help="Steps of the search for the worst mask; unset 8, 0 skips it.")
    ] = None,
    no_control: Annotated[
        bool, typer.Option("--no-control", help="Leave the random dictionary out.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Unset 0.")] = None,
    out: Annotated[Path | None, path_option("--out", "A .json file with every figure.")] = None,
    predict: Annotated[
        bool, typer.Option("--predict", help="Say what it would take; measure nothing.")
    ] = False,
    detach: DetachOption = False,
) -> None:
    """Verify a circuit by ablations of the real model.

    Single nodes and groups, baselines, change by depth, necessity and sufficiency beside random circuits,
    a search for the worst mask outside the circuit, and the same with a random dictionary.
    """
    given = invocation(context)
    require_files(out, predict=predict, detach=detach)
    if out is not None:
        require_writable(out)
    options = {
        "counterfactual": counterfactual,
        "substitutes": tuple(ablation or ()),
        "error_term": error_term,
        "node_threshold": node_threshold,
        "nodes": nodes,
        "groups": groups,
        "random_circuits": random_circuits,
        "adversary_steps": adversary_steps,
        "control": False if no_control else None,
        "seed": seed,
    }
    with given.connect() as trephine:
        circuit = trephine.circuits.get(name)
        if predict:
            would = circuit.predict_verify(**options)
            show_prediction(given.output, would)
            write_prediction(given.output, out, would.to_json())
            return
        started = circuit.start_verify(**options)
        found = given.complete(trephine, started, f"verify {circuit.name}", detach=detach)
    if out is not None:
        write_file(out, found.to_json().encode())
    show_verification(given.output, found)
    if out is not None:
        given.output.note(f"wrote {out}")


def verifications(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="circuits/..., as `trephine circuits list` shows it.")],
) -> None:
    """List a circuit's verifications, newest first."""
    given = invocation(context)
    with given.connect() as trephine:
        found = trephine.circuits.get(name).verifications()
    if given.output.json:
        listed = [json.loads(one.to_json()) for one in found]
        given.output.document(json.dumps({"verifications": listed}, indent=2))
        return
    rows = [(one.name, one.create_time, f"{one.seconds:.0f} s", str(one.seed)) for one in found]
    given.output.table(("NAME", "CREATED", "TOOK", "SEED"), rows)


def show_prediction(output: Output, found: CircuitVerification) -> None:
    """Print predicted time and memory."""
    if output.json:
        output.document(found.to_json())
        return
    output.facts(
        [("would take", f"{found.seconds:,.0f} s"), ("memory", f"{found.peak_extra_bytes / 1e6:,.0f} MB")]
    )


def show_verification(output: Output, found: CircuitVerification) -> None:
    """Print every table, the circuit and its control beside each other, and how each figure was measured."""
    if output.json:
        output.document(found.to_json())
        return
    examined = [one for one in (found.given, found.control) if one is not None]
    _show_agreements(output, examined)
    _show_comparisons(output, examined)
    _show_depths(output, examined)
    _show_faithfulness(output, examined)
    _show_worst_case(output, examined)
    output.line()
    output.facts(_facts(found))


def _show_agreements(output: Output, examined: list[CircuitExamination]) -> None:
    output.table(
        ("ABLATIONS", "OF", "PREDICTED BY", "COUNT", "RANK CORRELATION", "SLOPE"),
        [
            (a.ablations, one.title, a.predictor, str(a.count), shown(a.spearman), shown(a.slope))
            for one in examined
            for a in one.agreements
        ],
    )


def _show_comparisons(output: Output, examined: list[CircuitExamination]) -> None:
    output.line()
    output.table(
        ("PREDICTOR", "OF", "AGAINST", "DIFFERENCE", "VERDICT"),
        [
            (c.predictor, one.title, c.baseline, shown(c.difference), STANDINGS[c.standing])
            for one in examined
            for c in one.comparisons
        ],
    )


def _show_depths(output: Output, examined: list[CircuitExamination]) -> None:
    rows = [
        (_layers(d.nearest, d.farthest), one.title, shown(d.cosine), shown(d.nmse), str(d.ablations))
        for one in examined
        for d in one.depths
    ]
    if rows:
        output.line()
        output.table(("LAYERS ABOVE", "OF", "COSINE", "SQUARED ERROR", "ABLATIONS"), rows)


def _layers(nearest: int, farthest: int) -> str:
    return str(nearest) if nearest == farthest else f"{nearest}-{farthest}"


def _p(value: float) -> str:
    """A p-value is no number where nothing that was ablated moved the target, or something overflowed."""
    return "no p" if isnan(value) else f"p {value:.3f}"


def _show_faithfulness(output: Output, examined: list[CircuitExamination]) -> None:
    output.line()
    rows = [
        (
            f"{f.substitute.value}",
            one.title,
            f"{f.baseline:+.3f}{_unablated(f)}",
            f"{f.empty:+.3f}",
            f"{f.kept:+.3f}{_share(f.faithfulness)}",
            f"{f.random_kept:+.3f}, {_p(f.p_sufficient)}",
            f"{f.removed:+.3f}{_share(f.necessity)}",
            f"{f.random_removed:+.3f}, {_p(f.p_necessary)}",
        )
        for one in examined
        for f in one.faithfulness
    ]
    output.table(
        ("ABLATION", "OF", "MODEL", "ALL ABLATED", "CIRCUIT ALONE", "RANDOM", "ABLATED", "RANDOM"), rows
    )


def _unablated(one: CircuitFaithfulness) -> str:
    """From where necessity counts, if not from the model: what dropping errors leaves of the target."""
    still = one.unablated
    same = still is None or isclose(still, one.baseline, rel_tol=_SAME, abs_tol=_SAME)
    return "" if same else f" ({still:+.3f} without errors)"


def _share(value: float | None) -> str:
    return "" if value is None else f" ({value:.0%})"


def _show_worst_case(output: Output, examined: list[CircuitExamination]) -> None:
    rows = [
        (
            one.title,
            *(f"{value:+.3f}" for value in (w.baseline, w.kept, w.relaxed, w.rounded, w.random)),
            f"{w.ablated:,} of {w.outside:,}",
        )
        for one in examined
        if (w := one.worst_case) is not None
    ]
    if rows:
        output.line()
        output.table(
            ("WORST MASK", "MODEL", "CIRCUIT ALONE", "RELAXED", "ROUNDED", "BEST RANDOM", "ABLATES"), rows
        )


def _facts(found: CircuitVerification) -> Iterable[tuple[str, str]]:
    one = found.given
    yield (
        "circuit",
        (
            f"{found.circuit}: {one.circuit_features} features at positions >= 1 of {one.graph_features} in "
            f"the graph, over {one.replacement}"
        ),
    )
    yield "target", f"{found.target} after {found.prompt!r}: {one.baseline:+.3f} {found.units}".rstrip()
    yield "model", f"{found.version.model}, weights {found.version.weight_hash}"
    yield "verification", f"{found.name}, seed {found.seed}, {found.seconds:.1f} s"
    yield "control", found.control_note
    for text, said in _how(one).items():
        yield f"how: {', '.join(said)}", text
    for caveat in found.caveats:
        yield "caveat", caveat


def _how(one: CircuitExamination) -> dict[str, list[str]]:
    """Which ablation, positions, freezes and error term, by the figures that share them."""
    said: dict[str, list[str]] = {}
    for a in one.agreements:
        said.setdefault(a.how, []).append(f"{a.ablations} by {a.predictor}")
    for c in one.comparisons:
        said.setdefault(c.how, []).append(f"{c.predictor} against {c.baseline}")
    for d in one.depths[:1]:
        said.setdefault(d.how, []).append("layers above")
    for f in one.faithfulness:
        said.setdefault(f.how, []).append(f"{f.substitute.value} ablation")
    if one.worst_case is not None:
        said.setdefault(one.worst_case.how, []).append("worst mask")
    return said

"""Global circuits on SmolLM2: `python -m benchmarks.global_circuits [--out FOLDER]`.

Over transcoders and over neurons, found on paragraphs of WikiText-2 that the transcoders were not trained
on, and checked on others: transfer to ablations beside three baselines, agreement between halves of the
texts, the share of direct effects that the circuit's edges carry, the heaviest edges, time, and memory beside
what was predicted. Every cell is kept in FOLDER: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch

from benchmarks.kept_runs import KeptRuns, code_of
from benchmarks.laws import load_model
from benchmarks.replacements import NAME, load_set
from trephine.app.circuits.circuit_columns import columns_of, with_columns, without_columns
from trephine.app.circuits.global_circuit_costs import global_circuit_cost
from trephine.app.storage.records import decode, encode
from trephine.domain.circuits import Circuit, Node, NodeKind
from trephine.domain.findings import Figure
from trephine.domain.global_circuits import DiscoverGlobalCircuit, GlobalBounds
from trephine.domain.global_figures import EdgeWeighting, GlobalFigures, HeldOutTransfer
from trephine.domain.sites import NEURONS
from trephine.engine.global_circuits.discovery import discover_global_circuit
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.replacements.sets import require_set
from trephine.server.places import default_cache

BEGIN = "<|im_start|>"
SHORTEST = 200
"""Characters of a paragraph; headings are shorter."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is read and measured."""

    training: int
    held_out: int
    context: int
    candidates: int
    nodes: int
    verify_edges: int
    weighting: str
    seed: int


def say(line: str = "") -> None:
    """Write a line at once: runs take minutes."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run what was asked for."""
    given = _arguments().parse_args()
    torch.set_num_threads(1)
    sizes = Sizes(
        training=given.training,
        held_out=given.held_out,
        context=given.context,
        candidates=given.candidates,
        nodes=given.nodes,
        verify_edges=given.verify_edges,
        weighting=given.weighting,
        seed=given.seed,
    )
    say(f"{sizes}; {given.text.name}, paragraphs of at least {SHORTEST} characters, {BEGIN} in front")
    kept, session = KeptRuns(given.out / "kept-global.json"), Session()
    for name in given.dictionaries:
        request = {
            "graph": "",
            "set": name,
            "text": given.text.name,
            "code": code_of(*_CODE),
            **asdict(sizes),
        }
        answer = kept.get(name, request)
        if answer is None:
            if session.hosted is None:
                session.hosted = load_model(given.model)
                load_set(session, given.transcoders)
            answer = _run(session, command(name, given.text, sizes))
            kept.keep(name, request, answer)
        _tell(name, _read(answer), answer)


_CODE = ("trephine.engine.global_circuits",)


def _run(session: Session, command: DiscoverGlobalCircuit) -> dict[str, Any]:
    hosted = session.require_model()
    started = process_time()
    found = finish(discover_global_circuit(session, command))
    seconds = process_time() - started
    across = _across(found)
    cost = global_circuit_cost(
        command,
        hosted.info,
        _sets(hosted),
        training=across.training_tokens,
        held_out=across.held_out_tokens,
    )
    return {
        "found": encode(without_columns(found)).decode(),
        "columns": {name: [column.dtype.name, column.tolist()] for name, column in columns_of(found).items()},
        "seconds": seconds,
        "predicted_seconds": cost.seconds,
        "predicted_bytes": cost.memory_bytes,
    }


def _read(answer: dict[str, Any]) -> Circuit:
    plain = decode(Circuit, answer["found"].encode(), what="a cell")
    columns = {name: np.asarray(values, kind) for name, (kind, values) in answer["columns"].items()}
    return with_columns(plain, columns)


def _sets(hosted: HostedModel) -> dict[str, Any]:
    return {name: require_set(hosted, name).admitted.layers for name in hosted.replacements}


def command(name: str, text: Path, sizes: Sizes) -> DiscoverGlobalCircuit:
    """Ask for a circuit over a text's first paragraphs, checked on those that follow."""
    lines = [line.strip() for line in text.read_text(encoding="utf-8").splitlines()]
    paragraphs = [BEGIN + line for line in dict.fromkeys(lines) if len(line) >= SHORTEST]
    return DiscoverGlobalCircuit(
        training=tuple(paragraphs[: sizes.training]),
        held_out=tuple(paragraphs[sizes.training : sizes.training + sizes.held_out]),
        replacement=name,
        weighting=EdgeWeighting(sizes.weighting),
        bounds=GlobalBounds(nodes=sizes.nodes, candidates=sizes.candidates),
        context_tokens=sizes.context,
        verify_edges=sizes.verify_edges,
        seed=sizes.seed,
    )


def _tell(name: str, found: Circuit, answer: dict[str, Any]) -> None:
    across = _across(found)
    say()
    say(
        f"{name}: {across.candidates} of {across.features} features ({across.active_features} active "
        f"enough), {across.training_tokens} training and {across.held_out_tokens} held-out tokens; "
        f"{found.figures.selected_features} features, {len(found.nodes)} nodes, "
        f"{found.edges.weight.shape[0]} edges"
    )
    for one in across.transfer:
        _tell_transfer(one)
    overlap = "none" if across.split_half_overlap is None else f"{across.split_half_overlap:.2f}"
    say(f"  halves: rank correlation {_interval(across.split_half)}, overlap of edges {overlap}")
    say(f"  coverage: {_interval(across.coverage)}")
    for line in _heaviest(found):
        say(f"  {line}")
    say(
        f"  {answer['seconds']:.0f} s of processor time ({answer['predicted_seconds']:.0f} predicted), "
        f"{found.figures.peak_extra_bytes / 1e6:.0f} MB beyond the model "
        f"({answer['predicted_bytes'] / 1e6:.0f} predicted)"
    )


def _across(found: Circuit) -> GlobalFigures:
    if found.across is None:
        raise ValueError("the circuit is not global")
    return found.across


def _tell_transfer(one: HeldOutTransfer) -> None:
    say(f"  {one.measured.value}: {_interval(one.spearman)} over {one.edges} edges")
    for each in one.comparisons:
        say(
            f"    {each.standing.value} {each.baseline.value}: {_interval(each.spearman)}, difference "
            f"{_interval(each.difference)}"
        )


def _heaviest(found: Circuit, count: int = 8) -> list[str]:
    source, target = (np.frombuffer(end.data, "<i4") for end in (found.edges.source, found.edges.target))
    weight = np.frombuffer(found.edges.weight.data, "<f4")
    between = [
        edge
        for edge in np.argsort(-np.abs(weight), kind="stable").tolist()
        if found.nodes[source[edge]].kind is NodeKind.FEATURE is found.nodes[target[edge]].kind
    ]
    return [
        f"{_named(found.nodes[source[edge]])} -> {_named(found.nodes[target[edge]])}: {weight[edge]:+.3f}"
        for edge in between[:count]
    ]


def _named(node: Node) -> str:
    return f"{node.layer}:{node.feature} {' '.join(map(repr, node.promotes[:3]))}"


def _interval(figure: Figure | None) -> str:
    return "not measured" if figure is None else f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = Path("../shared")
    parser.add_argument("--model", type=Path, default=default_cache() / "models" / "smollm2")
    parser.add_argument("--transcoders", type=Path, default=shared / "replacements" / "smollm2-135m-tc")
    parser.add_argument("--text", type=Path, default=shared / "data" / "wikitext-2" / "heldout.txt")
    parser.add_argument("--dictionaries", nargs="*", choices=(NAME, NEURONS), default=(NAME, NEURONS))
    parser.add_argument("--training", type=int, default=96, help="Texts to find edges on.")
    parser.add_argument("--held-out", type=int, default=16, help="Texts to check them on.")
    parser.add_argument("--context", type=int, default=64, help="Tokens that are read of a text.")
    parser.add_argument("--candidates", type=int, default=2048)
    parser.add_argument("--nodes", type=int, default=256)
    parser.add_argument("--verify-edges", type=int, default=64)
    parser.add_argument("--weighting", choices=[one.value for one in EdgeWeighting], default="twera")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/global"), help="Where cells are kept.")
    return parser


if __name__ == "__main__":
    main()

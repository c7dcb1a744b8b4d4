"""Circuits of behaviours on SmolLM2: `python -m benchmarks.dataset_circuits [--out FOLDER]`.

For agreement, greater-than and indirect objects, over neurons and over transcoders, without and with
attention heads (and error terms) as nodes: nodes needed for 80 % of the behaviour on held-out contexts under
two ablations, random circuits and the stable core beside them, and how far each estimator of effects agrees
with exact patching. Nodes are ranked by patching with what they are ablated to. The first third of the layers
has no nodes (Marks et al. 2025). Every cell is kept in FOLDER: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time
from typing import Any

import torch

from benchmarks.dataset_curves import Curve, Panel, curves_figure, curves_page
from benchmarks.dataset_tasks import TASKS, Tokens, split_task
from benchmarks.kept_runs import KeptRuns
from benchmarks.laws import load_model
from benchmarks.replacements import NAME, load_set
from trephine.client.types import DatasetExample
from trephine.domain.dataset_circuits import (
    ERRORS,
    HEADS,
    DatasetCircuit,
    DiscoverDatasetCircuit,
    Discretion,
    Estimator,
    Example,
    Faithfulness,
    NodeAblation,
    PositionRule,
    Subsampling,
)
from trephine.domain.findings import Figure
from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import NEURONS
from trephine.engine.attribution.correlations import spearman
from trephine.engine.dataset_circuits.averaging import average_effects
from trephine.engine.dataset_circuits.contexts import read_contexts
from trephine.engine.dataset_circuits.discovery import discover_dataset_circuit
from trephine.engine.dataset_circuits.estimators import estimator_of
from trephine.engine.dataset_circuits.packs import donor_ids, packs
from trephine.engine.dataset_circuits.selection import ranked
from trephine.engine.dataset_circuits.space import NodeSpace, node_space
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.ipc.codec import from_tree, to_tree
from trephine.server.places import default_cache

DICTIONARIES = {
    "neurons": (NEURONS,),
    "neurons, heads": (NEURONS, HEADS),
    "transcoders": (NAME,),
    "transcoders, errors, heads": (NAME, ERRORS, HEADS),
}
"""What are nodes, by what it is called here. Error terms that are no nodes stay live."""
ABLATIONS = (NodeAblation.MEAN, NodeAblation.RESAMPLE)
LONG = ("greater_than", "ioi")
"""Tasks with contexts of 15 tokens and more."""

Line = tuple[str, ...]
HEAD: Line = (
    "task", "nodes of", "ablation", "m(M)", "m(0)", "for 80 %", "of", "faithful", "complete", "random max",
    "p", "stable", "core", "share", "heads",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured; the defaults end within 40 minutes on one core."""

    training: int = 32
    held_out: int = 16
    long_held_out: int = 12
    nodes: int = 128
    random: int = 20
    draws: int = 20
    first_layer: int = 10
    """The first with nodes."""
    compared: int = 96
    """Nodes that estimators are compared with exact patching on, half of them the strongest."""
    compared_contexts: int = 8
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One task over one kind of nodes under one ablation."""

    task: str
    nodes: str
    ablation: NodeAblation
    found: DatasetCircuit
    seconds: float
    """Of processor time."""

    @property
    def measured(self) -> Faithfulness:
        """On held-out contexts."""
        return self.found.circuits[0].faithfulness[0]


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
        long_held_out=max(2, given.held_out * 3 // 4),
        first_layer=given.first_layer,
        seed=given.seed,
    )
    session = None if given.kept_only else _session(given.model, given.transcoders)
    say(f"{sizes}; nodes from layer {sizes.first_layer} on")
    say(" | ".join(HEAD))
    cells: list[Cell] = []
    for task in given.tasks:
        kept = KeptRuns(given.out / f"kept-{task}.json")
        ablations = [NodeAblation(name) for name in given.ablations]
        for cell in run_task(session, task, given.dictionaries, given.data, sizes, kept, ablations):
            say(" | ".join(_cells(cell)))
            cells.append(cell)
    if cells:
        _summarise(cells, given.out)
    if session is not None and not given.no_estimators:
        for task in given.compare:
            say()
            compare_estimators(session.require_model(), task, given.data, sizes)
    say(
        f"\n{process_time():.0f} s of processor time in this run; all cells took "
        f"{sum(cell.seconds for cell in cells):.0f} s"
    )


def _session(model: Path, transcoders: Path) -> Session:
    session = Session(hosted=load_model(model))
    load_set(session, transcoders)
    return session


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=default_cache() / "models" / "smollm2")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--transcoders", type=Path, default=Path("../shared/replacements/smollm2-135m-tc"))
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS)
    parser.add_argument("--dictionaries", nargs="*", choices=DICTIONARIES, default=tuple(DICTIONARIES))
    parser.add_argument("--ablations", nargs="*", choices=list(NodeAblation), default=ABLATIONS)
    parser.add_argument("--held-out", type=int, default=Sizes.held_out, help="Contexts to measure on.")
    parser.add_argument("--training", type=int, default=Sizes.training, help="Contexts to find on.")
    parser.add_argument("--first-layer", type=int, default=Sizes.first_layer, help="The first with nodes.")
    parser.add_argument("--seed", type=int, default=Sizes.seed)
    parser.add_argument(
        "--out", type=Path, default=Path("out/circuits"), help="Cells, curves as page and figure."
    )
    parser.add_argument(
        "--compare", nargs="*", choices=TASKS, default=("simple", "ioi"), help="Estimators on these."
    )
    parser.add_argument("--kept-only", action="store_true", help="Print and draw kept cells; find nothing.")
    parser.add_argument("--no-estimators", action="store_true", help="Leave their comparison out.")
    return parser


def run_task(
    session: Session | None,
    task: str,
    dictionaries: Sequence[str],
    data: Path,
    sizes: Sizes,
    kept: KeptRuns,
    ablations: Sequence[NodeAblation] = ABLATIONS,
) -> Iterator[Cell]:
    """Find and measure a task's circuits, one cell after the other; without a session those kept."""
    for name in dictionaries:
        for ablation in ablations:
            request = {"graph": "", "nodes": DICTIONARIES[name], "ablation": ablation.value, **asdict(sizes)}
            label = f"{task}, {name}, {ablation.value}"
            answer = kept.get(label, request)
            if answer is None:
                if session is None:
                    continue
                started = process_time()
                command = _command(session.require_model(), task, data, DICTIONARIES[name], ablation, sizes)
                found = finish(discover_dataset_circuit(session, command))
                answer = {"found": to_tree(found), "seconds": process_time() - started}
                kept.keep(label, request, answer)
            yield _cell(task, name, ablation, answer)


def _cell(task: str, name: str, ablation: NodeAblation, answer: dict[str, Any]) -> Cell:
    found = from_tree(DatasetCircuit, answer["found"])
    return Cell(task=task, nodes=name, ablation=ablation, found=found, seconds=answer["seconds"])


def _command(
    hosted: HostedModel,
    task: str,
    data: Path,
    names: tuple[str, ...],
    ablation: NodeAblation,
    sizes: Sizes,
) -> DiscoverDatasetCircuit:
    training, held_out = _split(hosted, task, data, sizes)
    return DiscoverDatasetCircuit(
        training=training,
        held_out=held_out,
        replacement=names[0],
        beside=names[1:],
        layers=tuple(range(sizes.first_layer, hosted.info.n_layers)),
        positions=PositionRule.KEPT,
        patch=ablation,
        ablations=(ablation,),
        size=Discretion(nodes=sizes.nodes, edge_nodes=0, random_circuits=sizes.random),
        stability=Subsampling(draws=sizes.draws),
        seed=sizes.seed,
    )


def _summarise(cells: Sequence[Cell], out: Path) -> None:
    """Write the curves as a page and as a figure."""
    panels = [
        Panel(title=f"{cell.task}, {cell.nodes}, {cell.ablation.value} ablation", found=cell.measured)
        for cell in cells
    ]
    curves = [
        Curve(row=cell.ablation.value, column=cell.task, series=cell.nodes, found=cell.measured)
        for cell in cells
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "dataset_circuits.html").write_text(curves_page(panels, "python -m benchmarks.dataset_circuits"))
    (out / "dataset_circuits.svg").write_text(curves_figure(curves))
    say(f"\nwrote {out / 'dataset_circuits.html'} and {out / 'dataset_circuits.svg'}")


def _cells(cell: Cell) -> Line:
    measured, found = cell.measured, cell.found.circuits[0]
    circuit, core = measured.circuit, measured.core
    owners = Counter(node.replacement for node in found.nodes)
    return (
        cell.task,
        cell.nodes,
        cell.ablation.value,
        _interval(measured.whole),
        _interval(measured.empty),
        "not reached" if measured.nodes_for_80 is None else str(measured.nodes_for_80),
        str(cell.found.candidates),
        _interval(circuit.faithfulness),
        _interval(circuit.completeness),
        f"{max(measured.random):.2f}" if measured.random else "",
        f"{measured.p_value:.3f}" if measured.p_value is not None else "",
        f"{sum(node.stable for node in found.nodes)} of {circuit.nodes}",
        "" if core is None else f"{core.faithfulness.value:.2f}",
        f"{found.effect_share:.0%}",
        str(owners[HEADS]) if HEADS in DICTIONARIES[cell.nodes] else "live",
    )


def _interval(figure: Figure) -> str:
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"


def _split(
    hosted: HostedModel, task: str, data: Path, sizes: Sizes
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    tokens: Tokens = lambda text: len(hosted.encode(text))  # noqa: E731
    held_out = sizes.long_held_out if task in LONG else sizes.held_out
    split = split_task(task, data, tokens, training=sizes.training, held_out=held_out, seed=sizes.seed)
    return _examples(split.training), _examples(split.held_out)


def _examples(found: Sequence[DatasetExample]) -> tuple[Example, ...]:
    return tuple(
        Example(clean=one.clean, corrupted=one.corrupted, answers=one.answers, wrong=one.wrong)
        for one in found
    )


def compare_estimators(hosted: HostedModel, task: str, data: Path, sizes: Sizes) -> None:
    """Print each estimator's agreement with exact patching of single nodes, neurons and heads apart."""
    training = _split(hosted, task, data, sizes)[0][: sizes.compared_contexts]
    contexts = read_contexts(hosted, training, PositionRule.SUMMED, split="training")
    layers = range(sizes.first_layer, hosted.info.n_layers)
    names = (NEURONS, HEADS)
    space = node_space(hosted, names, layers, PositionRule.SUMMED, 0, ErrorTerm.LIVE)
    packed = list(packs(contexts, donor_ids(contexts, seed=0, same_length=False), hosted.model.device))
    everyone = torch.ones(1, len(contexts), dtype=torch.bool)

    def effects(which: Estimator, nodes: torch.Tensor | None = None) -> torch.Tensor:
        estimator = estimator_of(hosted, space, which, steps=5, candidates=nodes)
        work = average_effects(
            hosted, space, packed, everyone, estimator,
            patch=NodeAblation.RESAMPLE, means=(), seed=0, stage=which.value,
        )  # fmt: skip
        return finish(work).parts[0]

    first = effects(Estimator.ATTRIBUTION_PATCHING)
    chosen = _compared(space, first, sizes)
    started = process_time()
    exact = effects(Estimator.EXACT, torch.cat(list(chosen.values())))
    say(
        f"estimators against exact patching: {task}, {len(contexts)} contexts, half of the nodes are the "
        f"strongest, others drawn from the next 2,048; exact took {process_time() - started:.0f} s"
    )
    say("estimator | nodes | Pearson | Spearman | slope | seconds for all nodes")
    for which in (Estimator.ATTRIBUTION_PATCHING, Estimator.RELP, Estimator.INTEGRATED_GRADIENTS):
        started = process_time()
        found = effects(which)
        seconds = process_time() - started
        for name, nodes in chosen.items():
            figures = _agreement(found[nodes], exact[nodes])
            say(f"{which.value} | {len(nodes)} {name} | {figures} | {seconds:.0f}")


def _compared(space: NodeSpace, effects: torch.Tensor, sizes: Sizes) -> dict[str, torch.Tensor]:
    """Choose the strongest nodes of each owner, and as many of the next ones at random."""
    generator = torch.Generator().manual_seed(sizes.seed)
    places, _, _ = space.split(torch.arange(space.count))
    found = {}
    for owner in (NEURONS, HEADS):
        of_owner = torch.tensor([place.owner == owner for place in space.places])[places]
        order = ranked(effects * of_owner)
        top, rest = order[: sizes.compared // 2], order[sizes.compared // 2 : 2048]
        drawn = rest[torch.randperm(len(rest), generator=generator)[: sizes.compared - len(top)]]
        found[owner] = torch.cat([top, drawn])
    return found


def _agreement(found: torch.Tensor, exact: torch.Tensor) -> str:
    pearson = float(torch.corrcoef(torch.stack([found, exact]))[0, 1])
    slope = float((found @ exact) / (found @ found))
    return f"{pearson:.3f} | {float(spearman(found, exact)):.3f} | {slope:.2f}"


if __name__ == "__main__":
    main()

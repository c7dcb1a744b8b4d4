"""Circuits of behaviours on SmolLM2: `python -m benchmarks.dataset_circuits [--out FOLDER]`.

For agreement, greater-than and indirect objects, over neurons and over transcoders: nodes needed for 80 % of
the behaviour on held-out contexts under two ablations, random circuits and the stable core beside them, and
how far each estimator of effects agrees with exact patching.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch

from benchmarks.dataset_curves import Panel, curves_page
from benchmarks.dataset_tasks import TASKS, Tokens, split_task
from benchmarks.laws import load_model
from benchmarks.replacements import NAME, load_set
from trephine.client.types import DatasetExample
from trephine.domain.dataset_circuits import (
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
from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import NEURONS
from trephine.engine.dataset_circuits.averaging import average_effects
from trephine.engine.dataset_circuits.contexts import read_contexts
from trephine.engine.dataset_circuits.discovery import discover_dataset_circuit
from trephine.engine.dataset_circuits.estimators import estimator_of
from trephine.engine.dataset_circuits.packs import donor_ids, packs
from trephine.engine.dataset_circuits.selection import ranked
from trephine.engine.dataset_circuits.space import node_space
from trephine.engine.estimates import spearman
from trephine.engine.hosted import HostedModel
from trephine.engine.quanta import finish
from trephine.engine.session import Session
from trephine.server.places import default_cache

DICTIONARIES = {"neurons": NEURONS, "transcoders": NAME}
"""Replacement sets by what they are called here."""

Line = tuple[str, ...]
HEAD: Line = (
    "task", "nodes of", "ablation", "m(M)", "m(0)", "for 80 %", "faithful", "complete", "random max", "p",
    "stable", "core",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured; the defaults end within some 20 minutes on one core."""

    training: int = 48
    held_out: int = 24
    long_held_out: int = 12
    """Of tasks with contexts of 15 tokens and more."""
    nodes: int = 128
    random: int = 20
    draws: int = 20
    compared: int = 96
    """Nodes that estimators are compared with exact patching on, half of them the strongest."""
    seed: int = 0
    patch: NodeAblation | None = None


def say(line: str = "") -> None:
    """Write a line at once: runs take minutes."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=default_cache() / "models" / "smollm2")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--transcoders", type=Path, default=Path("../shared/replacements/smollm2-135m-tc"))
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS)
    parser.add_argument("--dictionaries", nargs="*", choices=DICTIONARIES, default=tuple(DICTIONARIES))
    parser.add_argument("--patch", choices=[one.value for one in NodeAblation], help="Unset: the twins.")
    parser.add_argument("--held-out", type=int, default=Sizes.held_out, help="Contexts to measure on.")
    parser.add_argument("--training", type=int, default=Sizes.training, help="Contexts to find on.")
    parser.add_argument("--seed", type=int, default=Sizes.seed)
    parser.add_argument("--out", type=Path, help="Folder for dataset_circuits.html with the curves.")
    parser.add_argument("--no-estimators", action="store_true", help="Leave their comparison out.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sizes = Sizes(
        training=given.training,
        held_out=given.held_out,
        long_held_out=max(2, given.held_out // 2),
        seed=given.seed,
        patch=None if given.patch is None else NodeAblation(given.patch),
    )
    session = Session(hosted=load_model(given.model))
    load_set(session, given.transcoders)
    say(" | ".join(HEAD))
    panels: list[Panel] = []
    for task in given.tasks:
        for name in given.dictionaries:
            panels += run_task(session, task, name, given.data, sizes)
    if not given.no_estimators:
        say()
        compare_estimators(session.require_model(), given.tasks[0], given.data, sizes)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        page = given.out / "dataset_circuits.html"
        page.write_text(curves_page(panels, f"python -m benchmarks.dataset_circuits --seed {sizes.seed}"))
        say(f"\nwrote {page}")


def run_task(session: Session, task: str, name: str, data: Path, sizes: Sizes) -> list[Panel]:
    """Find and measure one task's circuit, print its lines, return its curves."""
    hosted = session.require_model()
    training, held_out = _split(hosted, task, data, sizes)
    started = monotonic()
    command = DiscoverDatasetCircuit(
        training=training,
        held_out=held_out,
        replacement=DICTIONARIES[name],
        patch=sizes.patch,
        positions=PositionRule.KEPT,
        size=Discretion(nodes=sizes.nodes, edge_nodes=0, random_circuits=sizes.random),
        stability=Subsampling(draws=sizes.draws),
        seed=sizes.seed,
    )
    found = finish(discover_dataset_circuit(session, command))
    for measured in found.circuits[0].faithfulness:
        say(" | ".join((task, name, *_cells(found, measured))))
    say(
        f"  {len(training)} contexts to find it on, {len(held_out)} held out; {found.candidates} candidates; "
        f"{len(found.circuits[0].abstained)} nodes abstained on; {monotonic() - started:.0f} s"
    )
    return [
        Panel(title=f"{task}, {name}, {one.ablation.value} ablation", found=one)
        for one in found.circuits[0].faithfulness
    ]


def _cells(found: DatasetCircuit, measured: Faithfulness) -> Line:
    circuit, core = measured.circuit, measured.core
    stable = sum(node.stable for node in found.circuits[0].nodes)
    return (
        measured.ablation.value,
        f"{measured.whole.value:.2f}",
        f"{measured.empty.value:.2f}",
        "not reached" if measured.nodes_for_80 is None else str(measured.nodes_for_80),
        f"{circuit.faithfulness.value:.2f} [{circuit.faithfulness.low:.2f}, {circuit.faithfulness.high:.2f}]",
        f"{circuit.completeness.value:.2f}",
        f"{max(measured.random):.2f}" if measured.random else "",
        f"{measured.p_value:.3f}" if measured.p_value is not None else "",
        f"{stable} of {circuit.nodes}",
        "" if core is None else f"{core.faithfulness.value:.2f}",
    )


def _split(
    hosted: HostedModel, task: str, data: Path, sizes: Sizes
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    tokens: Tokens = lambda text: len(hosted.encode(text))  # noqa: E731
    long = task in ("greater_than", "ioi")
    held_out = sizes.long_held_out if long else sizes.held_out
    split = split_task(task, data, tokens, training=sizes.training, held_out=held_out, seed=sizes.seed)
    return _examples(split.training), _examples(split.held_out)


def _examples(found: Sequence[DatasetExample]) -> tuple[Example, ...]:
    return tuple(
        Example(clean=one.clean, corrupted=one.corrupted, answers=one.answers, wrong=one.wrong)
        for one in found
    )


def compare_estimators(hosted: HostedModel, task: str, data: Path, sizes: Sizes) -> None:
    """Print each estimator's agreement with exact patching of single neurons, mean over training contexts."""
    training = _split(hosted, task, data, sizes)[0][:16]
    contexts = read_contexts(hosted, training, PositionRule.SUMMED, split="training")
    space = node_space(hosted, NEURONS, None, PositionRule.SUMMED, 0, ErrorTerm.LIVE)
    packed = list(packs(contexts, donor_ids(contexts, seed=0, same_length=False), hosted.model.device))
    everyone = torch.ones(1, len(contexts), dtype=torch.bool)

    def effects(which: Estimator, nodes: torch.Tensor | None = None) -> torch.Tensor:
        estimator = estimator_of(hosted, space, which, steps=5, candidates=nodes)
        work = average_effects(
            hosted, space, packed, everyone, estimator,
            patch=NodeAblation.RESAMPLE, means=(), seed=0, stage=which.value,
        )  # fmt: skip
        return finish(work).parts[0]

    order = ranked(effects(Estimator.ATTRIBUTION_PATCHING))
    top = order[: sizes.compared // 2]
    generator = torch.Generator().manual_seed(sizes.seed)
    rest = order[len(top) : 8192]
    nodes = torch.cat(
        [top, rest[torch.randperm(len(rest), generator=generator)[: sizes.compared - len(top)]]]
    )
    started = monotonic()
    exact = effects(Estimator.EXACT, nodes)[nodes]
    say(
        f"estimators against exact patching: {task}, {len(contexts)} contexts, {len(nodes)} neurons (the "
        f"{len(top)} strongest, others drawn from the next 8,192); exact took {monotonic() - started:.0f} s"
    )
    say("estimator | Pearson | Spearman | slope | seconds for all neurons")
    for which in (Estimator.ATTRIBUTION_PATCHING, Estimator.RELP, Estimator.INTEGRATED_GRADIENTS):
        started = monotonic()
        found = effects(which)[nodes]
        pearson = float(torch.corrcoef(torch.stack([found, exact]))[0, 1])
        slope = float((found @ exact) / (found @ found))
        say(
            f"{which.value} | {pearson:.3f} | {spearman(found, exact):.3f} | {slope:.2f} | "
            f"{monotonic() - started:.0f}"
        )


if __name__ == "__main__":
    main()

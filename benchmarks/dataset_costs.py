"""What is predicted of circuits of behaviours beside what they take, on SmolLM2, one core.

    python -m benchmarks.dataset_costs --transcoders ../shared/replacements/smollm2-135m-tc
    python -m benchmarks.dataset_costs --only draws low

The first eight requests are ordinary ones; in the others a bound bites: more candidates or edges are asked
for than there are nodes, layers lie high, there are many draws or clusters, or held-out contexts are long.
Seconds are processor time, memory is the peak beyond what was resident before; both are of this process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Any

import torch

from benchmarks.dataset_tasks import Tokens, split_task
from benchmarks.laws import load_model
from benchmarks.replacements import NAME, load_set
from benchmarks.resident import peak_bytes, reset_peak
from trephine.app.circuits.dataset_circuit_costs import dataset_circuit_cost
from trephine.app.jobs.costs import Sets
from trephine.client.types import DatasetExample
from trephine.domain.dataset_circuits import (
    ERRORS,
    HEADS,
    CheckDatasetCircuit,
    DiscoverDatasetCircuit,
    Discretion,
    Estimator,
    Example,
    NodeAblation,
    PositionRule,
    Subsampling,
)
from trephine.engine.dataset_circuits.checking import check_dataset_circuit
from trephine.engine.dataset_circuits.discovery import discover_dataset_circuit
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.replacements.residency import return_freed_memory
from trephine.engine.replacements.sets import require_set
from trephine.server.places import default_cache

FEW = Discretion(edge_nodes=0, curve=False, random_circuits=2)
KEPT: dict[str, Any] = {"positions": PositionRule.KEPT}
MEAN, ZERO, RESAMPLE = (NodeAblation.MEAN,), (NodeAblation.ZERO,), (NodeAblation.RESAMPLE,)
NO_DRAWS = Subsampling(draws=0)
FILLER = "It was late, the rain had not stopped for days, and nobody in the house had slept. "


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One request."""

    kind: str
    """`ordinary`, or what bites."""
    task: str
    training: int
    held_out: int
    options: dict[str, Any]
    longer: int = 0
    """Sentences in front of every held-out context and its twin."""


def _case(kind: str, task: str, training: int, held_out: int, longer: int = 0, **options: Any) -> Case:
    return Case(kind=kind, task=task, training=training, held_out=held_out, longer=longer, options=options)


CASES = (
    _case("ordinary", "simple", 32, 16, size=Discretion()),
    _case("ordinary", "simple", 32, 16, replacement=NAME, **KEPT, size=Discretion()),
    _case(
        "ordinary", "within_rc", 32, 8, replacement=NAME, beside=(ERRORS, HEADS), **KEPT,
        patch=NodeAblation.MEAN, ablations=(*MEAN, *RESAMPLE), size=replace(FEW, random_circuits=5),
    ),
    _case("ordinary", "simple", 48, 16, **KEPT, clusters=4, ablations=RESAMPLE, size=FEW),
    _case("ordinary", "ioi", 24, 8, **KEPT, ablations=MEAN, size=FEW),
    _case(
        "ordinary", "ioi", 16, 6, replacement=NAME, **KEPT, ablations=RESAMPLE,
        size=replace(FEW, edge_nodes=8),
    ),
    _case("ordinary", "simple", 24, 8, estimator=Estimator.INTEGRATED_GRADIENTS, steps=2, size=FEW),
    _case("ordinary", "simple", 24, 8, estimator=Estimator.EXACT, exact_nodes=64, size=FEW),
    _case(
        "exact", "simple", 12, 12, replacement=HEADS, layers=(29,), estimator=Estimator.EXACT,
        exact_nodes=4096, ablations=ZERO, size=Discretion(),
    ),
    _case(
        "edges", "simple", 12, 12, ablations=MEAN,
        size=Discretion(nodes=5, edge_nodes=512, curve=False, random_circuits=0),
    ),
    _case("low", "simple", 24, 24, layers=(29,), size=Discretion()),
    _case(
        "low", "within_rc", 20, 20, layers=(28, 29), estimator=Estimator.INTEGRATED_GRADIENTS, steps=20,
        size=Discretion(edge_nodes=0),
    ),
    _case(
        "draws", "within_rc", 20, 20, **KEPT, ablations=RESAMPLE, size=replace(FEW, random_circuits=1),
        stability=Subsampling(draws=600),
    ),
    _case(
        "draws", "within_rc", 20, 20, ablations=RESAMPLE, clusters=4, size=replace(FEW, random_circuits=1),
        stability=Subsampling(draws=600),
    ),
    _case(
        "clusters", "simple", 110, 16, clusters=0, ablations=ZERO, size=replace(FEW, random_circuits=0),
        stability=NO_DRAWS,
    ),
    _case(
        "long", "within_rc", 12, 6, longer=24, ablations=ZERO, size=replace(FEW, random_circuits=1),
        stability=NO_DRAWS,
    ),
    _case(
        "long", "within_rc", 12, 6, longer=24, ablations=RESAMPLE, size=replace(FEW, random_circuits=1),
        stability=NO_DRAWS,
    ),
)  # fmt: skip


def say(line: str) -> None:
    """Write a line at once: a case takes up to a minute."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Print the table; 1 if a prediction is off by more than a factor of two."""
    given = _arguments().parse_args()
    torch.set_num_threads(1)
    session, sets = Session(hosted=load_model(given.model)), {}
    if given.transcoders is not None:
        load_set(session, given.transcoders)
        sets = {NAME: require_set(session.require_model(), NAME).admitted.layers}
    _warm(session, given.data)
    worst = 1.0
    say("kind\trequest\ttokens\tseconds\tpredicted\tratio\tMB\tpredicted\tratio")
    for case in CASES:
        if given.only and case.kind not in given.only:
            continue
        if case.options.get("replacement") == NAME and NAME not in sets:
            continue
        worst = max(worst, _row(session, sets, case, given.data))
    say(f"worst factor {worst:.2f}")
    return int(worst > 2)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=default_cache() / "models" / "smollm2")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--transcoders", type=Path, help="A set for SmolLM2; left out: neurons only.")
    parser.add_argument("--only", nargs="+", choices=sorted({case.kind for case in CASES}), help="Kinds.")
    return parser


def _warm(session: Session, data: Path) -> None:
    """Page the model in: what a first pass reads of it is no request's."""
    small = _case("warm", "simple", 4, 4, ablations=ZERO, size=FEW)
    finish(discover_dataset_circuit(session, _request(small, data, _length(session))))


def _length(session: Session) -> Tokens:
    hosted = session.require_model()
    return lambda text: len(hosted.encode(text))


def _row(session: Session, sets: Sets, case: Case, data: Path) -> float:
    """Print a line; return the factor that a prediction is off by."""
    hosted = session.require_model()
    command = _request(case, data, _length(session))
    checked = finish(check_dataset_circuit(session, CheckDatasetCircuit(command=command)))
    cost = dataset_circuit_cost(command, hosted.info, sets, checked.tokens)
    return_freed_memory()
    before, started = reset_peak(), process_time()
    finish(discover_dataset_circuit(session, command))
    seconds, taken = process_time() - started, peak_bytes() - before
    ratios = cost.seconds / seconds, cost.memory_bytes / max(1, taken)
    lengths = f"{checked.tokens.longest}, {checked.tokens.training}, {checked.tokens.held_out}"
    say(
        f"{case.kind}\t{_words(case)}\t{lengths}\t{seconds:.1f}\t{cost.seconds:.1f}\t{ratios[0]:.2f}"
        f"\t{taken / 1e6:.0f}\t{cost.memory_bytes / 1e6:.0f}\t{ratios[1]:.2f}"
    )
    return max(max(ratio, 1 / ratio) for ratio in ratios)


def _request(case: Case, data: Path, tokens: Tokens) -> DiscoverDatasetCircuit:
    split = split_task(case.task, data, tokens, training=case.training, held_out=case.held_out, seed=0)
    return DiscoverDatasetCircuit(
        training=_examples(split.training, 0), held_out=_examples(split.held_out, case.longer), **case.options
    )


def _examples(found: Sequence[DatasetExample], longer: int) -> tuple[Example, ...]:
    front = FILLER * longer
    return tuple(
        Example(
            clean=front + one.clean,
            corrupted=None if one.corrupted is None else front + one.corrupted,
            answers=tuple(one.answers),
            wrong=tuple(one.wrong),
        )
        for one in found
    )


def _words(case: Case) -> str:
    named = {key: value for key, value in case.options.items() if key not in ("size", "stability")}
    size = case.options["size"]
    told = [*(f"{key}={value}" for key, value in named.items()), f"edges={size.edge_nodes}"]
    return f"{case.task} {case.training}+{case.held_out} {' '.join(told)}"


if __name__ == "__main__":
    sys.exit(main())

"""What texts that are left out tell a head: `python -m benchmarks.shift_heads`.

On agreement with twins, with every feature in place: the worst group of the test texts by the head without
the attribute as its training texts make it, with the threshold that left-out texts tell, and with the
shrinkage that they tell as well, for few twins and many. The oracle is trained on balanced texts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean

import torch

from benchmarks.laws import load_model
from benchmarks.shift_arms import Bench, attributes, command, labels, oracle
from benchmarks.shift_tasks import Sizes, tasks
from trephine.domain.sites import NEURONS
from trephine.engine.models.quanta import finish
from trephine.engine.spurious.erasing import changed_directions, fit_each
from trephine.engine.spurious.examples import labels as labels_of
from trephine.engine.spurious.heads import LinearHead
from trephine.engine.spurious.metrics import worst_group
from trephine.engine.spurious.pooling import Readout
from trephine.engine.spurious.settling import settle
from trephine.engine.spurious.study import open_study
from trephine.engine.spurious.vectors import Vectors, pool_vectors
from trephine.server.places import default_cache

TWINS = (10, 20, 40, 75)


def main() -> None:
    """Print one line per number of twins, means over the seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=default_cache() / "models" / "smollm2")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10, 20)))
    given = parser.parse_args()
    torch.set_num_threads(1)
    task, hosted = tasks(given.data)["agreement-twins"], load_model(given.model)
    found: dict[int, list[tuple[float, ...]]] = {count: [] for count in TWINS}
    best = list[float]()
    for number, seed in enumerate(given.seeds, 1):
        bench = Bench(hosted=hosted, task=task, draw=task.draw(seed, Sizes()), seed=seed)
        sys.stderr.write(f"seed {seed}, {number} of {len(given.seeds)}\n")
        study = finish(open_study(hosted, command(bench, NEURONS)))
        everything = finish(pool_vectors(study, (), "texts", study.everything, attribute=True))
        best.append(worst(bench, torch.tensor(oracle(bench)) > 0))
        for count in TWINS:
            found[count].append(heads(bench, fewer(everything, count), study.readout))
    say("| twins | as training texts make it | threshold by left-out texts | shrinkage, too | oracle |")
    say("|---|---|---|---|---|")
    for count, rows in found.items():
        shares = " | ".join(f"{100 * mean(column):.1f}" for column in zip(*rows, strict=True))
        say(f"| {count} | {shares} | {100 * mean(best):.1f} |")


def heads(bench: Bench, vectors: Vectors, readout: Readout) -> tuple[float, ...]:
    """Return the worst group by the head as it is, with its threshold settled, and its shrinkage as well."""
    each = partial(without_attribute, readout)

    def as_noise_asks(seen: Vectors, factors: Sequence[float]) -> list[LinearHead | None]:
        return each(seen, [1.0] * len(factors))

    ways = (
        each(vectors, (1.0,))[0],
        *(finish(settle(fit, vectors, seed=0))[0] for fit in (as_noise_asks, each)),
    )
    if None in ways:
        raise SystemExit("nothing but the attribute tells the labels apart")
    test = bench.plain("test")
    return tuple(worst(bench, head.margin(test) > 0) for head in ways if head is not None)


def without_attribute(
    readout: Readout, vectors: Vectors, factors: Sequence[float]
) -> list[LinearHead | None]:
    """Train heads that nothing of what the twins change can move, as the product does."""
    twins, y = vectors.twins, labels_of(vectors.texts)
    directions = changed_directions(vectors.pooled[twins.rows], twins.vectors)
    return fit_each(readout, vectors.pooled, y, directions, factors, twins=twins)


def fewer(vectors: Vectors, count: int) -> Vectors:
    """Keep so many of the twins, as many of either label as there are; no text is lost."""
    rows = vectors.twins.rows.tolist()
    y = [vectors.texts[row].label for row in rows]
    of_label = [[place for place, label in enumerate(y) if label == which] for which in (0, 1)]
    kept = sorted([*of_label[0][: count // 2], *of_label[1][: count - count // 2]])
    twinned = {rows[place] for place in kept}
    texts = tuple(one if row in twinned else replace(one, twin=None) for row, one in enumerate(vectors.texts))
    twins = replace(vectors.twins, rows=vectors.twins.rows[kept], vectors=vectors.twins.vectors[kept])
    return replace(vectors, texts=texts, twins=twins)


def worst(bench: Bench, decided: torch.Tensor) -> float:
    """Accuracy of the worst group of the test texts."""
    return worst_group(decided.long(), labels(bench.draw.test), attributes(bench.draw.test))


def say(line: str) -> None:
    """Write a line."""
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()

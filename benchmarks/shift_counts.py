"""How many features go, by a fifth of the twins and by all of them: `python -m benchmarks.shift_counts`.

For every number of features that the product tries: the bits of the label that the head without the attribute
tells of texts and their twins, of a fifth of them by a head that was trained on the rest, of all of them by
heads that were trained without them by turns; and the worst group of the test texts, which the product never
sees.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.laws import load_model
from benchmarks.shift_arms import Bench, attributes, command, labels
from benchmarks.shift_tasks import Sizes, tasks
from trephine.domain.sites import NEURONS
from trephine.engine.models.quanta import finish
from trephine.engine.spurious.choosing import choose, in_order
from trephine.engine.spurious.erasing import heads_on
from trephine.engine.spurious.examples import Example
from trephine.engine.spurious.examples import labels as labels_of
from trephine.engine.spurious.heads import LinearHead
from trephine.engine.spurious.information import Paired
from trephine.engine.spurious.judging import judge_features
from trephine.engine.spurious.metrics import worst_group
from trephine.engine.spurious.study import open_study
from trephine.engine.spurious.vectors import Vectors, pool_vectors
from trephine.server.places import default_cache


def main() -> None:
    """Print one line per seed and number of features."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=default_cache() / "models" / "smollm2")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13])
    given = parser.parse_args()
    torch.set_num_threads(1)
    task, hosted = tasks(given.data)["agreement-twins"], load_model(given.model)
    say("| seed | features | bits of a fifth of the twins | of all, by turns | worst test group, % | |")
    say("|---|---|---|---|---|---|")
    for seed in given.seeds:
        report(Bench(hosted=hosted, task=task, draw=task.draw(seed, Sizes()), seed=seed))


def report(bench: Bench) -> None:
    """Print the lines of one seed, over neurons."""
    study = finish(open_study(bench.hosted, command(bench, NEURONS)))
    candidates = finish(judge_features(study)).candidates
    choice = finish(choose(study, candidates))
    _, ours = in_order(study, candidates)
    everything, fitted = study.everything, range(len(study.fitted))
    texts, y, known = bench.ids(bench.draw.test), labels(bench.draw.test), attributes(bench.draw.test)
    for point in (one for one in choice.points if one.erased):
        gone = [one.feature for one in ours[: point.count]]
        vectors = finish(pool_vectors(study, gone, "all", everything, attribute=True))
        tried, final = (
            finish(heads_on(study, part, erased=True)).erased for part in (vectors.only(fitted), vectors)
        )
        if tried is None or final is None:
            raise SystemExit("nothing but the attribute tells the labels apart")
        fifth = on_twins(tried, vectors.only(range(len(fitted), len(everything))))
        test = worst_group(final.decide(bench.pool(texts, gone)), y, known)
        taken = "taken" if point == choice.point else ""
        shares = f"{fifth:.2f} | {point.criterion:.2f} ± {point.error:.2f} | {100 * test:.1f}"
        say(f"| {bench.seed} | {point.count} | {shares} | {taken} |")


def on_twins(head: LinearHead, vectors: Vectors) -> float:
    """Return the bits of the label that a head tells of texts that have a twin, and of the twins."""
    rows = vectors.twins.rows
    paired: Sequence[Example] = [vectors.texts[row] for row in rows.tolist()]
    texts, twins = (head.margin(one).double() for one in (vectors.pooled[rows], vectors.twins.vectors))
    told = Paired(labels=labels_of(paired), texts=texts, twins=twins)
    return told.mean(told.information())[0]


def say(line: str) -> None:
    """Write a line at once: a seed takes minutes."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

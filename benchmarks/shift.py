"""Spurious-feature removal beside every baseline: `python -m benchmarks.shift [--tasks ...]`.

Per task and seed all texts are drawn anew; every arm decides on the same test texts. Margins are kept in
`--out`, so that an interrupted run goes on where it stopped and a finished one only prints. They are kept for
the code and the texts that they came of: where either changes, the run is done anew.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from time import process_time

import torch

from benchmarks.kept_runs import KeptRuns, code_of
from benchmarks.laws import load_model
from benchmarks.replacements import NAME, load_set
from benchmarks.shift_arms import FEATURE_ARMS, PLAIN_ARMS, Bench, Margins
from benchmarks.shift_figures import Gate, Table, data_gates, decided, gate_line, table_lines, targets
from benchmarks.shift_pairs import pair_lines, pair_table
from benchmarks.shift_pronouns import note
from benchmarks.shift_random import NAME as RANDOM
from benchmarks.shift_random import reside_random
from benchmarks.shift_tasks import Draw, Item, Sizes, Task, tasks
from trephine.domain.sites import NEURONS
from trephine.engine.models.session import Session
from trephine.server.places import default_cache

DICTIONARIES = {"neurons": NEURONS, "transcoders": NAME, "random": RANDOM}
TASKS = ("biographies", "agreement", "agreement-twins", "reward")
SEEDS = 5
OURS = "removed, erased"
ORACLES = ("oracle", "oracle, least variance")
"""The first, the usual, penalised head, is the targets'; the second, trained as ours is, is better."""
DECIDERS = (
    "benchmarks.shift_arms",
    "benchmarks.shift_random",
    "trephine.domain.spurious_heads",
    "trephine.domain.spurious_removal",
    "trephine.domain.spurious_repeats",
    "trephine.domain.spurious_texts",
    "trephine.engine.attribution.adjoints",
    "trephine.engine.dataset_circuits",
    "trephine.engine.erasure",
    "trephine.engine.features.statistics",
    "trephine.engine.models.hosted",
    "trephine.engine.attribution.operators",
    "trephine.engine.runs.partial_passes",
    "trephine.engine.replacements",
    "trephine.engine.spurious",
)
"""What turns texts into decisions. Who draws the texts is not among them: texts are looked at themselves."""
PUBLISHED = """Published, in another setting (Marks et al. 2025: Gemma-2-2B, SAEs on attention, MLPs and the
stream, Bias in Bios, mean-pooled layer 22, a person judges every feature): profession / gender / worst group
  original 67.7 / 81.9 / 18.2, SHIFT 76.0 / 51.5 / 50.0, SHIFT + retrain 95.0 / 52.4 / 92.9,
  random features 67.3 / 82.3 / 18.0, concept bottleneck 90.2 / 50.1 / 86.7, neuron skyline 65.1 / 84.3 / 5.6,
  feature skyline 80.8 / 53.7 / 56.7, oracle 95.0 / 50.6 / 93.1"""


def say(line: str = "") -> None:
    """Write a line at once: runs take minutes."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run what was asked for and is not kept yet, then print every table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=default_cache() / "models" / "smollm2")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--transcoders", type=Path, default=Path("../shared/replacements/smollm2-135m-tc"))
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS)
    parser.add_argument("--dictionaries", nargs="*", choices=DICTIONARIES, default=tuple(DICTIONARIES))
    arms = (*PLAIN_ARMS, *FEATURE_ARMS)
    parser.add_argument("--arms", nargs="*", choices=arms, default=arms, help="What is run; all is printed.")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="How many.")
    parser.add_argument(
        "--first-seed", type=int, help="Unset: the first of those that a task is reported over."
    )
    parser.add_argument("--test", type=int, default=Sizes().test, help="Texts per group and seed.")
    parser.add_argument("--out", type=Path, default=Path("out/shift"), help="Folder that keeps margins.")
    parser.add_argument(
        "--seconds", type=float, help="Stop after so much processor time; run again to go on."
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = tasks(given.data)
    runs = Runs(given)
    for name in given.tasks:
        for seed in seeds_of(known[name], given):
            runs.run(known[name], seed)
    say(f"processor time of this run: {process_time():.0f} s")
    for name in given.tasks:
        report(known[name], runs, given)
    say(f"\n## pronouns\n{note(given.data / 'winogenerated.jsonl')}")
    say(f"\n{PUBLISHED}")


class Runs:
    """Margins of arms, out of the file where they are there."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._sizes = Sizes(test=given.test)
        self._files: dict[str, KeptRuns] = {}
        self._code = code_of(*DECIDERS)
        self._texts: dict[tuple[str, int], str] = {}
        self._session: Session | None = None

    def cells(self) -> Iterator[tuple[str, str | None]]:
        """List arms that are run at once, with their dictionary."""
        yield from ((arm, None) for arm in PLAIN_ARMS)
        for name in self._given.dictionaries:
            yield from ((arm, name) for arm in (FEATURE_ARMS if name != RANDOM else ("removal",)))

    def run(self, task: Task, seed: int) -> None:
        """Run what is missing of a seed, if there is time."""
        missing = [
            cell for cell in self.cells()
            if cell[0] in self._given.arms and self.get(task, seed, *cell) is None
        ]  # fmt: skip
        if not missing or self._over():
            return
        session = self._open()
        bench = Bench(hosted=session.require_model(), task=task, draw=task.draw(seed, self._sizes), seed=seed)
        for arm, dictionary in missing:
            if self._over():
                return
            started = process_time()
            if dictionary is None:
                answer = {arm: PLAIN_ARMS[arm](bench)}
            else:
                if dictionary == RANDOM:
                    reside_random(bench)
                answer = FEATURE_ARMS[arm](bench, DICTIONARIES[dictionary])
            self._kept(task, dictionary).keep(arm, self._request(task, seed, arm, dictionary), answer)
            say(f"{task.name}, seed {seed}, {arm} {dictionary or ''}: {process_time() - started:.0f} s")

    def get(self, task: Task, seed: int, arm: str, dictionary: str | None) -> dict[str, Margins] | None:
        """Return margins by arm, if they are kept."""
        found = self._kept(task, dictionary).get(arm, self._request(task, seed, arm, dictionary))
        return None if found is None else {name: found[name] for name in found if name != "_wrote_graph"}

    def _kept(self, task: Task, dictionary: str | None) -> KeptRuns:
        """One file per task and dictionary, so that two runs of different ones do not meet."""
        name = f"{task.name}-{dictionary or 'plain'}"
        return self._files.setdefault(name, KeptRuns(self._given.out / f"{name}.json"))

    def complete(self, task: Task, seed: int, name: str | None) -> bool:
        """True if removal with a dictionary, or every arm without one, is kept."""
        wanted = [cell for cell in self.cells() if cell[1] == name and cell[0] != "skyline"]
        return all(self.get(task, seed, *cell) is not None for cell in wanted)

    def table(self, task: Task, seeds: Sequence[int]) -> Table:
        """Put all arms beside each other that are kept for all of these seeds."""
        tests = [self.test(task, seed) for seed in seeds]
        decisions = {arm: list(map(decided, found)) for arm, found in self._by_arm(task, seeds).items()}
        return Table(
            decisions,
            [[one.label for one in test] for test in tests],
            [[one.attribute for one in test] for test in tests],
        )

    def pair_table(self, task: Task, seeds: Sequence[int]) -> Table:
        """The same by the pairs that they rank right."""
        return pair_table(self._by_arm(task, seeds), [self.test(task, seed) for seed in seeds])

    def _by_arm(self, task: Task, seeds: Sequence[int]) -> dict[str, list[Margins]]:
        margins: dict[str, list[Margins]] = {}
        for arm, name in self.cells():
            found = [answer for seed in seeds if (answer := self.get(task, seed, arm, name)) is not None]
            if len(found) < len(seeds):
                continue
            for key in found[0]:
                if not key.startswith("_"):
                    place = key if name is None else f"{key} ({name})"
                    margins[place] = [answer[key] for answer in found]
        return margins

    def test(self, task: Task, seed: int) -> tuple[Item, ...]:
        """Return a seed's test texts."""
        return task.draw(seed, self._sizes).test

    def _over(self) -> bool:
        return self._given.seconds is not None and process_time() > self._given.seconds

    def _open(self) -> Session:
        if self._session is None:
            self._session = Session(hosted=load_model(self._given.model))
            if "transcoders" in self._given.dictionaries:
                load_set(self._session, self._given.transcoders)
        return self._session

    def _request(self, task: Task, seed: int, arm: str, dictionary: str | None) -> dict[str, object]:
        return {
            "graph": "", "task": task.name, "layer": task.layer, "pooling": task.pooling.value,
            "pairs": task.pairs, "seed": seed,
            "sizes": asdict(self._sizes), "arm": arm, "dictionary": dictionary,
            "model": self._given.model.name, "code": self._code, "texts": self._texts_of(task, seed),
        }  # fmt: skip

    def _texts_of(self, task: Task, seed: int) -> str:
        """Digest of a seed's texts, and of what an arm is told beside them."""
        key = (task.name, seed)
        if key not in self._texts:
            told = (task.labels, task.attributes, task.listed, task.concepts, task.neutral)
            self._texts[key] = texts_digest(task.draw(seed, self._sizes), *told)
        return self._texts[key]


def texts_digest(draw: Draw, *told: object) -> str:
    """Digest all splits of a draw, in order, with whatever else is told."""
    return hashlib.sha256(repr((asdict(draw), told)).encode()).hexdigest()


def distinct_texts(tests: Iterable[Sequence[Item]]) -> tuple[int, int]:
    """Return how many different texts the group of fewest has, and that of most, over all seeds."""
    found = defaultdict[tuple[int, int], set[str]](set)
    for one in chain.from_iterable(tests):
        found[one.label, one.attribute].add(one.text)
    counts = [len(texts) for texts in found.values()]
    return min(counts), max(counts)


def seeds_of(task: Task, given: argparse.Namespace) -> range:
    """Return the seeds that were asked for, or those that a task is reported over."""
    first = task.first_seed if given.first_seed is None else given.first_seed
    return range(first, first + given.seeds)


def report(task: Task, runs: Runs, given: argparse.Namespace) -> None:
    """Print a task's table over the complete seeds, and one more for a dictionary that has fewer of them."""
    say(f"\n## {task.name}")
    plain = [seed for seed in seeds_of(task, given) if runs.complete(task, seed, None)]
    if not plain:
        say("no seed is complete yet: run it again")
        return
    everything = runs.table(task, plain)
    _print_table(task, everything)
    least, most = distinct_texts([runs.test(task, seed) for seed in plain])
    say(f"of the test texts of a group {least} to {most} are different ones, over all seeds")
    if task.pairs:
        _print_pairs(task, runs.pair_table(task, plain))
    _print_gates("counts as a data set", data_gates(everything))
    for name in given.dictionaries:
        seeds = [seed for seed in plain if runs.complete(task, seed, name)]
        if not seeds:
            say(f"{name}: no seed is complete yet")
            continue
        table = everything if seeds == plain else runs.table(task, seeds)
        if seeds != plain:
            say(f"{name}, over the seeds {', '.join(map(str, seeds))} alone:")
            _print_table(task, table)
        for seed in seeds:
            found = runs.get(task, seed, "removal", name) or {}
            removed, spurious, considered = found["_counts"]
            say(f"{name}, seed {seed}: {removed} of {spurious} spurious features removed, of {considered}")
        for oracle in ORACLES:
            _print_gates(f"targets, {name}, by {oracle}", targets(table, f"{OURS} ({name})", oracle))


def _print_table(task: Task, table: Table) -> None:
    texts, seeds = table.texts
    say(
        f"{task.labels[0]} or {task.labels[1]}, with {task.attributes[0]} or {task.attributes[1]}; "
        f"resid_post of layer {task.layer}, {task.pooling.value}-pooled; {texts} test texts per group over "
        f"{seeds} seeds; per cent [95 %]"
    )
    for each in table_lines(table):
        say(each)


def _print_pairs(task: Task, table: Table) -> None:
    pairs, seeds = table.texts
    say(
        f"pairs of {task.labels[1]} and {task.labels[0]}, {pairs} of every kind ({task.attributes[0]} or "
        f"{task.attributes[1]}, of either) over {seeds} seeds; per cent [95 %]"
    )
    for each in pair_lines(table):
        say(each)


def _print_gates(title: str, gates: Sequence[Gate]) -> None:
    for gate in gates:
        say(gate_line(title, gate))


if __name__ == "__main__":
    main()

"""A preference head with a spurious attribute: `python -m benchmarks.shift_preferences`.

A linear reward at the stock site (final norm, last token, one output) is trained on pairs by Bradley and
Terry's model: in every pair of the ambiguous set the better reply is helpful and flatters, the worse one
evades and is plain. It is saved as a stock `*ForSequenceClassification` folder of one output and handed to
the product as its `RewardHead`, which trains no head: features do all of the work. Beside it the same head
under token deletion, after LEACE, and on balanced pairs, and the gates of the bench. Decisions are kept in
`--out`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from benchmarks.kept_runs import KeptRuns, code_of
from benchmarks.laws import load_model
from benchmarks.shift import DECIDERS, say, texts_digest
from benchmarks.shift_arms import PLAIN_ARMS, Bench, Decisions, command, labels
from benchmarks.shift_export import at_the_stock_site
from benchmarks.shift_figures import Table, data_gates, gate_line, table_lines, targets
from benchmarks.shift_tasks import Item, Sizes, Task, preferences
from trephine.domain.sites import NEURONS
from trephine.domain.spurious_heads import RewardHead
from trephine.domain.spurious_removal import RemoveSpuriousFeatures, Standing
from trephine.engine.quanta import finish
from trephine.engine.spurious.choosing import choose
from trephine.engine.spurious.controls import matched_features
from trephine.engine.spurious.heads import LinearHead, reward_head
from trephine.engine.spurious.judging import judge_features
from trephine.engine.spurious.logistic import fit_logistic
from trephine.engine.spurious.study import open_study
from trephine.server.places import default_cache

REFERENCES = ("original", "token deletion", "LEACE", "oracle")
OURS = "removed (neurons)"
SIZES = Sizes(training=150, examples=100)
PENALTY = 1e-2
"""As of the bench's probes."""


class PreferenceBench(Bench):
    """A task whose head is a reward."""

    def head(self, pooled: Tensor, items: Sequence[Item]) -> LinearHead:
        """Train a reward on pairs; the better label is above the threshold that is most accurate on these."""
        y = labels(items)
        return reward_head(fit_preference(pooled, y, seed=self.seed), None, pooled, y)


def fit_preference(pooled: Tensor, y: Tensor, *, seed: int) -> Tensor:
    """Fit a linear reward by Bradley and Terry's model, P(a over b) = sigmoid(reward(a) - reward(b)).

    Args:
        pooled: `(n, d_model)`.
        y: `(n,)`, 1 for the better replies, 0 for the worse ones; each is in one pair.
        seed: Decides who meets whom.

    Returns:
        float32 `(1, d_model)`.
    """
    generator = torch.Generator().manual_seed(seed)
    better, worse = ((y == label).nonzero()[:, 0] for label in (1, 0))
    better, worse = (rows[torch.randperm(len(rows), generator=generator)] for rows in (better, worse))
    met = min(len(better), len(worse))
    first = torch.arange(met) % 2  # which of a pair stands first says nothing
    apart = (pooled[better[:met]] - pooled[worse[:met]]) * (2 * first - 1)[:, None]
    weight, _ = fit_logistic(apart, first, penalty=PENALTY, stock=True)
    return weight.float()[None]


def main() -> None:
    """Run what is not kept yet, print the table, the gates and the targets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=default_cache() / "models" / "smollm2")
    parser.add_argument("--seeds", type=int, default=5, help="How many.")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--training", type=int, default=SIZES.training, help="Ambiguous texts per label.")
    parser.add_argument("--examples", type=int, default=SIZES.examples, help="Of the attribute, per value.")
    parser.add_argument("--test", type=int, default=SIZES.test, help="Texts per group and seed.")
    parser.add_argument("--gates-alone", action="store_true", help="Leave the removal out.")
    parser.add_argument("--out", type=Path, default=Path("out/shift-preferences"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    task, runs = at_the_stock_site(preferences()), Runs(given)
    report(task, [runs.run(task, given.first_seed + number) for number in range(given.seeds)])


class Runs:
    """Decisions of seeds, out of the file where they are there."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._sizes = Sizes(training=given.training, examples=given.examples, test=given.test)
        self._code = code_of(*DECIDERS, "benchmarks.shift_preferences")
        self._hosted: Any = None

    def run(self, task: Task, seed: int) -> dict[str, Any]:
        """Return labels, attributes and decisions by arm, running what is missing."""
        draw, given = task.draw(seed, self._sizes), self._given
        kept = KeptRuns(given.out / f"{task.name}.json")
        request: dict[str, Any] = {
            "seed": seed, "sizes": asdict(self._sizes), "model": given.model.name, "code": self._code,
            "texts": texts_digest(draw, task.listed),
        }  # fmt: skip
        arms: dict[str, Any] = {}
        bench: PreferenceBench | None = None
        for name in (*REFERENCES, *(() if given.gates_alone else ("removal",))):
            answer = kept.get(name, request)
            if answer is None:
                started = monotonic()
                self._hosted = self._hosted or load_model(given.model)
                bench = bench or PreferenceBench(hosted=self._hosted, task=task, draw=draw, seed=seed)
                answer = {name: PLAIN_ARMS[name](bench)} if name in PLAIN_ARMS else removal(bench)
                kept.keep(name, request, answer)
                say(f"{task.name}, seed {seed}, {name}: {monotonic() - started:.0f} s")
            arms |= {arm: found for arm, found in answer.items() if arm != "_wrote_graph"}
        y, a = ([getattr(one, name) for one in draw.test] for name in ("label", "attribute"))
        return {"seed": seed, "arms": arms, "y": y, "a": a}


def removal(bench: PreferenceBench) -> dict[str, Decisions]:
    """Ours on the saved reward, and as many random features: no head is trained."""
    with tempfile.TemporaryDirectory(prefix="trephine-bench-preferences-") as scratch:
        folder = save_reward(bench, Path(scratch) / "reward")
        study = finish(open_study(bench.hosted, asked(bench, folder)))
    judged = finish(judge_features(study))
    choice = finish(choose(study, judged.candidates))
    spurious = [one for one in judged.candidates if one.standing is Standing.SPURIOUS]
    random = matched_features(study.space, choice.removed, spurious, judged.use, bench.seed + 100)
    texts, gone = bench.ids(bench.draw.test), [one.feature for one in choice.removed]
    return {
        OURS: choice.head.decide(bench.pool(texts, gone)).tolist(),
        "random (neurons)": study.head.decide(bench.pool(texts, random)).tolist(),
        "_counts": [len(gone), len(spurious), study.space.count],
    }


def asked(bench: PreferenceBench, folder: Path) -> RemoveSpuriousFeatures:
    """What a user would ask for, of a reward that stands in a folder."""
    positive = f"1 {bench.task.labels[1]}"
    return replace(
        command(bench, NEURONS),
        decision=RewardHead(folder=str(folder), positive_label=positive),
        refit=False,
        erase=False,
        neutral_examples=False,
    )


def save_reward(bench: PreferenceBench, folder: Path) -> Path:
    """Write the reward of the ambiguous pairs as a stock classifier of one output."""
    y = labels(bench.draw.training)
    model = AutoModelForSequenceClassification.from_pretrained(
        bench.hosted.folder, num_labels=1, dtype=torch.float32
    )
    with torch.no_grad():
        model.score.weight.copy_(fit_preference(bench.plain("training"), y, seed=bench.seed))
    model.save_pretrained(folder)
    return folder


def report(task: Task, found: Sequence[dict[str, Any]]) -> None:
    """Print the table over all seeds, the gates and the targets."""
    arms = [arm for arm in found[0]["arms"] if not arm.startswith("_")]
    table = Table(
        {arm: [one["arms"][arm] for one in found] for arm in arms},
        [one["y"] for one in found],
        [one["a"] for one in found],
    )
    texts, seeds = table.texts
    say(f"\n## {task.name}; {texts} test texts per group over {seeds} seeds; per cent [95 %]")
    for each in table_lines(table):
        say(each)
    for one in found:
        if "_counts" in one["arms"]:
            removed, spurious, considered = one["arms"]["_counts"]
            say(f"seed {one['seed']}: {removed} of {spurious} spurious features removed, of {considered}")
    gates = [("counts as a data set", gate) for gate in data_gates(table)]
    gates += [("targets", gate) for gate in (targets(table, OURS) if OURS in arms else [])]
    for title, gate in gates:
        say(gate_line(title, gate))


if __name__ == "__main__":
    main()
    sys.exit(0)

"""Decisions of the bench of spurious features are kept for the code and the texts that they came of."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import shift
from benchmarks.shift import DECIDERS, Runs, report, seeds_of
from benchmarks.shift_arms import PLAIN_ARMS
from benchmarks.shift_tasks import Draw, Item, Sizes, Task
from trephine.domain.spurious_heads import Pooling
from trephine.domain.spurious_repeats import distinct
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.features.statistics import benjamini_hochberg
from trephine.engine.models.hosted import HostedModel
from trephine.engine.runs.partial_passes import ending_at
from trephine.engine.spurious.removal import remove_spurious_features

ANSWER = {"original": [0, 1]}


def drawn(word: str, seed: int, sizes: Sizes) -> Draw:
    """One text in every split."""
    items = (Item(text=f"{word} {seed}", label=0, attribute=0),) * sizes.test
    return Draw(training=items, crossed=items, examples=items, validation=items, test=items)


def task(word: str = "word") -> Task:
    """A task whose texts hold a word."""
    return Task(
        name="planted", labels=("a", "b"), attributes=("c", "d"), layer=1, pooling=Pooling.MEAN, listed=(),
        concepts=(), draw=lambda seed, sizes: drawn(word, seed, sizes), first_seed=5,
    )  # fmt: skip


@pytest.fixture
def given(tmp_path: Path) -> Namespace:
    """What is asked for, without a model."""
    return Namespace(
        out=tmp_path, test=2, model=Path("models/smollm2"), dictionaries=["neurons"], seconds=None,
        arms=tuple(PLAIN_ARMS), seeds=3, first_seed=None,
    )  # fmt: skip


def keep(runs: Runs, task: Task) -> None:
    """Keep an answer as a run does."""
    runs._kept(task, None).keep("original", runs._request(task, 5, "original", None), ANSWER)


def test_decisions_outlive_the_bench_while_code_and_texts_stay(given):
    """A second bench finds what the first kept."""
    keep(Runs(given), task())
    assert Runs(given).get(task(), 5, "original", None) == ANSWER


def test_other_texts_are_another_run(given):
    """A word of a generator, or of what an arm is told beside the texts, has it done anew."""
    keep(Runs(given), task())
    again = Runs(given)
    assert again.get(task("other"), 5, "original", None) is None
    told = Runs(given)
    assert told.get(replace(task(), listed=("word",)), 5, "original", None) is None


def test_other_code_is_another_run(given, monkeypatch):
    """So has a change of what turns texts into decisions, and another model."""
    keep(Runs(given), task())
    monkeypatch.setattr(shift, "code_of", lambda *names: "changed")
    assert Runs(given).get(task(), 5, "original", None) is None
    monkeypatch.undo()
    given.model = Path("models/other")
    assert Runs(given).get(task(), 5, "original", None) is None


def test_what_decides_is_among_the_deciders():
    """Arms of the bench, the product's removal, and what that reads texts and adjusts p-values by."""
    modules = {run.__module__ for run in PLAIN_ARMS.values()} | {remove_spurious_features.__module__}
    modules |= {
        one.__module__ for one in (benjamini_hochberg, distinct, ending_at, FrozenOperators, HostedModel)
    }
    assert all(any(name.startswith(decider) for decider in DECIDERS) for name in modules)


def test_the_first_seed_can_be_chosen(given):
    """Unset, it is the task's own."""
    assert list(seeds_of(task(), given)) == [5, 6, 7]
    given.first_seed = 0
    assert list(seeds_of(task(), given)) == [0, 1, 2]


def test_a_finished_task_of_pairs_is_printed_with_how_they_are_ranked(given, capsys):
    """The table of decisions, then one of pairs; what goes by the attribute ranks crossed pairs wrong."""
    test = tuple(
        Item(text=f"{tones} {number} {label}", label=label, attribute=tone, pair=f"{tones} {number}")
        for tones in ((0, 1), (1, 0), (0, 0), (1, 1))
        for number in range(3)
        for label, tone in enumerate(tones)
    )
    paired = replace(
        task(), pairs=True, draw=lambda seed, sizes: replace(drawn("word", seed, sizes), test=test)
    )
    given.dictionaries, given.seeds = [], 1
    by_tone, by_answer = ([2.0 * getattr(one, by) - 1 for one in test] for by in ("attribute", "label"))
    runs = Runs(given)
    for arm in PLAIN_ARMS:
        margins = by_tone if arm == "original" else by_answer
        runs._kept(paired, None).keep(arm, runs._request(paired, 5, arm, None), {arm: margins})
    report(paired, Runs(given), given)
    said = capsys.readouterr().out
    assert "| original | 0.0 [0.0, 0.0] | 50.0" in said
    assert "of the test texts of a group 6 to 6 are different ones, over all seeds" in said
    assert "pairs of b and a, 3 of every kind (c or d, of either) over 1 seeds" in said
    assert "| original | 25.0 [25.0, 25.0] | 0.0 [0.0, 0.0] |" in said
    assert "| oracle | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] |" in said

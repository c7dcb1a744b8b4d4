"""A head that pairs train, and how arms rank them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks.shift_arms import (
    Bench,
    _balanced,
    _trained_again,
    command,
    leace,
    oracle,
    original,
    removal,
    sparing_oracle,
)
from benchmarks.shift_figures import decided
from benchmarks.shift_pairs import pair_lines, pair_table
from benchmarks.shift_tasks import GROUPS, Draw, Item, Task
from tests.builders import tiny_folder
from tests.spurious_texts import ATTRIBUTES, LABELS, labelled, paired
from tests.unit.engine.exporting import hosted_in
from trephine.domain.sites import NEURONS
from trephine.domain.spurious_heads import Pooling
from trephine.engine.models.quanta import finish
from trephine.engine.spurious.choosing import choose
from trephine.engine.spurious.heads import fit_probe
from trephine.engine.spurious.judging import judge_features
from trephine.engine.spurious.pairs import partners
from trephine.engine.spurious.study import open_study


def written(groups: list[tuple[int, int, int]], seed: int, *, pairs: bool = True) -> tuple[Item, ...]:
    """Texts for a tiny model, both of a pair beside each other."""
    texts = paired(labelled(groups, seed), f"{seed}")
    items = [
        Item(
            text=one.text,
            label=LABELS.index(one.label) if pairs else -1,
            attribute=ATTRIBUTES.index(str(one.attribute)),
            pair=one.pair if pairs else None,
        )
        for one in texts
    ]
    return tuple(sorted(items, key=lambda one: str(one.pair))) if pairs else tuple(items)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A confounded reward on a tiny model."""
    draw = Draw(
        training=written([(0, 0, 20), (1, 1, 20)], 0),
        crossed=written([(0, 1, 10), (1, 0, 10)], 1),
        examples=written([(*group, 8) for group in GROUPS], 2, pairs=False),
        validation=(),
        test=written([(*group, 6) for group in GROUPS], 3),
    )
    task = Task(
        name="planted", labels=("evasive", "helpful"), attributes=("plain", "flattering"), layer=1,
        pooling=Pooling.MEAN, listed=(), concepts=(), draw=lambda seed, sizes: draw, pairs=True,
    )  # fmt: skip
    return Bench(hosted=hosted_in(tiny_folder("llama", tmp_path / "model")), task=task, draw=draw, seed=4)


def test_the_head_is_the_products_head_of_pairs(bench: Bench):
    """And the product is asked for it, with every pair."""
    items, pooled = bench.draw.training, bench.plain("training")
    expected = fit_probe(
        bench.probe, bench.readout, pooled, torch.tensor([one.label for one in items]), partners(items)
    )
    assert bench.probe.pairs
    margins = original(bench)
    assert margins == pytest.approx(expected.margin(bench.plain("test")).tolist(), rel=1e-4, abs=1e-4)
    asked = command(bench, NEURONS)
    assert asked.decision == bench.probe
    assert [one.pair for one in asked.training] == [one.pair for one in items]


def test_the_oracle_is_trained_on_whole_pairs_of_both_kinds(bench: Bench):
    """Half of them aligned, half crossed."""
    _, items = _balanced(bench)
    pairs = partners(items)
    assert len(pairs) == len(items) / 2 == 20
    kinds = Counter((items[a].attribute, items[b].attribute) for a, b in pairs.tolist())
    assert kinds == {(0, 1): 10, (1, 0): 10}


def test_every_arm_gives_a_margin_for_every_text(bench: Bench):
    """Ours and as many random features among them."""
    found = removal(bench, NEURONS)
    found.pop("_counts")
    found |= {one.__name__: one(bench) for one in (original, leace, oracle, sparing_oracle)}
    assert all(len(each) == len(bench.draw.test) for each in found.values())
    assert all(set(decided(each)) <= {0, 1} for each in found.values())


def test_what_is_removed_is_measured_by_the_original_head(bench: Bench):
    """Trained on all texts, as that is: one of four fifths of them differs in more than the features."""
    found = removal(bench, NEURONS)
    study = finish(open_study(bench.hosted, command(bench, NEURONS)))
    choice = finish(choose(study, finish(judge_features(study)).candidates))
    assert len(study.fitted) < len(study.everything) == len(bench.draw.training)
    head = bench.head(bench.plain("training"), bench.draw.training)
    texts = bench.ids(bench.draw.test)
    without = bench.pool(texts, [one.feature for one in choice.removed])
    assert found["removed"] == pytest.approx(head.margin(without).tolist(), rel=1e-4, abs=1e-4)
    assert found["removed"] != pytest.approx(study.head.margin(without).tolist(), rel=1e-4, abs=1e-4)
    again = _trained_again(bench, study, ())
    assert again.margin(without).tolist() == head.margin(without).tolist()


def test_pairs_are_counted_by_kind_over_seeds():
    """An arm that goes by flattery ranks crossed pairs wrong, and nothing that is alike in tone."""
    tones = {"aligned": (0, 1), "crossed": (1, 0), "plain": (0, 0), "both": (1, 1)}
    test = [
        Item(text=f"{kind} {n} {label}", label=label, attribute=tone, pair=f"{kind} {n}")
        for kind, own in tones.items()
        for n in range(5)
        for label, tone in enumerate(own)
    ]
    flattered, helpful = ([float(getattr(one, by)) for one in test] for by in ("attribute", "label"))
    table = pair_table(
        {"by tone": [flattered] * 2, "by answer": [helpful] * 2, "oracle": [helpful] * 2}, [test] * 2
    )
    assert table.texts == (10, 2)
    assert table.figure("by tone", "label accuracy").value == pytest.approx(0.25)
    assert table.figure("by tone", "worst group").value == 0
    assert table.figure("by answer", "worst group").low == 1
    assert list(pair_lines(table))[2] == "| by tone | 25.0 [25.0, 25.0] | 0.0 [0.0, 0.0] |"

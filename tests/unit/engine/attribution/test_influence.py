"""Influence: the sparse back-substitution is the dense inverse, and small neurons are not forgotten."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import pytest
import torch

from tests.builders import tiny_hosted
from trephine.engine.attribution.backward import DenseCollector, sweep
from trephine.engine.attribution.expansion import NeuronBasis, expand
from trephine.engine.attribution.growing import GrowingGraph, Piece
from trephine.engine.attribution.influence import LOGIT, Cells, SparseCollector
from trephine.engine.attribution.operators import capture
from trephine.engine.attribution.readouts import logit_readout, logit_target, neuron_targets
from trephine.engine.attribution.row_blocks import block_of
from trephine.engine.attribution.targets import Explained
from trephine.engine.attribution.totals import sweep_paths
from trephine.engine.graphs.target_kinds import logit_targets_at
from trephine.engine.models.memory import MemoryMeter
from trephine.engine.models.quanta import finish

IDS = [5, 17, 44, 9]


def grown(rows, cells, at_once=7):
    """A graph of rows in blocks of a few, and its ranking."""
    graph = GrowingGraph(space=cells, device=torch.device("cpu"))
    for first in range(0, len(rows), at_once):
        graph.add(block_of(rows[first : first + at_once]))
    return graph, graph.ranking()


def solve_influence(rows, cells):
    """Influences over rows."""
    graph, ranking = grown(rows, cells)
    return graph.influence(ranking)


@pytest.fixture(autouse=True)
def _inference():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module", params=["llama", "gpt2", "gpt_neox"])
def graph(request):
    """A tiny prompt with every neuron expanded: sparse rows without a floor, and the dense scores."""
    with torch.inference_mode():
        hosted = tiny_hosted(request.param)
        operators = capture(hosted.model, hosted.architecture, IDS, layers=(0, 2))
        readout = logit_readout(hosted, 30, 12)
        cells = Cells(n_layers=3, n_pos=len(IDS), d_mlp=operators.architecture.d_mlp)
        live = torch.cat([torch.arange(2 * cells.n_pos * cells.d_mlp, cells.count), torch.arange(256)])
        every = live[live.sort(descending=True).indices]
        layer, position, index = cells.split(every)
        rows, dense = [], []
        for targets, names in (
            (logit_target(operators, readout), [LOGIT]),
            (neuron_targets(operators, layer, position, index, "relp_half"), every.tolist()),
        ):
            sparse, full = SparseCollector(operators, floor=0.0), DenseCollector(operators, len(names))
            sums = finish(sweep(operators, targets, sparse))
            finish(sweep(operators, targets, full))
            rows += sparse.rows(targets, names, sums)
            dense.append(full.scores.flatten(1))
        return operators, readout, cells, every, rows, torch.cat(dense)


@pytest.fixture(scope="module")
def explained(graph):
    """The graph's logit, as what a basis grows from."""
    operators, readout, *_ = graph
    with torch.inference_mode():
        targets = logit_targets_at(tiny_hosted("llama"), operators, [readout], operators.n_pos - 1)
    return Explained(targets=tuple(targets), n_pos=operators.n_pos)


def test_sparse_rows_hold_the_dense_scores(graph):
    """Every stored weight is the dense one, and without a floor nothing but zeros is missing."""
    *_, rows, dense = graph
    for row, scores in zip(rows, dense, strict=True):
        rebuilt = torch.zeros_like(scores)
        rebuilt[row.sources] = row.weights
        assert torch.equal(rebuilt, scores)


def test_influence_is_the_inverse_of_one_minus_the_normalised_matrix(graph):
    """The sparse solution is w (I - A)^-1, with the rows of A divided by their whole absolute mass."""
    _, _, cells, every, rows, dense = graph
    extra = torch.stack([torch.cat([row.errors, row.tokens]) for row in rows])
    scores = torch.cat([dense, extra], 1).double().abs()
    scores /= scores.sum(1, keepdim=True).clamp_min(1e-300)
    matrix = torch.zeros(scores.shape[1], scores.shape[1], dtype=torch.float64)
    matrix[every] = scores[1:]
    expected = torch.linalg.solve((torch.eye(len(matrix)) - matrix).T, scores[0])
    influence = solve_influence(rows, cells)
    got = torch.cat([influence.neurons, influence.errors, influence.tokens]).double()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)
    assert float(influence.tokens.sum() + influence.errors.sum()) == pytest.approx(1.0, abs=1e-4)
    assert influence.all_neurons == pytest.approx(float(expected[: cells.count].sum()), rel=1e-4)


def test_total_effects_are_sums_over_all_paths(graph, explained):
    """A neuron's total effect is its edge to the logit plus its edges to all others times their effect."""
    operators, _, cells, every, _, dense = graph
    totals = finish(sweep_paths(operators, explained.cotangents(live=False)))
    layer, position, index = cells.split(every)
    activation = torch.stack([frozen.activation for frozen in operators.layers])[layer, position, index]
    effect = totals.neurons.flatten()[every]
    through = (effect / activation) @ dense[1:] + dense[0]
    torch.testing.assert_close(totals.neurons.flatten(), through, rtol=1e-3, atol=1e-5)


def test_the_floor_drops_only_what_is_below_it(graph):
    """With a floor every neuron above that share of the mass is kept, and none below it."""
    operators, readout, cells, _, rows, dense = graph
    collector = SparseCollector(operators, floor=1e-3)
    target = logit_target(operators, readout)
    row = collector.rows(target, [LOGIT], finish(sweep(operators, target, collector)))[0]
    assert set(row.sources.tolist()) == set((dense[0].abs() > 1e-3 * row.mass).nonzero().flatten().tolist())
    assert 0 < len(row.sources) < len(rows[0].sources)
    without = solve_influence([row], cells)
    assert without.all_neurons == pytest.approx(solve_influence(rows[:1], cells).all_neurons, rel=1e-5)


def test_pieces_are_joined_without_a_trace(graph):
    """Rows of several pieces put together give the same influences."""
    _, _, cells, _, rows, _ = graph
    graph, apart = grown(rows, cells)
    assert len(graph._pieces) > 1
    graph._pieces[:] = [reduce(Piece.joined, graph.pieces)]
    together = graph.ranking()
    torch.testing.assert_close(together.neurons, apart.neurons)
    torch.testing.assert_close(together.rows, apart.rows)


def test_the_frontier_is_the_largest_unexpanded(graph):
    """Expanded cells are never offered again, and the others come largest first."""
    _, _, cells, every, rows, _ = graph
    roots, ranking = grown(rows[:1], cells)
    first = roots.frontier(ranking, 5)
    assert ranking.neurons[first].tolist() == ranking.neurons.topk(5).values.tolist()
    number = {cell: row for cell, row in zip(every.tolist(), rows[1:], strict=True)}
    two, ranking = grown([rows[0], *(number[cell] for cell in first[:2].tolist())], cells)
    still_open = ranking.neurons.clone()
    still_open[first[:2]] = 0
    assert two.frontier(ranking, 3).tolist() == still_open.topk(3).indices.tolist()
    whole, ranking = grown(rows, cells)
    assert len(whole.frontier(ranking, cells.count)) == 0


def test_blocks_give_back_their_rows(graph):
    """Rows that were put together come apart as they were, without the sources that are not kept."""
    _, _, cells, every, rows, _ = graph
    kept = torch.zeros(cells.count, dtype=torch.bool)
    kept[every[::3]] = True
    halved = [replace(row, ranked=len(row.sources) // 2) for row in rows]
    for mask in (torch.ones(cells.count, dtype=torch.bool), kept):
        for ours, theirs in zip(block_of(halved).rows(mask), halved, strict=True):
            own = mask[theirs.sources]
            assert torch.equal(ours.sources, theirs.sources[own])
            assert torch.equal(ours.weights, theirs.weights[own])
            assert ours.ranked == int(own[: theirs.ranked].sum())
            for name in ("cell", "layer", "share", "mass", "total", "bias"):
                assert getattr(ours, name) == getattr(theirs, name)
            for name in ("tokens", "errors"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_a_grown_graph_holds_what_runs_between_its_rows(graph):
    """Sources that were not expanded are no longer listed; the row's mass still counts them."""
    _, _, cells, every, rows, _ = graph
    few, _ = grown(rows[:40], cells)
    expanded = set(every[:39].tolist())
    assert any(len(row.sources) for row in few.rows())
    for ours, theirs in zip(few.rows(), rows, strict=False):
        assert set(ours.sources.tolist()) == expanded & set(theirs.sources.tolist())
        assert ours.mass == theirs.mass


def test_expansion_takes_the_most_influential_neurons(graph, explained):
    """Rounds expand exactly as many neurons as asked for, each once, and rank by influence."""
    operators, *_ = graph
    expansion = finish(
        expand(
            NeuronBasis(operators=operators, explained=explained, meter=MemoryMeter(operators.device)),
            max_nodes=100,
        )
    )
    cells = [row.cell for row in expansion.rows]
    assert cells[0] == LOGIT
    assert len(cells) == len(set(cells)) == 101
    first_round = expansion.influence.neurons[torch.tensor(cells[1:])].min()
    assert first_round > 0

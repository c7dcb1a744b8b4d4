"""How many edges each row of a growing graph may store: its share at least, and all together what fits."""

from __future__ import annotations

import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import NAME, resident_set
from tests.unit.engine.graphs.test_target_laws import PROMPT
from trephine.domain.sweeps import STORED_EDGES
from trephine.engine.attribution.operators import capture
from trephine.engine.attribution.targets import Explained
from trephine.engine.graphs import basis
from trephine.engine.graphs.actives import activate
from trephine.engine.graphs.edge_room import EdgeRoom, edge_room
from trephine.engine.graphs.open_layers import layers_of
from trephine.engine.models.memory import MemoryMeter
from trephine.engine.models.quanta import finish


def test_rows_that_need_little_leave_the_rest_to_others():
    """Four rows of one edge, and a fifth that has all the others."""
    room = EdgeRoom(rows=5, edges=100, shared=50)
    assert room.grant([1, 1]) == [1, 1]
    assert room.grant([1, 1, 1000]) == [1, 1, 96]


def test_the_longest_rows_are_cut_to_one_length():
    """Of three rows that do not fit, the short one is whole."""
    assert EdgeRoom(rows=3, edges=100, shared=100).grant([80, 7, 50]) == [46, 7, 46]
    assert EdgeRoom(rows=3, edges=100, shared=100).grant([80, 7, 13]) == [80, 7, 13]


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_greedy_rows_leave_every_later_one_its_share(batch):
    """All want everything: the first get what is beyond the shares, and no more is stored than fits."""
    room = EdgeRoom(rows=1000, edges=13_000, shared=8000)
    granted = [
        count for first in range(0, 1000, batch) for count in room.grant([99] * min(batch, 1000 - first))
    ]
    assert len(granted) == 1000
    assert min(granted) >= 8
    assert 13_000 - 64 < sum(granted) <= 13_000


def test_more_rows_than_were_announced_have_a_share_each():
    """A target that is explained in parts has a row for each."""
    room = EdgeRoom(rows=2, edges=100, shared=20)
    assert room.grant([90, 90]) == [50, 50]
    assert room.grant([90, 5]) == [15, 5]
    assert room.grant([90]) == [10]


def test_a_row_may_always_store_an_edge():
    """However many rows there are."""
    assert EdgeRoom(rows=1000, edges=100, shared=50).grant([7]) == [1]


def test_without_lending_a_row_has_its_share():
    """However little the others take."""
    room = EdgeRoom(rows=5, edges=100, shared=50, lends=False)
    assert room.grant([1, 1, 90]) == [1, 1, 10]
    assert room.grant([90, 90]) == [10, 10]


@pytest.mark.parametrize(("cells", "lends"), [(65_873, True), (207_355, True), (1_159_293, False)])
def test_a_long_prompt_lends_nothing(cells, lends):
    """Of 4,096 nodes over 64, 192 and 1,024 tokens: the longest prompt's sweeps need what would be lent."""
    most = edge_room(4099, cells, torch.device("cpu")).grant([cells])[0]
    assert most == (cells if lends else STORED_EDGES // 4099)


def stored(hosted):
    """What is stored of the rows of a prompt's last sixty active features: sizes, largest first, by cell."""
    operators = capture(hosted.model, hosted.architecture, hosted.encode(PROMPT))
    active = finish(activate(hosted, operators, layers_of(NAME, hosted.replacements[NAME].covered)))
    grown = basis.FeatureBasis(
        hosted=hosted,
        operators=operators,
        active=active,
        explained=Explained(targets=(), n_pos=operators.n_pos),
        meter=MemoryMeter(operators.device, held=0),
        max_nodes=60,
    )
    sizes = {}
    for block in finish(grown.feature_rows(torch.arange(active.count - 60, active.count))):
        halves = [each.weights.abs().split(each.counts) for each in (block.ranked, block.rest)]
        for cell, ranked, rest in zip(block.cells, *halves, strict=True):
            sizes[cell] = torch.cat([ranked, rest]).sort(descending=True).values
    return sizes


@pytest.mark.parametrize("fits", [True, False])
def test_a_graph_is_whole_where_what_it_stores_fits(monkeypatch, fits):
    """However many pairs of rows and active features there are; else each row keeps its largest edges."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "jumprelu")
    whole = stored(hosted)
    edges = sum(map(len, whole.values()))
    room = edges if fits else edges // 2
    assert 0 < edges < len(whole) * max(map(len, whole.values()))
    monkeypatch.setattr(
        basis, "edge_room", lambda rows, *_: EdgeRoom(rows=rows, edges=room, shared=room // 2)
    )
    found = stored(hosted)
    assert found.keys() == whole.keys()
    assert all(torch.equal(sizes, whole[cell][: len(sizes)]) for cell, sizes in found.items())
    left = sum(map(len, found.values()))
    assert left == edges if fits else room - len(whole) < left <= room

"""Which edges of a row are stored: what is cut is small beside every edge that is certain to be shown."""

from __future__ import annotations

import torch

from trephine.engine.graphs.edge_room import EdgeRoom
from trephine.engine.graphs.stored_edges import kept_edges, largest_shown

SIZES = torch.tensor([[1.0, 2e-3, 5e-5, 5e-7, 1e-9]])


def errors(at_start, later):
    """One row, one site, three positions."""
    return torch.tensor([[[at_start, later, 0.0]]])


def tokens(value=0.0):
    """One row, three positions."""
    return torch.tensor([[0.0, value, 0.0]])


def room_of(rows, edges):
    """For all edges of so many rows."""
    return EdgeRoom(rows=rows, edges=edges, shared=edges)


def kept(mass, room=100, error=0.0, token=0.0, features=SIZES):
    """Cells kept of one row, and how many of them influences follow."""
    ranked, rest = kept_edges(
        features, errors(0.0, error), tokens(token), torch.tensor([mass]), room_of(1, room)
    )
    cells = torch.cat([ranked.sources, rest.sources])
    assert torch.equal(torch.cat([ranked.weights, rest.weights]), features[0, cells])
    assert (ranked.counts, rest.counts) == ((len(ranked.sources),), (len(rest.sources),))
    return cells.tolist(), len(ranked.sources)


def test_a_large_feature_hides_no_edge():
    """It may never be a node: the cut follows what is certain to be one, here a token's edge of 0.01."""
    assert round(float(largest_shown(SIZES, errors(0.0, -0.004), tokens(-0.01))), 6) == 0.01
    assert sorted(kept(1e3, error=-0.004, token=-0.01)[0]) == [0, 1, 2, 3]


def test_the_cut_is_never_above_the_largest_feature():
    """Errors may dwarf every feature: then it is the features' largest that counts."""
    assert float(largest_shown(SIZES, errors(0.0, 50.0), tokens())) == 1.0
    assert sorted(kept(1e3, error=50.0)[0]) == [0, 1, 2]


def test_errors_at_the_first_position_do_not_count():
    """Graphs are compared without them, and they are the largest of all."""
    assert round(float(largest_shown(SIZES, errors(900.0, 0.02), tokens())), 6) == 0.02


def test_a_row_of_features_alone_is_cut_by_its_own_largest():
    """Nothing else enters: no token, no error, one position."""
    assert float(largest_shown(SIZES, torch.zeros(1, 1, 1), torch.zeros(1, 1))) == 1.0


def test_influences_come_first_and_room_ends_the_rest():
    """Edges above the floor of the mass are ranked; of the others the largest fill what room is left."""
    features = torch.tensor([[5e-5, -2e-3, 1e-9, 6e-5, 1.0]])
    cells, ranked = kept(30.0, room=3, features=features)
    assert ranked == 2
    assert sorted(cells[:2]) == [1, 4]
    assert cells[2:] == [3]
    assert kept(30.0, room=1, features=features) == ([4], 1)


def test_rows_are_cut_one_by_one():
    """Two rows of different mass keep each what they keep alone."""
    pair = torch.cat([SIZES, SIZES.flip(1)])
    mass = torch.tensor([1e3, 1e6])
    ranked, rest = kept_edges(
        pair, errors(0.0, 0.0).repeat(2, 1, 1), tokens().repeat(2, 1), mass, room_of(2, 200)
    )
    assert ranked.counts == (1, 0)
    assert rest.counts == (2, 3)
    assert sorted([*ranked.sources.tolist(), *rest.sources[:2].tolist()]) == [0, 1, 2]
    assert sorted(rest.sources[2:].tolist()) == [2, 3, 4]


def test_only_the_row_without_room_is_cut():
    """Two rows, one of which has more than there is room for."""
    pair = torch.cat([SIZES, SIZES * torch.tensor([1.0, 0, 0, 0, 0])])
    ranked, rest = kept_edges(
        pair,
        errors(0.0, 0.0).repeat(2, 1, 1),
        tokens().repeat(2, 1),
        torch.tensor([1e3, 1e3]),
        room_of(2, 3),
    )
    assert ranked.counts == (1, 1)
    assert rest.counts == (1, 0)
    assert rest.sources.tolist() == [1]

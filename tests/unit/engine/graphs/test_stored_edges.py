"""Which edges of a row are stored: what is cut is small beside every edge that is certain to be shown."""

from __future__ import annotations

import torch

from trephine.engine.graphs.basis import NEGLIGIBLE, _kept, _largest_shown

SIZES = torch.tensor([1.0, 2e-3, 5e-5, 5e-7, 1e-9])


def errors(at_start, later):
    """One site, three positions."""
    return torch.tensor([[at_start, later, 0.0]])


def test_a_large_feature_hides_no_edge():
    """It may never be a node: the cut follows what is certain to be one, here a token's edge of 0.01."""
    bound = _largest_shown(SIZES, errors(0.0, -0.004), torch.tensor([0.0, -0.01, 0.0]))
    assert round(bound, 6) == 0.01
    kept, _ = _kept(SIZES, 1e3, NEGLIGIBLE * bound, 100)
    assert sorted(kept.tolist()) == [0, 1, 2, 3]


def test_the_cut_is_never_above_the_largest_feature():
    """Errors may dwarf every feature: then it is the features' largest that counts."""
    bound = _largest_shown(SIZES, errors(0.0, 50.0), torch.tensor([0.0, 0.0, 0.0]))
    assert bound == 1.0
    kept, _ = _kept(SIZES, 1e3, NEGLIGIBLE * bound, 100)
    assert sorted(kept.tolist()) == [0, 1, 2]


def test_errors_at_the_first_position_do_not_count():
    """Graphs are compared without them, and they are the largest of all."""
    assert round(_largest_shown(SIZES, errors(900.0, 0.02), torch.zeros(3)), 6) == 0.02


def test_a_row_of_features_alone_is_cut_by_its_own_largest():
    """Nothing else enters: no token, no error, one position."""
    assert _largest_shown(SIZES, torch.zeros(1, 1), torch.zeros(1)) == 1.0


def test_influences_come_first_and_room_ends_the_rest():
    """Edges above the floor of the mass are ranked; of the others the largest fill what room is left."""
    kept, ranked = _kept(SIZES, 30.0, 1e-8, 3)
    assert ranked == 2
    assert kept.tolist()[:2] == [0, 1]
    assert kept.tolist()[2:] == [2]

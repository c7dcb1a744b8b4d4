"""What features write scores alike whether a prompt's vectors are kept or gathered in every sweep."""

from __future__ import annotations

import pytest
import torch

from tests.resident_sets import KINDS
from tests.unit.engine.graphs.test_laws_of_sets import prepared, some_cells
from trephine.engine.graphs import writes
from trephine.engine.graphs.sweeping import segment_of, sweep_features
from trephine.engine.graphs.targets import feature_targets
from trephine.engine.models.quanta import finish


def sums_of(hosted, operators, active, kept):
    """Contributions to some features of every stretch, all sweeps sharing what is kept."""
    cells = some_cells(active, 4)
    places = active.places(cells)
    segments = segment_of(active, places)
    for segment in segments.unique().tolist():
        targets = feature_targets(hosted, operators, active, cells[segments == segment])
        yield finish(sweep_features(hosted, operators, active, targets, kept))


@pytest.mark.parametrize("kind", KINDS)
def test_kept_vectors_score_like_gathered_ones(kind, monkeypatch):
    """Every contribution is the same, whichever way, and the first sweep leaves vectors for the others."""
    with torch.inference_mode():
        hosted, operators, active = prepared("llama", kind)
        kept = writes.Writes()
        short = list(sums_of(hosted, operators, active, kept))
        monkeypatch.setattr(writes, "KEPT_BYTES", 0)
        none = writes.Writes()
        long = list(sums_of(hosted, operators, active, none))
    assert kept._kept
    assert not none._kept
    for ours, theirs in zip(short, long, strict=True):
        torch.testing.assert_close(ours.features, theirs.features, rtol=1e-5, atol=1e-6)
    assert any(sums.features.abs().max() > 0 for sums in short)


def test_spans_cover_every_feature_once_and_pad_little():
    """Random counts, some zero: spans follow each other, none is too large, no feature is left out."""
    generator = torch.Generator().manual_seed(0)
    for most in (1, 40, 1000):
        counts = torch.randint(0, 12, (50,), generator=generator) * torch.randint(
            0, 2, (50,), generator=generator
        )
        offsets = (0, *counts.cumsum(0).tolist())
        spans = list(writes.spans_of(offsets, most))
        covered = [position for span in spans for position in span.positions]
        assert covered == sorted(set(covered))
        assert set(counts.nonzero().flatten().tolist()) <= set(covered)
        for span in spans:
            own = counts[span.positions.start : span.positions.stop]
            assert span.width == int(own.max())
            assert span.rows <= writes.PADDING * int(own.sum()) or len(span.positions) == 1
            assert span.rows <= most or len(span.positions) == 1

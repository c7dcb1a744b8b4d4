"""Copies of a unit that a block quantiser leaves as they are, and whose errors cancel."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from trephine.domain.exports import GGUF_TYPES
from trephine.engine.weights.gguf_families import stored_type
from trephine.engine.weights.replicas import coarsest, copies_for, spread_rows

ROW = torch.randn(96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_copies_lie_on_the_grid(kind):
    """Quantising them again changes nothing, so that folder and file hold the same units."""
    rows = spread_rows(ROW, kind, torch.float32).float().numpy()
    stored = stored_type("", rows.shape, kind)
    again = gguf.dequantize(gguf.quantize(rows, stored), stored)
    assert np.abs(again - rows).max() <= 1e-6 * np.abs(rows).max()


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_the_mean_of_the_copies_is_far_nearer_than_one(kind):
    """By their number, and not by its root: what one leaves out the next one holds."""
    rows = spread_rows(ROW, kind, torch.float32)
    one, mean = (rows[0] - ROW).abs().max(), (rows.mean(0) - ROW).abs().max()
    assert len(rows) == copies_for(kind)
    assert float(mean) < 2 * float(one) / len(rows)


def test_without_files_a_unit_is_one_neuron():
    """Rounded to the checkpoint's own type."""
    rows = spread_rows(ROW, None, torch.bfloat16)
    assert torch.equal(rows[0], ROW.to(torch.bfloat16).double())
    assert rows.shape == (1, 96)


def test_the_coarsest_file_decides():
    """Whatever the order that files are asked for in."""
    assert coarsest(("q4_0", "q8_0")) == coarsest(("q8_0", "q4_0")) == "q4_0"
    assert coarsest(()) is None

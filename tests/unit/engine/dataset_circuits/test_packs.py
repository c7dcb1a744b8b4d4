"""Packs: contexts in one row are what they are alone, in every family."""

from __future__ import annotations

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from trephine.engine.attribution.operators import capture
from trephine.engine.dataset_circuits.contexts import Context
from trephine.engine.dataset_circuits.packs import capture_layout, donor_ids, lay_out, packs

PROMPTS = [[5, 6, 7, 8], [9, 10, 11], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51]]
CPU = torch.device("cpu")


def context(ids, twin=None):
    """A context whose metric does not matter."""
    return Context(text="", ids=tuple(ids), twin=twin, direction=torch.zeros(3), bias=0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pack_is_its_contexts_run_alone(family):
    """Equal up to float32, in which rotations and softmax run (law 7); no neighbour leaks in."""
    hosted = tiny_hosted(family, dtype=torch.float64)
    packed, start = capture_layout(hosted, lay_out(PROMPTS, CPU)), 0
    for prompt in PROMPTS:
        rows = slice(start, start := start + len(prompt))
        with torch.inference_mode():
            alone = capture(hosted.model, hosted.architecture, prompt)
        assert torch.allclose(packed.final[rows], alone.final, atol=1e-5)
        pattern = packed.layers[1].pattern[:, rows].clone()
        assert torch.allclose(pattern[:, :, rows], alone.layers[1].pattern, atol=1e-6)
        pattern[:, :, rows] = 0
        assert not pattern.any()


def test_long_splits_are_cut_into_packs_without_loss():
    """Every context is in one pack, in order, and packs stay below their size."""
    contexts = [context(range(100)) for _ in range(7)]
    found = list(packs(contexts, [c.ids for c in contexts], CPU))
    assert [pack.first for pack in found] == [0, 2, 4, 6]
    assert sum(pack.count for pack in found) == 7


def test_twins_of_another_length_are_aligned_from_the_end():
    """The sink stays the sink; what has no counterpart takes the first token after it."""
    longer, shorter = context([1, 2, 3, 4, 5]), context([1, 2, 3])
    (pack,) = packs([longer, shorter], [(9, 8, 7), (9, 8, 7, 6)], CPU)
    assert pack.donor.tolist() == [0, 1, 1, 1, 2, 3, 5, 6]


def test_without_twins_another_context_is_drawn():
    """Never the context itself while there is another one of the same length."""
    contexts = [context([k, k, k]) for k in range(4)] + [context([7, 7])]
    donors = donor_ids(contexts, seed=0, same_length=True)
    assert all(donor != one.ids and len(donor) == 3 for donor, one in zip(donors, contexts[:4], strict=False))
    assert donors[4] == (7, 7)

"""Norms that are frozen together are what each is alone."""

from __future__ import annotations

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from trephine.engine.attribution import operators


@pytest.mark.parametrize("room", [0, 1 << 30])
@pytest.mark.parametrize("family", FAMILIES)
def test_norms_together_are_norms_apart(family, room, monkeypatch):
    """All norms of a model on random inputs, one at a time and as many as there are."""
    monkeypatch.setattr(operators, "_NORMED_BYTES", room)
    architecture = tiny_hosted(family).architecture
    norms = [architecture.final_norm]
    for block in architecture.blocks:
        own = (block.attention_norm, block.attention_post_norm, block.mlp_norm, block.mlp_post_norm)
        norms += [norm for norm in own if norm is not None]
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(5, len(norms[0].gain), generator=generator) * (n + 1) for n in range(len(norms))]
    pairs = list(zip(norms, inputs, strict=True))
    with torch.inference_mode():
        together = list(operators._frozen_together(pairs, torch.float32))
        apart = [operators.freeze_norm(norm, clean, torch.float32) for norm, clean in pairs]
    for ours, theirs, clean in zip(together, apart, inputs, strict=True):
        assert ours.centred == theirs.centred
        for part in ("gain", "scale", "normed"):
            torch.testing.assert_close(getattr(ours, part), getattr(theirs, part))
        assert (ours.bias is None) == (theirs.bias is None)
        torch.testing.assert_close(ours.clean, theirs.apply(clean))

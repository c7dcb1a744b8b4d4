"""What perturbations must keep off: the directions that edited features, and projections, read."""

from __future__ import annotations

import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import resident_set
from tests.unit.engine.interventions import direction, neuron
from tests.unit.engine.weights.folders import feature
from trephine.domain.interventions import Ablate, ProjectOut, Scale
from trephine.domain.sites import SiteKind
from trephine.engine.attack.attack import _orthonormal
from trephine.engine.attack.reading import read_directions
from trephine.engine.replacements.sets import opened

V = torch.randn(32, generator=torch.Generator().manual_seed(3)).tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_what_keeps_off_changes_no_numerator_of_an_edited_feature(family):
    """In front of the norm, whose gain and centring stand between the stream and what a feature reads."""
    hosted = tiny_hosted(family)
    resident_set(hosted, "jumprelu")
    edit = (feature(1, 5, Scale(factor=2.0)), neuron(1, 7, Ablate()))
    free = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    read = _orthonormal(read_directions(hosted, edit))
    off = free - (free @ read.T) @ read
    block = hosted.architecture.blocks[1]
    with opened(hosted, "set", [1]) as layers:
        rows = [layers[1].encoders([5])[0].float(), block.mlp.W_in[7].float()]
    seen, kept = (block.mlp_norm.centre(x) * block.mlp_norm.gain.float() for x in (free, off))
    for row in rows:
        assert float((seen @ row).abs().max()) > 0.1
        assert float((kept @ row).abs().max()) < 1e-4


def test_a_projection_reads_what_it_takes_out():
    """Of a feature that is its decoder; what the encoder reads decides nothing there."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "relu")
    with opened(hosted, "set", [1]) as layers:
        decoder = layers[1].decoders([5], layers[1].info.sites_out[0])[0].float()
    column = hosted.architecture.blocks[1].mlp.W_down[:, 7].float()
    given = (
        feature(1, 5, ProjectOut()),
        neuron(1, 7, ProjectOut()),
        direction(SiteKind.MLP_OUT, 1, V, Ablate()),
    )
    found = read_directions(hosted, given)
    torch.testing.assert_close(found, torch.stack([decoder, column, torch.tensor(V)]))

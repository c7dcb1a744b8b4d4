"""What is read at every site is what the architecture's algebra says it is."""

from __future__ import annotations

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from trephine.domain.errors import LayerOutOfRangeError, UnsupportedOptionError
from trephine.domain.sites import Site, SiteKind
from trephine.engine.runs.rows import RowInput, run_rows

PROMPTS = ("When Mary and John went to the store", " the cat")


def read_all(hosted):
    """Read every site of a padded row."""
    sites = [Site(kind=kind, layer=layer) for kind in SiteKind for layer in range(3)]
    skipped = {SiteKind.RESID_MID} if hosted.architecture.blocks[0].parallel else set()
    sites = [s for s in sites if s.kind not in skipped and (s.kind is not SiteKind.EMBED or s.layer == 0)]
    rows = [RowInput(hosted.encode(prompt)) for prompt in PROMPTS]
    values = run_rows(hosted, rows, reads=sites).values[1]
    return lambda kind, layer: values[Site(kind=kind, layer=layer)]


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_residual_stream_adds_up(family):
    """Each block adds what attention and MLP write, and the next one reads the sum."""
    hosted = tiny_hosted(family, dtype=torch.float64)
    x = read_all(hosted)
    close(x(SiteKind.EMBED, 0), x(SiteKind.RESID_PRE, 0))
    for layer in range(3):
        pre, post = x(SiteKind.RESID_PRE, layer), x(SiteKind.RESID_POST, layer)
        attention, mlp = x(SiteKind.ATTN_OUT, layer), x(SiteKind.MLP_OUT, layer)
        close(post, pre + attention + mlp)
        if not hosted.architecture.blocks[layer].parallel:
            close(x(SiteKind.RESID_MID, layer), pre + attention)
        if layer < 2:
            close(x(SiteKind.RESID_PRE, layer + 1), post)


@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_are_what_the_down_projection_reads(family):
    """The MLP's output is neurons times down projection plus bias, through the post-norm if any."""
    hosted = tiny_hosted(family, dtype=torch.float64)
    x = read_all(hosted)
    for block in hosted.architecture.blocks:
        mlp = block.mlp
        u = x(SiteKind.MLP_IN, block.layer) @ mlp.W_in.T + (0 if mlp.b_in is None else mlp.b_in)
        if mlp.W_gate is None:
            expected = mlp.activation(u)
        else:
            gate = x(SiteKind.MLP_IN, block.layer) @ mlp.W_gate.T
            expected = mlp.activation(gate + (0 if mlp.b_gate is None else mlp.b_gate)) * u
        close(x(SiteKind.NEURONS, block.layer), expected)
        out = expected @ mlp.W_down.T + (0 if mlp.b_down is None else mlp.b_down)
        close(
            x(SiteKind.MLP_OUT, block.layer),
            out if block.mlp_post_norm is None else block.mlp_post_norm.module(out),
        )


def test_sites_that_do_not_exist_are_refused():
    """A missing layer and the stream between parallel branches are typed errors."""
    hosted = tiny_hosted("gpt_neox")
    row = RowInput(hosted.encode(" the"))
    with pytest.raises(LayerOutOfRangeError, match="layers 0 to 2"):
        run_rows(hosted, [row], reads=[Site(kind=SiteKind.MLP_OUT, layer=3)])
    with pytest.raises(LayerOutOfRangeError, match="`embed`"):
        run_rows(hosted, [row], reads=[Site(kind=SiteKind.EMBED, layer=1)])
    with pytest.raises(UnsupportedOptionError, match="resid_pre"):
        run_rows(hosted, [row], reads=[Site(kind=SiteKind.RESID_MID, layer=1)])

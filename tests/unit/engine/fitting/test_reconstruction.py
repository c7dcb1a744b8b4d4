import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from tests.unit.engine.fitting.fits import copying, random_dictionary
from trephine.domain.sites import Site, SiteKind
from trephine.engine.fitting.activations import read_sites
from trephine.engine.fitting.reconstruction import (
    SplicedPass,
    batchwise,
    calibrated,
    plain_logits,
    reconstruct,
    unexplained,
)

ROWS = torch.randint(3, 200, (3, 12), generator=torch.Generator().manual_seed(0))
SAE_SITES = (
    SiteKind.RESID_PRE,
    SiteKind.RESID_MID,
    SiteKind.RESID_POST,
    SiteKind.ATTN_Z,
    SiteKind.ATTN_OUT,
    SiteKind.MLP_IN,
    SiteKind.MLP_OUT,
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", SAE_SITES)
def test_splicing_what_copies_changes_nothing(family: str, kind: SiteKind):
    """SAEs that copy their input leave the logits alone, at every site of every family."""
    hosted = tiny_hosted(family, n_layers=2)
    if kind is SiteKind.RESID_MID and hosted.architecture.blocks[0].parallel:
        return
    dictionaries = [copying(0, kind), copying(1, kind)]
    with torch.no_grad():
        spliced = SplicedPass(dictionaries=dictionaries, support=calibrated)
        logits = spliced.run(hosted, ROWS)
        assert torch.allclose(logits, plain_logits(hosted, ROWS), atol=2e-4)
    assert len(spliced.targets) == 2


def test_a_splice_replaces_every_position_but_the_first():
    """At position 0 the true activation stays; everywhere else the reconstruction stands."""
    hosted = tiny_hosted("llama", n_layers=2)
    dictionary = random_dictionary(0)
    site = dictionary.place.sites_out[0]
    with torch.no_grad():
        plain = plain_logits(hosted, ROWS)
        logits = SplicedPass(dictionaries=[dictionary], support=calibrated).run(hosted, ROWS)
        x = read_sites(hosted, ROWS, [dictionary.place.site_in, site])
        made = reconstruct([dictionary], x, calibrated)
    assert torch.equal(logits[:, 0], plain[:, 0])
    assert not torch.allclose(logits[:, 1:], plain[:, 1:], atol=1e-2)
    loss = unexplained(made, x)[site]
    assert float(loss) == pytest.approx(
        float((made.outputs[site] - x[site]).square().sum(-1).mean()), rel=1e-5
    )


def test_gradients_reach_every_layer_and_nothing_is_left_behind():
    """One backward pass reaches all dictionaries; the model has neither gradients nor hooks afterwards."""
    hosted = tiny_hosted("llama", n_layers=2)
    dictionaries = [random_dictionary(0, outputs=2), random_dictionary(1)]
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hosted.model.modules())
    spliced = SplicedPass(dictionaries=dictionaries, support=batchwise(4))
    spliced.run(hosted, ROWS)[:, 1:].square().mean().backward()
    for dictionary in dictionaries:
        assert all(p.grad is not None and bool(p.grad.any()) for p in dictionary.parameters())
    assert all(p.grad is None for p in hosted.model.parameters())
    after = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hosted.model.modules())
    assert after == hooks


def test_a_gradient_through_the_splice_is_the_finite_difference():
    """The way back runs through attention, norms and later dictionaries, as a difference confirms."""
    hosted = tiny_hosted("llama", n_layers=2, dtype=torch.float64)
    dictionaries = [random_dictionary(0).double(), random_dictionary(1).double()]

    def loss() -> torch.Tensor:
        spliced = SplicedPass(dictionaries=dictionaries, support=lambda d, pre: pre.relu())
        return spliced.run(hosted, ROWS)[:, 1:].square().mean()

    loss().backward()
    gradient = dictionaries[0].b_dec.grad.clone()
    with torch.no_grad():
        step = 1e-3 * gradient / gradient.norm()
        dictionaries[0].b_dec += step
        up = float(loss())
        dictionaries[0].b_dec -= 2 * step
        down = float(loss())
    assert (up - down) / 2e-3 == pytest.approx(float(gradient.norm()), rel=1e-2)


def test_a_cross_layer_dictionary_writes_later_layers():
    """Reconstructions add up over all dictionaries that write a site."""
    first, second = random_dictionary(0, outputs=2), random_dictionary(1)
    x = {Site(kind=SiteKind.MLP_IN, layer=i): torch.randn(5, 32) for i in range(2)}
    made = reconstruct([first, second], x, calibrated)
    alone = reconstruct([second], x, calibrated)
    site = Site(kind=SiteKind.MLP_OUT, layer=1)
    written = first.write(made.activations[0], 1)
    assert torch.allclose(made.outputs[site], alone.outputs[site] + written, atol=1e-6)

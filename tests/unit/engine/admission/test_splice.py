"""Law 2 for dictionaries: reconstruction plus error is the activation, and the model runs on it."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from tests.unit.engine.replacements.fakes import layer_info, random_layer
from trephine.domain.replacements import LayerKind
from trephine.domain.sites import NEURONS, Site, SiteKind
from trephine.engine.admission.splice import (
    LayerSource,
    constants,
    encoded,
    loaded_source,
    reconstructions,
    resumed,
    run_context,
    run_copies,
    run_spliced,
    silenced,
)

IDS = [5, 17, 44, 9, 9, 301, 23, 120, 77]
RTOL = 3e-5
"""Relative to the largest logit: y^ + (y - y^) differs from y by a rounding, carried through 3 blocks."""
N_LAYERS = 3


def site(kind, layer):
    return Site(kind=kind, layer=layer)


def infos(kind):
    """Describe a set of one kind that covers every layer of a tiny model."""
    for layer in range(N_LAYERS):
        if kind is LayerKind.SAE:
            at = site(SiteKind.RESID_POST, layer)
            yield layer_info(layer, kind=kind, site_in=at, sites_out=(at,))
        elif kind is LayerKind.CROSS_LAYER_TRANSCODER:
            written = tuple(site(SiteKind.MLP_OUT, later) for later in range(layer, N_LAYERS))
            yield layer_info(layer, kind=kind, sites_out=written)
        else:
            yield layer_info(layer, kind=kind, has_skip=kind is LayerKind.SKIP_TRANSCODER)


def source_of(kind, seed=0):
    layers = {info.layer: random_layer(info, seed=seed) for info in infos(kind)}

    @contextmanager
    def opener(wanted):
        yield {layer: layers[layer] for layer in wanted}

    return LayerSource(infos=tuple(layer.info for layer in layers.values()), open=opener)


@contextmanager
def raising_mlps(hosted, kind):
    """Let every part of an MLP raise if it is called, where a transcoder stands in for all of them."""

    def refuse(module, _):
        raise AssertionError(f"{type(module).__name__} was called")

    parts = [m for block in hosted.architecture.blocks for m in list(block.mlp.module.modules())[1:]]
    handles = [] if kind is LayerKind.SAE else [m.register_forward_pre_hook(refuse) for m in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


KINDS = (
    LayerKind.TRANSCODER,
    LayerKind.SKIP_TRANSCODER,
    LayerKind.CROSS_LAYER_TRANSCODER,
    LayerKind.SAE,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_with_frozen_errors_the_model_runs_on_its_reconstructions(family, kind):
    """Law 2: no MLP is called, errors of the plain run are injected, and the logits are the plain ones."""
    hosted, source = tiny_hosted(family), source_of(kind)
    plain, values = run_context(hosted, IDS, {}, reads=source.sites)
    sums = reconstructions(source, values)
    errors = {at: values[at] - sums[at] for at in source.sites_out}
    for at in source.sites_out:
        assert torch.allclose(sums[at] + errors[at], values[at], atol=1e-5)
        assert errors[at].norm() > 0.1 * values[at].norm()  # the dictionary is random: there is an error
    with raising_mlps(hosted, kind):
        replaced = run_spliced(hosted, IDS, source, values, errors=errors)
        alone = run_spliced(hosted, IDS, source, values)
    assert (plain - replaced).abs().max() <= RTOL * plain.abs().max()
    assert (plain - alone)[1:].abs().max() > 1e-2 * plain.abs().max()  # without errors it is another model
    assert torch.allclose(alone[0], plain[0], rtol=1e-4, atol=1e-4)  # position 0 keeps its true activation


@pytest.mark.parametrize("family", FAMILIES)
def test_spliced_neurons_are_the_model(family):
    """A dictionary without error gives the plain logits."""
    hosted = tiny_hosted(family)
    source = loaded_source(hosted, NEURONS, range(N_LAYERS))
    plain, values = run_context(hosted, IDS, {}, reads=source.sites)
    assert (run_spliced(hosted, IDS, source, values) - plain).abs().max() <= RTOL * plain.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_pass_is_the_whole_pass(family):
    """Blocks below do not run and the logits are bit-identical; afterwards everything runs again."""
    hosted = tiny_hosted(family)
    at = site(SiteKind.RESID_PRE, 2)
    plain, values = run_context(hosted, IDS, {}, reads=[at])
    called = []
    module = hosted.architecture.blocks[1].attention.module
    handle = module.register_forward_hook(lambda *_: called.append(1))
    with resumed(hosted.architecture, 2, values[at]):
        again = run_context(hosted, IDS, {})[0]
    assert not called
    assert torch.equal(again, plain)
    assert torch.equal(run_context(hosted, IDS, {})[0], plain)
    assert called
    handle.remove()


def test_cross_layer_contributions_add_up():
    """A CLT's output at the last layer is the sum of what every layer below writes there."""
    hosted, source = tiny_hosted("llama"), source_of(LayerKind.CROSS_LAYER_TRANSCODER)
    _, values = run_context(hosted, IDS, {}, reads=source.sites)
    last = site(SiteKind.MLP_OUT, 2)
    parts = [written[last] for _, _, written in encoded(source, values)]
    assert len(parts) == N_LAYERS
    assert torch.allclose(sum(parts), reconstructions(source, values)[last])


def test_constants_leave_position_0_and_silence_what_they_replace():
    """Zero-ablation writes zeros after position 0, whose true output stays, and no MLP runs."""
    hosted = tiny_hosted("gemma2")
    sites = [site(SiteKind.MLP_OUT, layer) for layer in range(N_LAYERS)]
    _, values = run_context(hosted, IDS, {}, reads=sites)
    zero = {at: torch.zeros(32) for at in sites}
    with raising_mlps(hosted, LayerKind.TRANSCODER), silenced(hosted.architecture, sites):
        _, read = run_context(hosted, IDS, constants(zero, values), reads=sites)
    for at in sites:
        assert not read[at][1:].any()
        assert torch.allclose(read[at][0], values[at][0], atol=1e-5)


def test_an_sae_of_mlp_outputs_reads_what_the_mlp_wrote():
    """An MLP whose own output is read runs, whatever is written there afterwards."""
    hosted = tiny_hosted("llama")
    at = site(SiteKind.MLP_OUT, 1)
    layer = random_layer(layer_info(1, kind=LayerKind.SAE, site_in=at, sites_out=(at,)), seed=0)

    @contextmanager
    def opener(wanted):
        yield {1: layer}

    source = LayerSource(infos=(layer.info,), open=opener)
    _, values = run_context(hosted, IDS, {}, reads=[at])
    written = reconstructions(source, values)
    wanted = run_context(hosted, IDS, constants(written))[0]
    assert torch.equal(run_spliced(hosted, IDS, source, values), wanted)
    assert not torch.equal(run_context(hosted, IDS, {})[0], wanted)


def test_copies_of_a_context_are_written_each_on_its_own():
    """A row of the batch gives what it gives alone."""
    hosted = tiny_hosted("gemma2")
    at = site(SiteKind.MLP_OUT, 1)
    rows = torch.randn(3, len(IDS), 32, generator=torch.Generator().manual_seed(0))
    together = run_copies(hosted, IDS, 3, constants({at: rows}))
    for row, logits in zip(rows, together, strict=True):
        alone = run_context(hosted, IDS, constants({at: row}))[0]
        assert torch.allclose(logits, alone, rtol=0, atol=RTOL * float(alone.abs().max()))
    assert (together[0] - together[1]).abs().max() > 0.01


def test_stand_ins_go_away_after_an_exception():
    """Law 6: a module that was silenced runs again whatever happened inside."""
    hosted = tiny_hosted("llama")
    at = site(SiteKind.MLP_OUT, 0)
    before = run_context(hosted, IDS, {})[0]
    with pytest.raises(RuntimeError), silenced(hosted.architecture, [at]):
        raise RuntimeError
    assert torch.equal(run_context(hosted, IDS, {})[0], before)

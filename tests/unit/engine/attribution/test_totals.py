"""Total effects: the hand-written derivative is autograd's, for every family."""

from __future__ import annotations

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from trephine.engine.attribution.operators import capture
from trephine.engine.attribution.readouts import logit_readout
from trephine.engine.attribution.totals import sweep_totals
from trephine.engine.models.quanta import finish

IDS = [5, 17, 44, 9, 9, 301, 23, 120, 77]


def by_autograd(hosted, readout):
    """Activation times gradient, of every neuron and of the embedding, from the model's own graph."""
    kept = {}

    def keep(name):
        def hook(_module, args):
            value = args[0].clone().requires_grad_() if not args[0].requires_grad else args[0] * 1
            value.retain_grad()
            kept[name] = value
            return (value, *args[1:])

        return hook

    blocks = hosted.architecture.blocks
    handles = [b.mlp.down.register_forward_pre_hook(keep(b.layer)) for b in blocks]
    handles.append(blocks[0].module.register_forward_pre_hook(keep("embedding")))
    with torch.enable_grad():
        readout.measure(hosted.model(input_ids=torch.tensor([IDS]), use_cache=False).logits[0, -1]).backward()
    for handle in handles:
        handle.remove()
    products = {name: (value.grad * value.detach())[0] for name, value in kept.items()}
    return torch.stack([products[b.layer] for b in blocks]), products["embedding"].sum(-1)


@pytest.mark.parametrize("against", [None, 12])
@pytest.mark.parametrize("family", FAMILIES)
def test_total_effects_are_activation_times_the_true_gradient(family, against):
    """Nothing is frozen: patterns, norms, soft caps, rotary positions and gates all follow."""
    torch.set_num_threads(1)
    hosted = tiny_hosted(family)
    readout = logit_readout(hosted, 30, against)
    neurons, tokens = by_autograd(hosted, readout)
    with torch.inference_mode():
        totals, partial = (
            finish(sweep_totals(capture(hosted.model, hosted.architecture, IDS, layers), readout))
            for layers in (None, (0, 2))
        )
    torch.testing.assert_close(totals.neurons, neurons, rtol=1e-3, atol=1e-5 * float(neurons.abs().max()))
    torch.testing.assert_close(totals.tokens, tokens, rtol=1e-3, atol=1e-5 * float(tokens.abs().max()))
    assert torch.equal(partial.neurons[[0, 2]], totals.neurons[[0, 2]])
    assert not partial.neurons[1].any()
    assert partial.errors[1, -1] != 0
    assert not partial.errors[[0, 2]].any()

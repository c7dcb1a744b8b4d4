"""Law 2 for the neurons: their reconstruction is the MLP, with nothing left over."""

from __future__ import annotations

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from tests.oracles import forbidden_mlps
from trephine.engine.attribution.operators import capture

IDS = [5, 17, 44, 9, 9, 301, 23, 120, 77]
RTOL = 2e-6
"""Relative to the largest logit; the reconstruction is one float32 matrix product in another order."""


@pytest.fixture(autouse=True)
def _inference():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def reconstructions(hosted, operators):
    """`W_down a + b_down` per layer, batched."""
    outputs = []
    for layer in operators.layers:
        mlp = layer.block.mlp
        output = layer.activation @ mlp.W_down.T
        outputs.append((output if mlp.b_down is None else output + mlp.b_down)[None])
    return outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_runs_on_its_neurons_alone(family):
    """With MLPs that raise if called, the reconstruction alone gives the model's logits."""
    hosted = tiny_hosted(family)
    operators = capture(hosted.model, hosted.architecture, IDS)
    ids = torch.tensor([IDS])
    plain = hosted.model(input_ids=ids).logits
    with forbidden_mlps(hosted.architecture, reconstructions(hosted, operators)):
        replaced = hosted.model(input_ids=ids).logits
    assert (plain - replaced).abs().max() <= RTOL * 10 * plain.abs().max()


def test_a_forbidden_mlp_raises():
    """The harness itself works: an MLP that is called, or any part of it, raises."""
    hosted = tiny_hosted("llama")
    operators = capture(hosted.model, hosted.architecture, IDS)
    mlp = hosted.architecture.blocks[1].mlp
    with forbidden_mlps(hosted.architecture, reconstructions(hosted, operators)):
        for module in (mlp.module, mlp.down):
            with pytest.raises(AssertionError, match="was called"):
                module(torch.zeros(1, 1, module.in_features if module is mlp.down else 32))
    assert hosted.architecture.blocks[1].module.mlp is mlp.module


@pytest.mark.parametrize("family", FAMILIES)
def test_capture_leaves_no_hook_behind(family):
    """The hooks of a capture are gone after it, and after one that fails."""
    hosted = tiny_hosted(family)

    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hosted.model.modules())

    before = hooks()
    capture(hosted.model, hosted.architecture, IDS)
    assert hooks() == before
    with pytest.raises(IndexError):
        capture(hosted.model, hosted.architecture, [10**6])
    assert hooks() == before

"""Laws 2 to 4 on SmolLM2. A whole discovery is tested on what the demo found."""

from __future__ import annotations

import pytest
import torch

from benchmarks.laws import AGAINST, PROMPT, TARGET, load_model, measure_laws
from trephine.engine.attribution.readouts import logit_readout

pytestmark = [pytest.mark.real, pytest.mark.integration]


@pytest.fixture(scope="module")
def hosted(smollm2):
    """SmolLM2 in float32."""
    torch.set_num_threads(1)
    return load_model(smollm2)


def test_laws_two_to_four_hold(hosted, smollm2):
    """Neurons alone give the logits; rows sum; at least 200 edges match the oracle within 1e-4."""
    readout = logit_readout(hosted, hosted.resolve_target(TARGET), hosted.resolve_target(AGAINST))
    precise = load_model(smollm2, torch.float64)
    figures = measure_laws(hosted, precise, PROMPT, readout, layer_stride=9)
    assert figures.law2 <= 1e-5
    assert figures.law3 <= 1e-5
    assert figures.edges >= 200
    assert figures.edges_at_start >= 20
    assert figures.worst <= 1e-4
    assert figures.pearson > 1 - 1e-8
    assert figures.relative <= 1e-4

"""Laws 2 to 4 for a set that is built for SmolLM2 on the spot."""

from __future__ import annotations

import pytest
import torch

from benchmarks.built_sets import TRANSCODER, build_set
from benchmarks.laws import load_model
from benchmarks.set_laws import measure_set_laws
from trephine.engine.readouts import logit_readout

pytestmark = [pytest.mark.real, pytest.mark.integration]

TEXT = (
    "The capital of France is Paris, and the capital of Italy is Rome. When it rains in the north, "
    "farmers of the south wait for the river to rise. She opened the letter, read it twice and said nothing."
)
PROMPT = "The capital of France is"


def test_a_built_set_obeys_the_laws(smollm2):
    """Frozen errors give the logits back, rows sum, and 50 edges are interventions on a float64 pass."""
    torch.set_num_threads(1)
    hosted, precise = load_model(smollm2), load_model(smollm2, torch.float64)
    name = build_set(hosted, TRANSCODER, (3, 11, 19, 27), hosted.encode(TEXT))
    target = logit_readout(hosted, hosted.resolve_target(" Paris"))
    laws = measure_set_laws(hosted, precise, name, hosted.encode(PROMPT), target, targets=2)
    assert laws.active > 100
    assert laws.law2 < 3e-5
    assert laws.law3 < 2e-5
    assert laws.edges >= 50
    assert laws.worst < 1e-4
    assert laws.pearson > 0.999999

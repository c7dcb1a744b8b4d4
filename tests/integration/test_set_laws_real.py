"""Laws 2 to 4 for a set that is built for SmolLM2 on the spot."""

from __future__ import annotations

import pytest
import torch

from benchmarks.built_sets import SAE, TRANSCODER, build_set
from benchmarks.laws import load_model
from benchmarks.set_laws import measure_set_laws
from trephine.domain.sites import NEURONS, SiteKind
from trephine.engine.attribution.readouts import logit_readout

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
    laws = measure_set_laws(hosted, precise, [name], hosted.encode(PROMPT), target, targets=2)
    assert laws.active > 100
    assert laws.law2 < 3e-5
    assert laws.law3 < 2e-5
    assert laws.edges >= 50
    assert laws.worst < 1e-4
    assert laws.pearson > 0.999999


def test_a_graph_over_several_sets_obeys_the_laws(smollm2):
    """Dictionaries on attention and on MLPs of the same layers, and neurons in all other MLPs."""
    torch.set_num_threads(1)
    hosted, precise = load_model(smollm2), load_model(smollm2, torch.float64)
    ids = hosted.encode(TEXT)
    layers = (3, 11, 19, 27)
    build_set(hosted, TRANSCODER, layers, ids)
    build_set(hosted, SAE, layers, ids, sae_site=SiteKind.ATTN_OUT, name="attention")
    target = logit_readout(hosted, hosted.resolve_target(" Paris"))
    sets = (TRANSCODER.value, "attention", NEURONS)
    laws = measure_set_laws(hosted, precise, sets, hosted.encode(PROMPT), target, targets=3)
    assert laws.layers == 34
    assert laws.active > 100_000  # every neuron of 26 layers, at every position but the first
    assert laws.law2 < 3e-5
    assert laws.law3 < 2e-5
    assert laws.edges >= 60
    assert laws.worst < 1e-4
    assert laws.pearson > 0.999999

"""A model that computes NaN or infinity gives no graph and no verdict, and is told so."""

from __future__ import annotations

import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import resident_set
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import DiscoverCircuit, NodeKind
from trephine.domain.errors import NonFiniteValueError
from trephine.domain.sites import NEURONS
from trephine.domain.verification import VerificationOptions, VerifyCircuit
from trephine.engine.attribution.finite_runs import require_finite
from trephine.engine.attribution.operators import capture
from trephine.engine.graphs.discover import discover_circuit
from trephine.engine.models.quanta import finish
from trephine.engine.verification.verify import verify_on

PROMPT = "When Mary went to the store John gave a drink to"
BROKEN = {
    "what block 0 reads": lambda model: model.embed_tokens.weight,
    "what block 2 reads": lambda model: model.layers[1].mlp.down_proj.weight,
    "what the last norm reads": lambda model: model.layers[2].mlp.down_proj.weight,
    "what it gives": lambda model: model.norm.weight,
}


def broken(hosted, where, value=float("nan")):
    """Put a value that is no number into a weight."""
    weight = BROKEN[where](hosted.model.model)
    weight[(slice(None), *[0] * (weight.dim() - 1))] = value
    return hosted


def asked(replacement=NEURONS):
    """A small discovery."""
    return DiscoverCircuit(
        prompt=PROMPT,
        target=LogitTarget(token=" Mary"),
        replacement=replacement,
        max_feature_nodes=30,
        verify_nodes=0,
    )


@pytest.mark.parametrize("where", BROKEN)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_place_where_numbers_end_is_named(where, value):
    """The lowest one, in words."""
    hosted = broken(tiny_hosted("llama"), where, value)
    with torch.inference_mode():
        operators = capture(hosted.model, hosted.architecture, hosted.encode(PROMPT))
    with pytest.raises(NonFiniteValueError, match=f"first in {where}:") as caught:
        require_finite(operators)
    assert caught.value.context["field"] == "model"


@pytest.mark.parametrize("kind", [NEURONS, "relu"])
def test_no_graph_is_made_of_it(kind):
    """Over neurons and over a set; without the check a row would be said to break a law."""
    hosted = tiny_hosted("llama")
    name = kind if kind == NEURONS else resident_set(hosted, kind)
    broken(hosted, "what block 2 reads")
    with pytest.raises(NonFiniteValueError):
        finish(discover_circuit(hosted, asked(name)))


def test_no_verdict_is_passed_on_it():
    """A circuit that was found before is not verified by such a run."""
    hosted = tiny_hosted("llama")
    circuit = finish(discover_circuit(hosted, asked()))
    kept = tuple(n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.FEATURE)
    broken(hosted, "what block 2 reads")
    command = VerifyCircuit(circuit=circuit, kept=kept, options=VerificationOptions(nodes=100))
    with pytest.raises(NonFiniteValueError):
        finish(verify_on(hosted, command))

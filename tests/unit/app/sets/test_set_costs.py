"""Predicted costs of work whose size is that of a loaded set, not of the model's MLPs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.dataset_examples import request
from tests.unit.app.circuits.test_circuit_costs import transcoders
from tests.unit.app.house import discover_command, model_info, small_circuit
from tests.unit.app.sets.test_replacements import loaded
from trephine.app.jobs.costs import Cost, Sets, predict_beside
from trephine.domain.circuits import Circuit
from trephine.domain.dataset_circuits import ERRORS, HEADS, Estimator
from trephine.domain.sites import NEURONS
from trephine.domain.tokens import Tokenize
from trephine.domain.verification import Substitute, VerificationOptions, VerifyCircuit

INFO = replace(model_info("tiny"), n_layers=30, d_model=576, d_mlp=1536, n_heads=9)
NARROW = transcoders()
WIDE = tuple(replace(one, d_sae=16 * 2048) for one in NARROW)
TOP = WIDE[20:]


def verified(sets: Sets, **changes: Any) -> Cost:
    """The predicted cost of verifying a circuit over the set `sae`."""
    circuit: Circuit = replace(small_circuit(), replacement="sae", **changes)
    command = VerifyCircuit(circuit=circuit, kept=(0,), options=VerificationOptions(control=False))
    return predict_beside(command, INFO, sets)


def test_masks_of_a_verification_are_as_wide_as_the_set():
    """Sixteen times the features take about sixteen times the masks; layers that were closed take none."""
    narrow, wide = verified({"sae": NARROW}), verified({"sae": WIDE})
    assert wide.memory_bytes > 10 * narrow.memory_bytes
    assert wide.memory_bytes > 3 * 256 * 30 * 16 * 2048 * 4
    assert verified({"sae": TOP}).memory_bytes < wide.memory_bytes / 2
    assert verified({"sae": WIDE}, layers=(3,)).memory_bytes < wide.memory_bytes / 8
    assert wide.tokens == narrow.tokens
    assert verified({}) == verified({"other": WIDE})


def test_mean_ablation_holds_the_logits_of_its_text():
    """Passes of 512 tokens read all neurons, and the logits of 1,024 tokens stay; zeros need neither."""
    info = replace(INFO, d_vocab=49_152)
    zero, mean = (
        predict_beside(
            VerifyCircuit(
                circuit=small_circuit(), kept=(0,), options=VerificationOptions(substitutes=(kind,))
            ),
            info,
            {},
        ).memory_bytes
        for kind in (Substitute.ZERO, Substitute.MEAN)
    )
    assert mean > 4 * (1024 * 49_152 + 512 * (49_152 + 30 * 1536))
    assert zero < mean / 2


def test_the_random_dictionary_beside_it_is_as_wide_as_the_set():
    """Its weights are part of the prediction."""
    command = VerifyCircuit(
        circuit=replace(small_circuit(), replacement="sae"), kept=(0,), options=VerificationOptions()
    )
    beside, alone = (
        predict_beside(replace(command, options=VerificationOptions(control=control)), INFO, {"sae": WIDE})
        for control in (True, False)
    )
    assert beside.memory_bytes - alone.memory_bytes == 2 * 30 * 16 * 2048 * 576 * 2


def test_nodes_of_a_dataset_circuit_are_the_features_of_its_sets():
    """By width, by the layers that the set has, and of neurons whatever sets there are."""
    over = replace(request(), replacement="sae")
    narrow, wide = (predict_beside(over, INFO, {"sae": layers}) for layers in (NARROW, WIDE))
    assert wide.memory_bytes > 2 * narrow.memory_bytes
    assert predict_beside(over, INFO, {"sae": TOP}).memory_bytes < 0.6 * wide.memory_bytes
    only = replace(over, layers=(3,))
    assert predict_beside(only, INFO, {"sae": WIDE}).memory_bytes < 0.4 * wide.memory_bytes
    neurons = replace(over, replacement=NEURONS)
    assert predict_beside(neurons, INFO, {"sae": WIDE}) == predict_beside(neurons, INFO, {})


def test_a_gradient_on_the_way_counts_the_layers_that_there_are():
    """Of a set that covers a third of the model, a third of the sweeps; errors have as many layers."""
    steps = {"estimator": Estimator.INTEGRATED_GRADIENTS, "steps": 60}
    over = replace(request(), replacement="sae", **steps)
    whole, third = (predict_beside(over, INFO, {"sae": layers}).tokens for layers in (WIDE, TOP))
    assert third < 0.4 * whole
    for beside in ((ERRORS,), (HEADS,)):
        both = replace(over, beside=beside)
        assert predict_beside(both, INFO, {"sae": TOP}).tokens > 1.8 * third


@pytest.mark.parametrize("command", [Tokenize(text="x"), discover_command()])
def test_other_commands_cost_what_they_cost_alone(command):
    """Only work that grows with a set looks at sets."""
    assert predict_beside(command, INFO, {"sae": WIDE}) == predict_beside(command, INFO, {})


def test_admission_counts_what_a_discovery_is_predicted_to_take():
    """Six transcoders and the neurons of all other MLPs, 25 tokens, 256 nodes: 1,430 MB were measured."""
    some = [layer for layer in NARROW if layer.layer % 6 == 0 or layer.layer == 29]
    info = replace(INFO, d_vocab=49_152, n_parameters=134_515_008)
    asked = replace(discover_command(), prompt="x" * 75, replacement="some", beside=(NEURONS,))
    command = replace(asked, max_feature_nodes=256, verify_nodes=0)
    cost = predict_beside(command, info, {"some": some})
    assert 0.5 <= cost.memory_bytes / 1430e6 <= 2
    longer = predict_beside(replace(command, prompt="x" * 750), info, {"some": some})
    assert longer.memory_bytes > cost.memory_bytes


async def test_a_model_predicts_with_the_sets_on_its_shelf(tmp_path: Path):
    """What is loaded beside it is what is counted."""
    here = await loaded(tmp_path)
    command = VerifyCircuit(
        circuit=replace(small_circuit(), replacement="small"), kept=(0,), options=VerificationOptions()
    )
    info = await here.models.info("tiny")
    sets = here.models.shelf("tiny").layers
    assert [layer.d_sae for layer in sets["small"]] != [info.d_mlp] * info.n_layers
    assert await here.models.predict_command("tiny", command) == predict_beside(command, info, sets)
    assert predict_beside(command, info, sets) != predict_beside(command, info, {})

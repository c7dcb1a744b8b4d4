"""Law 3: everything that enters a target sums to the target."""

from __future__ import annotations

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from trephine.engine.attribution.backward import DenseCollector, sweep
from trephine.engine.attribution.operators import capture
from trephine.engine.attribution.readouts import logit_readout, logit_target, neuron_targets
from trephine.engine.models.quanta import finish

IDS = [5, 17, 44, 9, 9, 301, 23, 120, 77]
FLOAT32 = 2e-5
"""Of a row's absolute mass: float32 rounding over three blocks."""


def tolerance(hosted):
    """RMS norms of transformers compute in float32 in every dtype, layer norms do not."""
    exact = hosted.info.dtype == "float64" and hosted.architecture.final_norm.centred
    return 1e-10 if exact else FLOAT32


@pytest.fixture(autouse=True)
def _inference():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def some_targets(operators, rule):
    """Neurons of every layer at the first, a middle and the last position."""
    n_layers, n_pos = len(operators.layers), operators.n_pos
    cells = [(x, p, i) for x in reversed(range(n_layers)) for p in (n_pos - 1, 4, 0) for i in (3, 40)]
    layer, position, index = torch.tensor(cells).T
    return neuron_targets(operators, layer, position, index, rule)


def rules(hosted):
    return ("relp_half", "read", "gate") if hosted.architecture.blocks[0].mlp.gated else ("relp_half", "read")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layers", [None, (0, 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_sum_to_neurons(family, layers, dtype):
    """Edges, errors and bias of a neuron's read-outs sum to g, u (without their bias) and a."""
    hosted = tiny_hosted(family, dtype=dtype)
    operators = capture(hosted.model, hosted.architecture, IDS, layers)
    for rule in rules(hosted):
        targets = some_targets(operators, rule)
        collector = DenseCollector(operators, len(targets.total))
        sums = finish(sweep(operators, targets, collector))
        total = collector.scores.sum((1, 2, 3)) + sums.tokens.sum(1) + sums.errors.sum((1, 2)) + sums.bias
        assert ((total - targets.total).abs() / sums.mass).max() < tolerance(hosted)
        torch.testing.assert_close(sums.total, total, rtol=1e-4, atol=1e-5)
        mass = (
            collector.scores.abs().sum((1, 2, 3)) + sums.tokens.abs().sum(1) + sums.errors.abs().sum((1, 2))
        )
        torch.testing.assert_close(sums.mass, mass)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_sum_to_the_logits(family):
    """Edges, errors and bias of a logit sum to the model's own logit, before the soft cap."""
    hosted = tiny_hosted(family)
    operators = capture(hosted.model, hosted.architecture, IDS)
    logits = hosted.model(input_ids=torch.tensor([IDS])).logits[0, -1]
    for against in (None, 12):
        readout = logit_readout(hosted, 30, against)
        targets = logit_target(operators, readout)
        sums = finish(sweep(operators, targets, DenseCollector(operators, 1)))
        assert abs(float(sums.total) - float(readout.measure(logits))) < 1e-4
        assert abs(float(targets.total) - float(readout.measure(logits))) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_enters_from_the_future_or_from_above(family):
    """A target at layer l and position p has no source at layers >= l or positions > p."""
    hosted = tiny_hosted(family)
    operators = capture(hosted.model, hosted.architecture, IDS)
    targets = some_targets(operators, "relp_half")
    collector = DenseCollector(operators, len(targets.total))
    sums = finish(sweep(operators, targets, collector))
    for row, (layer, position) in enumerate(zip(targets.layer, targets.position, strict=True)):
        assert not collector.scores[row, layer:].any()
        assert not collector.scores[row, :, position + 1 :].any()
        assert not sums.tokens[row, position + 1 :].any()

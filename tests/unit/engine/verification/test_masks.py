"""Masks over features: the model that they leave alone, what they remove, and their derivatives."""

from __future__ import annotations

from functools import partial
from statistics import median

import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import resident_set
from trephine.domain.errors import UnsupportedOptionError
from trephine.domain.interventions import Ablate, ErrorTerm, FeatureTarget, Intervention, Selector, SetTo
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.engine.attribution.operators import capture
from trephine.engine.attribution.readouts import logit_readout
from trephine.engine.attribution.targets import Explained
from trephine.engine.graphs.open_layers import layers_of
from trephine.engine.graphs.target_kinds import logit_targets_at
from trephine.engine.models.quanta import finish
from trephine.engine.runs.rows import RowInput, run_rows
from trephine.engine.verification.ablations import mask_of
from trephine.engine.verification.choosing import Cell
from trephine.engine.verification.masks import MaskedPrompt
from trephine.engine.verification.slopes import mask_slopes

READOUT = partial(logit_readout, target_id=4, against_id=6)
IDS = (3, 5, 7, 9, 11)
FAMILIES = ("llama", "gpt2", "gemma2", "qwen3", "gpt_neox")
SETS = ("relu", "jumprelu", "topk", "skip", "clt", "resid_post")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def masked(family: str, kind: str, error_term: ErrorTerm = ErrorTerm.LIVE) -> MaskedPrompt:
    """A prompt of a tiny model over its neurons or a random set."""
    hosted = tiny_hosted(family)
    operators = capture(hosted.model, hosted.architecture, IDS)
    with torch.inference_mode():
        targets = logit_targets_at(hosted, operators, [READOUT(hosted)], len(IDS) - 1)
    return MaskedPrompt(
        hosted=hosted,
        ids=IDS,
        layers=layers_of(
            NEURONS if kind == NEURONS else resident_set(hosted, kind), range(hosted.architecture.n_layers)
        ),
        operators=operators,
        explained=Explained(targets=tuple(targets), n_pos=len(IDS)),
        error_term=error_term,
    )


def plain(prompt: MaskedPrompt, interventions: tuple[Intervention, ...]) -> float:
    """The target under interventions, by the machinery that serves ablations."""
    row = RowInput(ids=prompt.ids, interventions=interventions)
    logits = run_rows(prompt.hosted, [row], keep_last=1).logits[0][-1]
    return float(READOUT(prompt.hosted).measure(logits))


def strongest(prompt: MaskedPrompt, layer: int, position: int) -> Cell:
    """The most active feature there; any neuron is active."""
    ref = prompt.layers[layer]
    if prompt.is_of_neurons:
        return Cell(ref=ref, position=position, index=3)
    _, tape = prompt.values([prompt.ones()])
    return Cell(
        ref=ref, position=position, index=int(tape.codes[ref].activations[0, position].abs().argmax())
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [NEURONS, "jumprelu", "skip", "clt"])
def test_a_mask_of_ones_changes_no_bit(family, kind):
    """Keeping everything is the plain model, bit for bit, in every row of a batch of equal rows."""
    prompt = masked(family, kind)
    values, _ = prompt.values([prompt.ones()])
    untouched, _ = prompt.values([{}])
    assert float(values[0]) == float(untouched[0])
    assert float(values[0]) == pytest.approx(prompt.baseline, abs=1e-6)


@pytest.mark.parametrize("kind", [NEURONS, *SETS])
@pytest.mark.parametrize("substitute", [0.0, 0.7])
def test_masked_features_are_those_of_interventions(kind, substitute):
    """Removing features by a mask is what ablate or set does to them, the error term live."""
    prompt = masked("llama", kind)
    cells = [strongest(prompt, 0, 2), strongest(prompt, 1, 4)]
    operation = SetTo(value=substitute) if substitute else Ablate()
    wanted = tuple(
        Intervention(
            target=FeatureTarget(
                feature=FeatureRef(replacement=cell.ref.replacement, layer=cell.layer, index=cell.index)
            ),
            operation=operation,
            selector=Selector(positions=(cell.position,)),
        )
        for cell in cells
    )
    becomes = {layer: torch.full((prompt.width(layer),), substitute) for layer in prompt.layers}
    values, _ = prompt.values([{}, mask_of(prompt, cells)], becomes if substitute else None)
    assert float(values[1]) == pytest.approx(plain(prompt, wanted), abs=2e-5)
    assert abs(float(values[1] - values[0])) > 1e-4


@pytest.mark.parametrize("term", [ErrorTerm.FROZEN, ErrorTerm.DROP])
def test_error_terms_that_are_not_live(term):
    """With everything kept, a frozen error gives the model back and a dropped one does not."""
    prompt = masked("llama", "relu", term)
    value = float(prompt.values([prompt.ones()])[0][0])
    if term is ErrorTerm.FROZEN:
        assert value == pytest.approx(prompt.baseline, abs=1e-4)
    else:
        assert abs(value - prompt.baseline) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [NEURONS, "relu", "skip", "clt", "resid_post"])
def test_slopes_are_central_differences(family, kind):
    """The derivative by a mask value is what a small change of it does, at a masked state.

    Judged by the median: where a step flips the support of some feature above, the difference is a jump.
    """
    prompt = masked(family, kind)
    generator = torch.Generator().manual_seed(1)
    mask = {x: torch.rand(one.shape, generator=generator) for x, one in prompt.ones().items()}
    becomes = {x: 0.3 * torch.randn(prompt.width(x), generator=generator) for x in prompt.layers}
    value, slopes = finish(mask_slopes(prompt, mask, becomes))
    assert value == pytest.approx(float(prompt.values([mask], becomes)[0][0]), abs=1e-5)
    largest = max(float(one.abs().max()) for one in slopes.values())
    errors = []
    for layer, found in slopes.items():
        for place in found.abs().flatten().topk(3).indices.tolist():
            up, down = dict(mask), dict(mask)
            up[layer], down[layer] = mask[layer].clone(), mask[layer].clone()
            up[layer].view(-1)[place] += STEP
            down[layer].view(-1)[place] -= STEP
            (above, below), _ = prompt.values([up, down], becomes)
            errors.append(abs(float(above - below) / (2 * STEP) - float(found.flatten()[place])))
    # float32 forward passes are good to some 1e-6, the step is 2e-3: 1e-3 of the largest slope is noise
    assert median(errors) <= 5e-3 * largest


STEP = 2e-3


def test_slopes_need_a_live_error_term():
    """What replaces the true output passes no derivative on: refused by name."""
    prompt = masked("llama", "relu", ErrorTerm.DROP)
    with pytest.raises(UnsupportedOptionError, match="error term live"):
        finish(mask_slopes(prompt, prompt.ones(), None))

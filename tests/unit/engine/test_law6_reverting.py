"""Law 6: what an intervention does is gone after the pass, whatever happened in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.builders import FAMILIES, tiny_hosted
from tests.unit.engine.interventions import direction, neuron, whole
from trephine.domain.errors import PositionOutOfRangeError
from trephine.domain.interventions import (
    Ablate,
    AddNormScaled,
    Condition,
    Mode,
    PatternMode,
    Resample,
    Scale,
    SetTo,
)
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.engine.models.fingerprint import hash_now
from trephine.engine.models.sites import touching
from trephine.engine.runs.rows import RowInput, run_rows

PROMPT = "When Mary and John went to the store"


def hooks(model: nn.Module) -> int:
    """Count every hook of every module."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def everything(d_model: int) -> tuple:
    """Interventions of every target at many sites."""
    return (
        neuron(0, 1, Ablate()),
        neuron(
            1, 2, SetTo(value=3.0), condition=Condition(feature=FeatureRef(layer=0, index=4), at_least=-9.0)
        ),
        direction(SiteKind.RESID_POST, 1, [1.0] * d_model, AddNormScaled(fraction=0.5)),
        whole(SiteKind.ATTN_OUT, 2, Scale(factor=0.5)),
        whole(SiteKind.EMBED, 0, Scale(factor=1.1)),
        whole(SiteKind.MLP_IN, 1, Scale(factor=0.9)),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_run_after_an_intervened_one_is_bit_identical(family):
    """Applying then leaving out interventions restores logits, weights and hooks exactly."""
    hosted = tiny_hosted(family)
    row, digest, before = RowInput(hosted.encode(PROMPT)), hash_now(hosted.model), hooks(hosted.model)
    plain = run_rows(hosted, [row]).logits[0]
    changed = run_rows(hosted, [RowInput(row.ids, everything(32))]).logits[0]
    assert not torch.allclose(changed, plain, atol=1e-2)
    assert torch.equal(run_rows(hosted, [row]).logits[0], plain)
    assert hooks(hosted.model) == before
    assert hash_now(hosted.model) == digest


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_are_removed_when_the_pass_fails(family):
    """An error in the middle of the forward pass leaves no hook and no frozen pattern behind."""
    hosted = tiny_hosted(family)
    row, before = RowInput(hosted.encode(PROMPT)), hooks(hosted.model)
    plain = run_rows(hosted, [row]).logits[0]
    frozen = Mode(patterns=PatternMode.FROZEN)
    failing = neuron(1, 0, Resample(donor=" the"), mode=frozen)
    with pytest.raises(PositionOutOfRangeError, match="the donor has 1 tokens"):
        run_rows(hosted, [RowInput(row.ids, (neuron(0, 1, Ablate(), mode=frozen), failing))])
    assert hooks(hosted.model) == before
    assert torch.equal(run_rows(hosted, [row]).logits[0], plain)


def test_hooks_are_removed_when_installing_fails():
    """If the second hook cannot be installed the first one does not stay."""
    hosted = tiny_hosted("llama")
    before = hooks(hosted.model)
    touches = {
        Site(kind=SiteKind.NEURONS, layer=0): lambda x: None,
        Site(kind=SiteKind.NEURONS, layer=99): lambda x: None,
    }
    with pytest.raises(IndexError), touching(hosted.architecture, touches):
        pytest.fail("must not be entered")
    assert hooks(hosted.model) == before

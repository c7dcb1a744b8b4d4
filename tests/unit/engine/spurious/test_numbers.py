"""What is no number decides nothing: thresholds, heads, and what heads read."""

from __future__ import annotations

from math import inf, nan
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.builders import hosted_from, tiny_model
from trephine.domain.errors import HeadNotStockError, NonFiniteValueError
from trephine.domain.spurious_heads import ClassifierHead, Pooling, RewardHead
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.spurious.heads import SCORE, STOCK, given_head, two_sided
from trephine.engine.spurious.pooling import Readout, pool_texts
from trephine.rpc.wire.spurious_heads import decision_from_wire
from trephine.v1 import spurious_removal_pb2 as pb


@pytest.fixture
def hosted() -> HostedModel:
    """A tiny Llama, to be broken."""
    return hosted_from(tiny_model("llama"))


@pytest.mark.parametrize("threshold", [nan, inf, -inf])
def test_a_threshold_is_a_number(threshold: float):
    """In Python and on the wire; the field is named."""
    with pytest.raises(NonFiniteValueError) as found:
        RewardHead(folder="reward", threshold=threshold, positive_label="W")
    assert found.value.context["field"] == "decision.reward.threshold"
    reward = pb.RewardHead(source="reward", threshold=threshold, positive_label="W")
    with pytest.raises(NonFiniteValueError) as found:
        decision_from_wire(pb.DecisionHead(reward=reward))
    assert found.value.context["field"] == "decision.reward.threshold"


@pytest.mark.parametrize("value", [nan, inf])
@pytest.mark.parametrize(("outputs", "kind"), [(2, ClassifierHead), (1, RewardHead)])
def test_a_head_of_what_is_no_number_is_refused(
    hosted: HostedModel, tmp_path: Path, outputs: int, kind: type[ClassifierHead | RewardHead], value: float
):
    """NaN is on no side of a threshold, and yet it was scored as the first label."""
    score = torch.ones(outputs, hosted.info.d_model)
    score[0, 3] = value
    save_file({SCORE: score}, tmp_path / "model.safetensors")
    with pytest.raises(HeadNotStockError, match=r"score.weight of .* holds 1 numbers of"):
        finish(given_head(hosted, kind(folder=str(tmp_path)), ("Q", "W")))


def test_what_a_head_reads_is_a_number(hosted: HostedModel):
    """The text and the site are named; where the site is below what is broken, it is read."""
    texts = [tuple(hosted.encode(text)) for text in ("abc", "abcd")]
    with torch.no_grad():
        hosted.model.model.layers[1].mlp.down_proj.weight[0, 0] = nan
    assert torch.isfinite(finish(pool_texts(hosted, Readout(layer=0, pooling=Pooling.MEAN), texts))).all()
    with pytest.raises(NonFiniteValueError, match=r"the final norm's output is NaN .* on text 0 \(from 0\)"):
        finish(pool_texts(hosted, STOCK, texts))
    with pytest.raises(NonFiniteValueError, match="resid_post of layer 1 is NaN"):
        finish(pool_texts(hosted, Readout(layer=1, pooling=Pooling.MEAN), texts))


@pytest.mark.parametrize("direction", [torch.full((4,), nan), torch.full((4,), 3e38)])
def test_a_decision_is_a_number(direction: torch.Tensor):
    """Of finite weights and vectors the product may overflow, too."""
    head = two_sided(STOCK, direction, 0.0)
    assert two_sided(STOCK, torch.ones(4), 0.0).decide(torch.ones(3, 4)).tolist() == [1, 1, 1]
    with pytest.raises(NonFiniteValueError, match="the decision on 3 of 3 texts is no number"):
        head.decide(torch.ones(3, 4))

"""Grafts of a bfloat16 parent, run in bfloat16: no further from the runtime than rounding itself is."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.resident_sets import resident_set
from tests.unit.engine.weights.folders import MEASURED, compiled, feature, parent, written
from trephine.domain.interventions import Ablate
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.replacements.sets import opened
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.retain import windows_logits
from trephine.engine.weights.capture import captured, stacked

ABLATED = (feature(0, 3, Ablate()), feature(1, 5, Ablate()), feature(1, 8, Ablate()))


def fires(hosted: HostedModel) -> Tensor:
    """Return where an ablated feature is active, bool `(n_windows * n_pos,)`."""
    masks = []
    for one in ABLATED:
        ref: FeatureRef = one.target.feature
        site = Site(kind=SiteKind.MLP_IN, layer=ref.layer)
        inputs = stacked(finish(captured(hosted, MEASURED, [site], ()))[site])
        with opened(hosted, ref.replacement, [ref.layer]) as layers:
            masks.append(layers[ref.layer].encode_features(inputs, [ref.index])[:, 0] != 0)
    return torch.stack(masks).any(0)


def in_bfloat16(folder: Path) -> list[Tensor]:
    """Answers of a folder in stock transformers as it is stored."""
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    return list(stock(torch.tensor(MEASURED), use_cache=False).logits.float())


@torch.inference_mode()
def test_a_bfloat16_graft_stays_within_one_and_a_half_rounding_floors_where_it_fires(tmp_path):
    """The floor is the unedited parent's own on the same tokens; a copy of the parent lies far above.

    Of ReLU features: a random JumpReLU feature lies so often at its threshold that rounding alone flips it.
    """
    hosted = parent("llama", tmp_path / "parent", dtype=torch.bfloat16)
    resident_set(hosted, "relu")
    exported = in_bfloat16(written(hosted, compiled(hosted, ABLATED), tmp_path / "exported"))
    idle, firing = in_bfloat16(tmp_path / "parent"), fires(hosted)

    def apart(p: list[Tensor], q: list[Tensor]) -> float:
        return float(torch.cat([kl_divergence(a, b) for a, b in zip(p, q, strict=True)])[firing].mean())

    intervened = windows_logits(hosted, MEASURED, ABLATED)
    floor = apart(windows_logits(hosted, MEASURED), idle)
    assert int(firing.sum()) > 20
    assert apart(intervened, exported) <= 1.5 * floor
    assert apart(intervened, idle) > 1.5 * floor

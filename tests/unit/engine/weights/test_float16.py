"""Grafts in float16 files, run in float16 by stock transformers: finite, and the edit is carried."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.resident_sets import resident_set
from tests.unit.engine.exporting import hosted_in
from tests.unit.engine.interventions import direction
from tests.unit.engine.weights.folders import compiled, feature, parent, windows, written
from tests.unit.engine.weights.narrow import fires_on, strongest
from trephine.domain.errors import EditNotExpressibleError
from trephine.domain.interventions import Ablate, Add
from trephine.domain.sites import SiteKind
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.retain import windows_logits
from trephine.engine.weights.units import LARGEST, LARGEST_BIAS

TEXTS = windows(48, seed=2)
MOST_LEFT = {"relu": 1e-4, "jumprelu": 3e-4}
"""Of the edit's KL; before float16 had a bound of its own on biases, jumps left 3e-4 to 5e-4."""
FLOORS = 1.5
"""Of rounding to float16: of the unedited model, or of the runtime that intervenes and computes in it."""
WIDTH = 64
"""Of the parents' MLPs."""


@pytest.mark.parametrize("kind", ["relu", "jumprelu"])
@pytest.mark.parametrize(("family", "biases"), [("llama", False), ("llama", True), ("gpt2", True)])
@torch.inference_mode()
def test_a_float16_graft_is_finite_and_carries_the_edit(family, biases, kind, tmp_path):
    """Where the feature fires: a bend within rounding, and of a jump at least 0.9997 of the edit."""
    hosted = parent(family, tmp_path / "parent", dtype=torch.float16, biases=biases)
    same = hosted_in(tmp_path / "parent", torch.float16)
    for each in (hosted, same):
        resident_set(each, kind)
    ((index, _),) = strongest(hosted, "set", 1, 1)
    edit = (feature(1, index, Ablate()),)
    program = compiled(hosted, edit)
    grown = [change.growth.values for change in program.changes if change.growth is not None]
    assert all(bool(values.to(torch.float16).isfinite().all()) for values in grown if values is not None)
    folder = written(hosted, program, tmp_path / "exported")
    served, answers = stock(folder)
    assert all(bool(logits.isfinite().all()) for logits in served)
    assert 0 < answers <= 2 * LARGEST  # chosen on other text
    changed, plain = windows_logits(hosted, TEXTS, edit), windows_logits(hosted, TEXTS)
    fires = fires_on(hosted, TEXTS, edit)
    assert int(fires.sum()) > 200
    moved, left, floor, runtime = (
        float(torch.cat([kl_divergence(p, q) for p, q in zip(*pair, strict=True)])[fires].mean())
        for pair in (
            (changed, plain),
            (changed, served),
            (plain, stock(hosted.folder)[0]),
            (changed, windows_logits(same, TEXTS, edit)),
        )
    )
    assert left < MOST_LEFT[kind] * moved
    assert moved > 1e4 * floor  # what a copy of the parent would leave
    if kind == "relu":
        assert left <= FLOORS * max(floor, runtime)
    for change in program.changes:
        if change.growth is not None and change.growth.values is not None and change.name.endswith("bias"):
            assert float(change.growth.values.abs().max()) <= LARGEST_BIAS[torch.float16] + 1.0


def stock(folder):
    """Run a folder in stock transformers, in float16: its logits, and the most that added neurons answer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).eval()
    mlp = getattr(model.base_model, "layers", None) or model.base_model.h
    act, sizes = getattr(mlp[1].mlp, "act_fn", None) or mlp[1].mlp.act, [0.0]

    def look(_module, _inputs, answer):
        if answer.shape[-1] > WIDTH:
            sizes.append(float(answer[..., WIDTH:].abs().max()))

    hook = act.register_forward_hook(look)
    logits = list(model(torch.tensor(TEXTS), use_cache=False).logits.float())
    hook.remove()
    return logits, max(sizes)


@pytest.mark.parametrize(
    ("family", "biases"), [("llama", False), ("gpt2", True)], ids=["new", "the parent's"]
)
@torch.inference_mode()
def test_a_bias_beyond_what_float16_holds_is_refused_before_anything_is_written(family, biases, tmp_path):
    """It would be infinite in the file; in a wider type, or weaker, the same edit is written."""
    along = [1.0] + [0.0] * 31
    for dtype, amount, refused in (
        (torch.float16, 7e4, True),
        (torch.float16, 6e4, False),
        (torch.bfloat16, 7e4, False),
    ):
        hosted = parent(family, tmp_path / f"{dtype}-{amount}", dtype=dtype, biases=biases)
        edit = (direction(SiteKind.MLP_OUT, 1, along, Add(amount=amount)),)
        if not refused:
            assert compiled(hosted, edit).changes
            continue
        with pytest.raises(EditNotExpressibleError, match=r"beyond the 65504 that F16 ends at") as caught:
            compiled(hosted, edit)
        assert "down_proj.bias" in caught.value.message or "c_proj.bias" in caught.value.message
        assert "bfloat16 or float32" in caught.value.message

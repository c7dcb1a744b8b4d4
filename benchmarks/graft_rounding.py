"""How far bfloat16 grafts are from their features: `python -m benchmarks.graft_rounding`.

For transcoder features of SmolLM2: squared error of what is added over squared change, on tokens that nothing
was fitted on, in a model that computes in bfloat16, against what the feature adds in float32. Of the graft's
units, their products rounded as a server rounds them, and of the intervening runtime, whose encoder is exact
and reads the same rounded residual stream. What lies between the two is the compiler's; the runtime's own is
bfloat16's. Seconds, on a few thousand tokens. It prints and judges nothing: whatever the figures are, the
exit status is 0. What holds grafts to bounds is `make bench-export`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.export_draw import add_features
from benchmarks.export_folders import bfloat16_models
from benchmarks.graft_limits import say
from benchmarks.laws import load_model
from benchmarks.replacements import NAME, load_set
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.engine.interventions.changes import affine
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.models.shards import read_entries
from trephine.engine.weights.capture import captured, stacked
from trephine.engine.weights.grafting import Graft, graft
from trephine.engine.weights.mlp import stored_mlp
from trephine.engine.weights.operations import FeatureOp
from trephine.server.places import default_cache

FEATURES = tuple(
    FeatureRef(replacement=NAME, layer=layer, index=index)
    for layer, index in (
        *((0, 198), (0, 1250), (0, 1802), (9, 1594), (12, 1692)),
        *((17, 537), (19, 159), (22, 1293), (23, 59), (29, 1799)),
    )
)
"""Those that `make bench-export` draws (seed 0), unless others are given."""
WINDOW, NARROW = 128, torch.bfloat16


def added(each: Graft, x: Tensor, hosted: HostedModel) -> Tensor:
    """Return what a graft adds to its activation, products rounded, for served inputs `(n, d_in)`."""
    total = torch.full((len(x),), each.constant, dtype=torch.float64)
    for unit in each.fit.units:
        read = (x @ unit.gate.float() + unit.gate_bias).to(NARROW).float()
        answer = hosted.architecture.blocks[each.layer].mlp.activation(read).to(NARROW)
        total += unit.amount * answer.double()
    return total


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Bfloat16 grafts beside the runtime in bfloat16.")
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    add_features(parser, FEATURES)
    parser.add_argument("--fit-tokens", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=4096)
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    hosted = load_model(default_cache() / "models" / "smollm2")
    load_set(Session(hosted=hosted), given.transcoders)
    count = given.fit_tokens + given.tokens
    text = given.text.read_text(encoding="utf-8")[: 8 * count]
    ids = hosted.tokenizer(text, add_special_tokens=False)["input_ids"][:count]
    windows = [tuple(ids[n : n + WINDOW]) for n in range(0, len(ids), WINDOW)]
    layers = sorted({ref.layer for ref in given.features})
    sites = {layer: Site(kind=SiteKind.MLP_IN, layer=layer) for layer in layers}
    say("| feature | firing tokens | its noise in bfloat16 | gain | graft | runtime in bfloat16 |")
    say("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="trephine-bench-rounding-") as scratch:
        wide, same = bfloat16_models(hosted, Path(scratch) / "parent")
        exact, served = (finish(captured(each, windows, list(sites.values()), ())) for each in (wide, same))
        entries = read_entries(wide.folder)
        for ref in given.features:
            layer = ref.layer
            op = FeatureOp(feature=ref, numbers=[0], changes=[(affine(factor=0.0), None)])
            x, rounded = (stacked(found[sites[layer]]).float() for found in (exact, served))
            cut = given.fit_tokens
            compiled = graft(wide, op, stored_mlp(wide, entries, layer), x[:cut], NARROW, biases=True)
            say(f"| {layer}:{ref.index} | {row(compiled, x[cut:], rounded[cut:], wide)} |")
    return 0


def row(compiled: Graft, x: Tensor, rounded: Tensor, hosted: HostedModel) -> str:
    """Write the cells of a feature, from inputs in float32 and in bfloat16, both `(n, d_in)`."""
    feature = compiled.feature
    p, seen = (each.double() @ feature.w + feature.b for each in (x, rounded))
    wanted = feature.difference(p)
    size = float(wanted.square().sum())
    errors = [
        float((answer - wanted).square().sum()) / size
        for answer in (added(compiled, rounded, hosted), feature.difference(seen))
    ]
    noise, fires = float((seen - p).std()), int((wanted != 0).sum())
    return f"{fires} | {noise:.1e} | {compiled.fit.gain:.0f} | {errors[0]:.1e} | {errors[1]:.1e}"


if __name__ == "__main__":
    sys.exit(main())

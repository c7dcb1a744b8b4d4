"""What bounds grafts without biases or behind post-norms: `python -m benchmarks.graft_limits`.

For ten transcoder features of SmolLM2: how much of what their MLP writes is theirs where they fire (the share
s, of which a post-norm puts about s^2 / 4 out of reach, where the rest of the answer does not depend on it),
and the residue of the direction that would stand in for a bias, fitted on four fifths of the tokens and
measured on the last.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.laws import load_model
from benchmarks.replacements import NAME, load_set
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.replacements.sets import opened
from trephine.engine.weights.capture import captured, stacked
from trephine.engine.weights.mlp import near_constant
from trephine.server.places import default_cache

FEATURES = (
    *((0, 1968), (5, 912), (7, 45), (7, 274), (16, 172)),
    *((19, 159), (19, 1436), (20, 763), (24, 240), (28, 87)),
)
"""Layer and index."""
WINDOW = 128


def share_of(x: Tensor, y: Tensor, hosted: HostedModel, feature: FeatureRef) -> Tensor:
    """Return what a feature writes over what its MLP writes, where it fires, `(n,)`.

    Args:
        x: What the MLP reads, `(n, d_model)`.
        y: What it writes.
        hosted: The model with its set.
        feature: Of the set.
    """
    with opened(hosted, NAME, [feature.layer]) as layers:
        layer = layers[feature.layer]
        answers = layer.encode_features(x, [feature.index])[:, 0]
        decoder = layer.decoders([feature.index], Site(kind=SiteKind.MLP_OUT, layer=feature.layer))[0]
    fires = answers > 0
    return answers[fires] * decoder.norm() / y[fires].norm(dim=1)


def residue_of(x: Tensor) -> float:
    """Return E(u.x - 1)^2 on the last fifth of the tokens, u fitted on the others."""
    cut = len(x) * 4 // 5
    return near_constant(x[:cut], x[cut:]).error


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="What bounds grafts without biases and behind post-norms.")
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=5120)
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    hosted = load_model(default_cache() / "models" / "smollm2")
    load_set(Session(hosted=hosted), given.transcoders)
    text = given.text.read_text(encoding="utf-8")[: 8 * given.tokens]
    ids = hosted.tokenizer(text, add_special_tokens=False)["input_ids"][: given.tokens]
    windows = [tuple(ids[n : n + WINDOW]) for n in range(0, len(ids), WINDOW)]
    say("| feature | firing tokens | share s, mean | s^2 / 4, mean | residue |\n|---|---|---|---|---|")
    shares, parts = [], []
    kinds = (SiteKind.MLP_IN, SiteKind.MLP_OUT)
    sites = sorted({Site(kind=kind, layer=layer) for kind in kinds for layer, _ in FEATURES})
    found = finish(captured(hosted, windows, sites, ()))
    for layer, index in FEATURES:
        read, written = (Site(kind=kind, layer=layer) for kind in kinds)
        x, y = stacked(found[read]), stacked(found[written])
        share = share_of(x, y, hosted, FeatureRef(replacement=NAME, layer=layer, index=index))
        shares.append(float(share.mean()))
        parts.append(float(share.square().mean()) / 4)
        say(f"| {layer}:{index} | {len(share)} | {shares[-1]:.3f} | {parts[-1]:.4f} | {residue_of(x):.1e} |")
    say(f"median share {statistics.median(shares):.3f}, median s^2 / 4 {statistics.median(parts):.4f}")
    return 0


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

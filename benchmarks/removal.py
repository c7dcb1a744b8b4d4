"""Removed or suppressed: `python -m benchmarks.removal`.

Ten edits of SmolLM2: in each of five layers drawn by seed, the transcoder feature of 2 to 30 % density that
writes most is ablated by a graft, and the neuron that writes most is zeroed. Each is exported and attacked as
`trephine export --attack` does.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.export import say, write
from benchmarks.export_features import Texts, intervention
from benchmarks.laws import load_model
from benchmarks.replacements import NAME, load_set
from trephine.domain.interventions import Ablate
from trephine.domain.removal import AttackFigure, Removal
from trephine.domain.sites import NEURONS, FeatureRef, Site, SiteKind
from trephine.engine.attack.running import attacked, context_windows
from trephine.engine.export_texts import ExportTexts, export_texts
from trephine.engine.hosted import HostedModel
from trephine.engine.quanta import finish
from trephine.engine.replacements.sets import opened
from trephine.engine.session import Session
from trephine.engine.weights.capture import captured, stacked
from trephine.engine.weights.operations import FeatureOp
from trephine.server.places import default_cache

_LEAST_DENSITY, _MOST_DENSITY = 0.02, 0.3
_WINDOWS = 8
_FIT_WINDOWS = 8


def draw(hosted: HostedModel, texts: ExportTexts, count: int, seed: int) -> Iterator[FeatureRef]:
    """Draw layers; yield of each a feature that fires often and writes much, and a neuron that does."""
    generator = random.Random(seed)
    windows = context_windows(hosted, texts)[:_WINDOWS]
    layers = generator.sample(range(hosted.info.n_layers), count)
    for layer in layers:
        site = Site(kind=SiteKind.MLP_IN, layer=layer)
        x = stacked(finish(captured(hosted, windows, [site], ()))[site])
        for replacement in (NAME, NEURONS):
            yield FeatureRef(
                replacement=replacement, layer=layer, index=_strongest(hosted, replacement, layer, x)
            )


def _strongest(hosted: HostedModel, replacement: str, layer: int, x: torch.Tensor) -> int:
    """Return the feature that writes most, among those of fitting density; neurons have none."""
    with opened(hosted, replacement, [layer]) as layers:
        code = layers[layer].encode(x)
        writes = code.activations.abs().mean(0) * layers[layer].decoder_norms()
    density = code.active.float().mean(0)
    if replacement != NEURONS:
        writes = torch.where((density >= _LEAST_DENSITY) & (density <= _MOST_DENSITY), writes, 0.0)
    return int(writes.argmax())


def attack_one(hosted: HostedModel, texts: ExportTexts, feature: FeatureRef) -> Removal:
    """Export the ablation of one feature and attack the folder."""
    with tempfile.TemporaryDirectory(prefix="trephine-bench-removal-") as scratch:
        folder, work = Path(scratch) / "exported", Path(scratch) / "work"
        work.mkdir()
        fit = Texts(fit=list(texts.calibration.windows[:_FIT_WINDOWS]), measured=[])
        write(hosted, [feature], "graft", fit, folder)
        ops = () if feature.replacement == NEURONS else (FeatureOp(feature=feature),)
        return finish(attacked(hosted, texts, (intervention(feature, Ablate()),), ops, folder, work))


HEADER = (
    "| edit | word | tokens | effect, nats | recovery 3 %, excess | recovery 10 %, excess "
    "| benign, excess | few-shot, excess | s |"
)


def line(feature: FeatureRef, found: Removal, seconds: float) -> str:
    """Write a row of the table."""
    kind = "neuron" if feature.replacement == NEURONS else "graft"
    figures = {(f.kind, f.strength): f for f in found.figures}
    last = {f.kind: f for f in found.figures}
    shown = [figures.get(("recovery", 0.03)), *(last.get(k) for k in ("recovery", "benign", "few_shot"))]
    return (
        f"| {kind} {feature.layer}:{feature.index} | {found.verdict} | {found.n_tokens} "
        f"| {found.effect:.2e} | " + " | ".join(map(_excess, shown)) + f" | {seconds:.0f} |"
    )


def _excess(figure: AttackFigure | None) -> str:
    if figure is None:
        return ""
    excess = figure.excess
    return f"{excess.value:.2f} [{excess.low:.2f}, {excess.high:.2f}]"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Removed or suppressed: ten edits under attack.")
    parser.add_argument("--model", type=Path, help="the fetched smollm2 if not given")
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=5, help="of a graft and a neuron of one layer")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    hosted = load_model(given.model or default_cache() / "models" / "smollm2")
    load_set(Session(hosted=hosted), given.transcoders)
    texts = export_texts(hosted, given.text.read_text(encoding="utf-8"))
    say(HEADER)
    say("|---" * HEADER.count(" |") + "|")
    for feature in draw(hosted, texts, given.pairs, given.seed):
        began = time.monotonic()
        found = attack_one(hosted, texts, feature)
        say(line(feature, found, time.monotonic() - began))
        say(f"<!-- {found.why} -->")
    return 0


if __name__ == "__main__":
    sys.exit(main())

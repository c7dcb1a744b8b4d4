"""What the end-to-end phase gains: `python -m benchmarks.end_to_end TEXT [TEXT ...]`.

An 8-layer text model is trained on the texts (kept in TREPHINE_CACHE), transcoders are fitted to all its
layers locally, and then go on in three arms: end to end; with the local loss for the same tokens; with the
local loss for the same time. Contexts that figures come from were seen by no model and no dictionary.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.perturbation import perturbation_nmse
from benchmarks.text_models import EIGHT, text_model
from trephine.domain.fitting import EndToEnd, FitRecipe
from trephine.engine.fitting import corpus
from trephine.engine.fitting.activations import Plan
from trephine.engine.fitting.calibration import calibrate
from trephine.engine.fitting.checkpoints import Checkpoints
from trephine.engine.fitting.contexts import Contexts, cut, split
from trephine.engine.fitting.dictionary import Dictionary
from trephine.engine.fitting.gap import Tuning
from trephine.engine.fitting.local import local_source, local_trainee, starting_dictionaries
from trephine.engine.fitting.measures import measure_layers, measure_spliced
from trephine.engine.fitting.stage import Source, Stage
from trephine.engine.fitting.trainee import Trainee
from trephine.engine.hosted import HostedModel

RECIPE = FitRecipe(
    d_sae=768,
    k=16,
    tokens=600_000,
    context_tokens=128,
    batch_tokens=2048,
    lr=3e-3,
    dead_after_tokens=50_000,
    end_to_end=EndToEnd(tokens=240_000, lr=1e-3),
)
CONTROLS = ("same_tokens", "same_time")
GOAL, L0_TOLERANCE = 0.30, 0.02
BOOTSTRAP = 2000
PERTURBATIONS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to go on after the local phase, measured."""

    ce: Tensor
    """`(contexts,)`, nats per token."""
    l0: float
    l0_spliced: float
    fvu: float
    dead: float
    nmse: dict[int, float]
    seconds: float
    """Of computing: on a machine that others use too, wall clocks compare nothing."""
    tokens: int


def main() -> int:
    """Train, fit, tune, compare."""
    options = _parser().parse_args()
    began = time.monotonic()
    hosted = text_model(EIGHT, options.texts)
    print(f"model: {hosted.folder.name}, {hosted.info.n_parameters / 1e6:.2f} M parameters")
    contexts = _contexts(hosted, options.texts)
    plain = measure_spliced(hosted, [], contexts.held_out).ce
    print(f"plain cross-entropy {float(plain.mean()):.4f} nats on {len(plain)} held-out contexts\n")
    seeds = []
    for seed in range(options.seeds):
        seeds.append(run_seed(hosted, contexts, replace(RECIPE, seed=seed)))
        _print_seed(seed, seeds[-1], float(plain.mean()))
    reached = _print_summary(seeds, plain)
    print(f"\n{time.monotonic() - began:.0f} s in all")
    if options.json:
        options.json.write_text(json.dumps([{n: _plain(a) for n, a in arms.items()} for arms in seeds]))
    return 0 if reached else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__)
    parser.add_argument("texts", type=Path, nargs="+", help="UTF-8 texts to train and fit on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures there")
    return parser


def _contexts(hosted: HostedModel, texts: Sequence[Path]) -> Contexts:
    rows = cut(
        hosted,
        (piece for path in texts for piece in corpus.documents(path)),
        length=RECIPE.context_tokens,
        wanted_tokens=1 << 40,
        separated=False,
    )
    return split(rows, prepends_bos=True)


def run_seed(hosted: HostedModel, contexts: Contexts, recipe: FitRecipe) -> dict[str, Arm]:
    """Fit locally, then run the three arms."""
    with tempfile.TemporaryDirectory() as folder:
        run = _Runner(Path(folder))
        layers = range(hosted.info.n_layers)
        source = local_source(hosted, recipe, layers, contexts)
        start = starting_dictionaries(hosted, recipe, layers, source)
        trainee = local_trainee(start, recipe, source.plan)
        stage = run("local", trainee, source)
        local = list(trainee.dictionaries)
        calibrate(hosted, local, contexts.calibration, recipe.k, spliced=True)
        arms = {"local": _measured(hosted, local, contexts, stage, run.seconds)}
        tuning = Tuning(hosted=hosted, recipe=recipe, contexts=contexts, run=run)
        cut_plan = tuning.plan(local)
        tuned, stage = tuning.end_to_end(local, cut_plan)
        tuned_seconds = run.seconds
        arms["end_to_end"] = _measured(hosted, tuned, contexts, stage, tuned_seconds)
        copies, stage = tuning.control(local, cut_plan)
        arms["same_tokens"] = _measured(hosted, copies, contexts, stage, run.seconds)
        longer = _longer(cut_plan, tuned_seconds / run.seconds)
        run.again = "-longer"
        copies, stage = tuning.control(local, longer)
        arms["same_time"] = _measured(hosted, copies, contexts, stage, run.seconds)
    return arms


def _longer(plan: Plan, factor: float) -> Plan:
    return replace(plan, chunks=max(plan.chunks, round(plan.chunks * factor)))


class _Runner:
    """Runs stages with their checkpoints in a temporary folder; `seconds` is what the last one computed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.again, self.seconds = folder, "", 0.0

    def __call__(self, name: str, trainee: Trainee, source: Source) -> Stage:
        checkpoints = Checkpoints(folder=self.folder / f"{name}{self.again}")
        stage = Stage(
            name=name,
            phase=name,
            trainee=trainee,
            source=source,
            checkpoints=checkpoints,
            say=lambda progress: None,
        )
        began = time.process_time()
        stage.run()
        self.seconds = time.process_time() - began
        return stage


def _measured(
    hosted: HostedModel,
    dictionaries: Sequence[Dictionary],
    contexts: Contexts,
    stage: Stage,
    seconds: float,
) -> Arm:
    layers = measure_layers(hosted, dictionaries, contexts.held_out)
    spliced = measure_spliced(hosted, dictionaries, contexts.held_out)
    count = len(layers)
    return Arm(
        ce=spliced.ce,
        l0=sum(layer.l0 for layer in layers) / count,
        l0_spliced=spliced.l0,
        fvu=sum(layer.fvu for layer in layers) / count,
        dead=sum(layer.dead_share for layer in layers) / count,
        nmse=perturbation_nmse(hosted, dictionaries, contexts.held_out, per_layer=PERTURBATIONS, seed=0),
        seconds=seconds,
        tokens=stage.source.plan.tokens(stage.source.plan.chunks),
    )


def _print_seed(seed: int, arms: dict[str, Arm], plain: float) -> None:
    print(f"seed {seed}   tokens  seconds  CE       gap     FVU     L0     spliced  dead   NMSE by depth")
    for name, arm in arms.items():
        depths = " ".join(f"{value:.2f}" for value in arm.nmse.values())
        ce = float(arm.ce.mean())
        print(
            f"  {name:<12}{arm.tokens:>8}{arm.seconds:>8.0f}  {ce:.4f}  {ce - plain:.4f}  {arm.fvu:.4f}"
            f"  {arm.l0:.2f}  {arm.l0_spliced:.2f}  {arm.dead:.1%}  {depths}",
            flush=True,
        )


def closed(seeds: Sequence[dict[str, Arm]], plain: Tensor, reference: str) -> tuple[float, float, float]:
    """Return the share of the gap closed against an arm, and its 95 % interval over contexts and seeds."""
    before = torch.stack([arms[reference].ce for arms in seeds]) - plain
    after = torch.stack([arms["end_to_end"].ce for arms in seeds]) - plain
    generator = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(BOOTSTRAP):
        contexts = torch.randint(before.shape[1], (before.shape[1],), generator=generator)
        chosen = torch.randint(len(seeds), (len(seeds),), generator=generator)
        left, kept = before[chosen][:, contexts].sum(), after[chosen][:, contexts].sum()
        shares.append(float(1 - kept / left))
    low, high = torch.tensor(shares).quantile(torch.tensor([0.025, 0.975])).tolist()
    return float(1 - after.sum() / before.sum()), low, high


def _print_summary(seeds: Sequence[dict[str, Arm]], plain: Tensor) -> bool:
    print("\nshare of the cross-entropy gap closed by the end-to-end phase (95 % interval)")
    reached = True
    for reference in ("local", *CONTROLS):
        share, low, high = closed(seeds, plain, reference)
        print(f"  against {reference:<12} {share:.1%}  [{low:.1%}, {high:.1%}]")
        reached &= share >= GOAL and low > 0
    tuned = _nmse(seeds, "end_to_end")
    for control in CONTROLS:
        for figure in ("l0", "l0_spliced"):
            changes = [
                getattr(arms["end_to_end"], figure) / getattr(arms[control], figure) - 1 for arms in seeds
            ]
            worst = max(changes, key=abs)
            print(f"  {figure} change against {control}: {worst:+.2%} at most")
            reached &= abs(worst) <= L0_TOLERANCE
        print(f"  perturbation NMSE, mean over depths: {tuned:.3f}, {control} {_nmse(seeds, control):.3f}")
        reached &= tuned <= _nmse(seeds, control)
    print("  goals " + ("reached" if reached else "MISSED"))
    return reached


def _nmse(seeds: Sequence[dict[str, Arm]], name: str) -> float:
    values = [value for arms in seeds for value in arms[name].nmse.values()]
    return sum(values) / len(values)


def _plain(arm: Arm) -> dict[str, object]:
    return asdict(replace(arm, ce=torch.empty(0))) | {"ce": arm.ce.tolist()}


if __name__ == "__main__":
    raise SystemExit(main())

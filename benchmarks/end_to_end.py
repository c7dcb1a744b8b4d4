"""What the end-to-end phase gains: `python -m benchmarks.end_to_end TEXT [TEXT ...]`.

An 8-layer text model is trained on the texts (kept in TREPHINE_CACHE), transcoders are fitted to all its
layers locally, and then go on in three arms: end to end; with the local loss for the same tokens; with the
local loss for the same time. Contexts that figures come from were seen by no model and no dictionary.

Reached is the goal if, over all seeds and against each of the two controls,

- the phase closes 30 % of what is left of the gap in cross-entropy, and the interval excludes 0;
- L0 is within 2 %, on the plain and on the spliced run, in every seed;
- perturbation NMSE is no worse: all arms answer the same perturbations (features of the local phase's
  dictionaries, that all arms started from, 3 a layer in each context), and of the relative difference of
  pooled and of median NMSE the upper end of the 95 % interval over contexts and seeds is at most 5 %.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.paired import BOOTSTRAP, changes
from benchmarks.perturbation import Answers, answered, perturbations
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
from trephine.engine.models.hosted import HostedModel

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
GOAL, L0_TOLERANCE, NMSE_MARGIN = 0.30, 0.02, 0.05
PERTURBATIONS = 3
"""Of each layer in each context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to go on after the local phase, measured."""

    ce: Tensor
    """`(contexts,)`, nats per token."""
    l0: float
    l0_spliced: float
    fvu: float
    dead: float
    answers: Answers
    seconds: float
    """Of computing: on a machine that others use too, wall clocks compare nothing."""
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """An arm's dictionaries, calibrated."""

    dictionaries: Sequence[Dictionary]
    tokens: int
    seconds: float


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
    for seed in range(options.seeds) if options.only is None else [options.only]:
        recipe = replace(RECIPE, seed=seed)
        with _kept_or_temporary(options.work, hosted, recipe) as folder:
            seeds.append(run_seed(hosted, contexts, recipe, folder))
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
    parser.add_argument("--only", type=int, metavar="SEED", help="run one seed, whose fits --work keeps")
    parser.add_argument(
        "--work",
        type=Path,
        help="keep checkpoints there: a killed run goes on, and fits that are done are not run again",
    )
    parser.add_argument("--json", type=Path, help="write all figures there")
    return parser


@contextmanager
def _kept_or_temporary(work: Path | None, hosted: HostedModel, recipe: FitRecipe) -> Iterator[Path]:
    if work is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    asked = hashlib.sha256(f"{hosted.folder.name} {recipe}".encode()).hexdigest()[:8]
    yield work / f"seed{recipe.seed}-{asked}"


def _contexts(hosted: HostedModel, texts: Sequence[Path]) -> Contexts:
    rows = cut(
        hosted,
        (piece for path in texts for piece in corpus.documents(path)),
        length=RECIPE.context_tokens,
        wanted_tokens=1 << 40,
        separated=False,
    )
    return split(rows, prepends_bos=True)


def run_seed(hosted: HostedModel, contexts: Contexts, recipe: FitRecipe, folder: Path) -> dict[str, Arm]:
    """Fit locally and in the three arms, then measure all on the same contexts and perturbations."""
    fitted = fit_arms(hosted, contexts, recipe, folder)
    sets = {name: arm.dictionaries for name, arm in fitted.items()}
    rows = contexts.held_out
    asked = perturbations(hosted, sets["local"], rows, per_context=PERTURBATIONS, seed=recipe.seed)
    answers = answered(hosted, sets, rows, asked)
    return {name: _measured(hosted, arm, rows, answers[name]) for name, arm in fitted.items()}


def fit_arms(hosted: HostedModel, contexts: Contexts, recipe: FitRecipe, folder: Path) -> dict[str, Fitted]:
    """Fit locally, then go on from there in three ways."""
    run, layers = _Runner(folder), range(hosted.info.n_layers)
    source = local_source(hosted, recipe, layers, contexts)
    start = starting_dictionaries(hosted, recipe, layers, source)
    trainee = local_trainee(start, recipe, source.plan)
    stage = run("local", trainee, source)
    local = list(trainee.dictionaries)
    calibrate(hosted, local, contexts.calibration, recipe.k, spliced=True)
    arms = {"local": _fitted(local, stage, run)}
    tuning = Tuning(hosted=hosted, recipe=recipe, contexts=contexts, run=run)
    cut_plan = tuning.plan(local)
    arms["end_to_end"] = _fitted(*tuning.end_to_end(local, cut_plan), run)
    arms["same_tokens"] = _fitted(*tuning.control(local, cut_plan), run)
    longer = _longer(cut_plan, arms["end_to_end"].seconds / arms["same_tokens"].seconds)
    run.again = "-longer"
    arms["same_time"] = _fitted(*tuning.control(local, longer), run)
    return arms


def _fitted(dictionaries: Sequence[Dictionary], stage: Stage, run: _Runner) -> Fitted:
    plan = stage.source.plan
    return Fitted(dictionaries=dictionaries, tokens=plan.tokens(plan.chunks), seconds=run.seconds)


def _longer(plan: Plan, factor: float) -> Plan:
    return replace(plan, chunks=max(plan.chunks, round(plan.chunks * factor)))


class _Runner:
    """Runs stages, with checkpoints in a folder; `seconds` is what the last one computed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.again, self.seconds = folder, "", 0.0

    def __call__(self, name: str, trainee: Trainee, source: Source) -> Stage:
        folder = self.folder / f"{name}{self.again}"
        stage = Stage(
            name=name,
            phase=name,
            trainee=trainee,
            source=source,
            checkpoints=Checkpoints(folder=folder),
            say=lambda progress: None,
        )
        # A stage that was killed on the way has counted less than it took; one that is done counts nothing.
        noted, began = folder / "seconds.json", time.process_time()
        stage.run()
        if not noted.exists():
            noted.write_text(json.dumps(time.process_time() - began))
        self.seconds = float(json.loads(noted.read_text()))
        return stage


def _measured(hosted: HostedModel, arm: Fitted, rows: Tensor, answers: Answers) -> Arm:
    layers = measure_layers(hosted, arm.dictionaries, rows)
    spliced = measure_spliced(hosted, arm.dictionaries, rows)
    count = len(layers)
    return Arm(
        ce=spliced.ce,
        l0=sum(layer.l0 for layer in layers) / count,
        l0_spliced=spliced.l0,
        fvu=sum(layer.fvu for layer in layers) / count,
        dead=sum(layer.dead_share for layer in layers) / count,
        answers=answers,
        seconds=arm.seconds,
        tokens=arm.tokens,
    )


def _print_seed(seed: int, arms: dict[str, Arm], plain: float) -> None:
    print(f"seed {seed}   tokens  seconds  CE       gap     FVU     L0     spliced  dead   NMSE by depth")
    for name, arm in arms.items():
        depths = " ".join(f"{value:.2f}" for value in arm.answers.by_depth())
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
        reached &= reference not in CONTROLS or (share >= GOAL and low > 0)
    for control in CONTROLS:
        for figure in ("l0", "l0_spliced"):
            relative = [
                getattr(arms["end_to_end"], figure) / getattr(arms[control], figure) - 1 for arms in seeds
            ]
            worst = max(relative, key=abs)
            print(f"  {figure} change against {control}: {worst:+.2%} at most")
            reached &= abs(worst) <= L0_TOLERANCE
    print(f"  perturbations: the same {seeds[0]['local'].answers.count * len(seeds)} for every arm")
    for reference in ("local", *CONTROLS):
        ours, theirs = ([arms[name].answers for arms in seeds] for name in ("end_to_end", reference))
        for change in changes(ours, theirs):
            print(
                f"  {change.name} against {reference:<12} {change.first:.4f} / {change.second:.4f}"
                f"  {change.value:+.1%}  [{change.low:+.1%}, {change.high:+.1%}]"
            )
            reached &= reference not in CONTROLS or change.high <= NMSE_MARGIN
    print("  goals " + ("reached" if reached else "MISSED"))
    return reached


def _plain(arm: Arm) -> dict[str, object]:
    told = {name: getattr(arm, name) for name in ("l0", "l0_spliced", "fvu", "dead", "seconds", "tokens")}
    answers = {"errors": arm.answers.errors.tolist(), "sizes": arm.answers.sizes.tolist()}
    return {"ce": arm.ce.tolist(), **told, "answers": answers}


if __name__ == "__main__":
    raise SystemExit(main())

"""Replacement sets on a real model: `python -m benchmarks.replacements residency|evaluate`.

`residency` loads a set that is larger than its memory budget, uses every layer of it, and prints what the
process really took, by the kernel's own peak. `evaluate` prints the table of a set with its controls.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.laws import load_model
from benchmarks.resident import peak_bytes, reset_peak
from trephine.domain.commands import Progress
from trephine.domain.findings import Figure
from trephine.domain.replacements import (
    EvaluateReplacementSet,
    LoadReplacementSet,
    ReplacementEvaluation,
    ReplacementSetInfo,
    ReplacementSource,
)
from trephine.engine.admission.evaluation import evaluate_replacement_set
from trephine.engine.admission.loading import load_replacement_set
from trephine.engine.admission.splice import run_context
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.replacements.residency import return_freed_memory
from trephine.engine.replacements.sets import opened

ResultT = TypeVar("ResultT")
NAME = "measured"


def load_set(session: Session, folder: Path, budget: int | None = None) -> ReplacementSetInfo:
    """Load a folder as LoadReplacementSet does."""
    source = ReplacementSource(name=NAME, folder=str(folder), memory_budget_bytes=budget)
    return finish(load_replacement_set(session, LoadReplacementSet(source=source)))


# --- residency -----------------------------------------------------------------------------------


def residency(hosted: HostedModel, folder: Path, budget: int) -> bool:
    """Load a set within a budget, use all its layers twice, print what it took; True if it kept to it.

    Probing runs the model, and a plain pass takes memory of its own: what the set takes is the peak beyond
    the peak of plain passes over contexts of the same length. What was resident at rest is printed too.
    """
    ids = list(range(100, 228))
    run_context(hosted, ids, {})  # pages the model in
    return_freed_memory()
    rest = reset_peak()
    for _ in range(3):
        run_context(hosted, ids, {})
    plain = peak_bytes()
    return_freed_memory()
    reset_peak()
    info = load_set(Session(hosted=hosted), folder, budget)
    loaded = peak_bytes()
    return_freed_memory()
    reset_peak()
    for layer in (*info.layers, *info.layers):
        with torch.inference_mode(), opened(hosted, NAME, [layer.layer]) as layers:
            layers[layer.layer].reconstruct(torch.randn(len(ids), layer.d_in))
    used, seen = peak_bytes(), hosted.replacements[NAME].info.residency
    print(f"set             {seen.total_bytes / 1e6:8.1f} MB in {len(info.layers)} layers")
    print(f"budget          {budget / 1e6:8.1f} MB, with 20 %: {1.2 * budget / 1e6:.1f} MB")
    print(f"resident        {seen.peak_bytes / 1e6:8.1f} MB at most in {seen.loads} loads")
    print("process, peak     beyond rest   beyond a plain pass")
    for name, peak in (("plain pass", plain), ("loading", loaded), ("use", used)):
        print(f"{name:15} {(peak - rest) / 1e6:8.1f} MB   {(peak - plain) / 1e6:8.1f} MB")
    kept = max(loaded, used) - plain <= 1.2 * budget and seen.peak_bytes <= budget
    print("within budget + 20 %" if kept else "OVER budget + 20 %")
    return kept


# --- evaluation ----------------------------------------------------------------------------------


def evaluate(hosted: HostedModel, folder: Path, command: EvaluateReplacementSet) -> ReplacementEvaluation:
    """Load a set and evaluate it."""
    session = Session(hosted=hosted)
    load_set(session, folder)
    return followed(evaluate_replacement_set(session, command))


def followed(work: Generator[Progress | None, None, ResultT]) -> ResultT:
    """Run work to its end and say on stderr where it is."""
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            result: ResultT = end.value
            return result
        if event is not None:
            print(f"\r{event.stage} {event.done}/{event.total}   ", end="", file=sys.stderr, flush=True)


def print_evaluation(found: ReplacementEvaluation) -> None:
    """Print the tables: all layers spliced, single layers, depths, lost claims."""
    print(f"{found.text}: {found.contexts} contexts, {found.tokens} tokens, seed {found.seed}")
    print("\nall layers spliced")
    for row in found.spliced:
        scores = (row.ce_score, row.ce_score_zero, row.kl, row.kl_score, row.kl_score_zero)
        measured = [figure for figure in (row.fvu, row.l0) if figure is not None]
        figures = (row.ce_spliced, *scores, row.top1_agreement, row.error_share, *measured)
        print(
            f"  {row.dictionary.value:15}"
            + "  ".join(f"{figure.name} {_shown(figure)}" for figure in figures)
            + ("" if row.dead_share is None else f"  dead {row.dead_share:.3f}")
        )
    given = found.spliced[0]
    for figure in (given.ce_plain, given.ce_mean_ablated, given.ce_zero_ablated):
        print(f"  {figure.name:15}{_shown(figure)}")
    print("\nlayer dictionary      fvu    l0    dead   ce     ce_0   kl     kl_0   top1   error")
    for score in found.layers:
        scores = (
            score.ce_score,
            score.ce_score_zero,
            score.kl_score,
            score.kl_score_zero,
            score.top1_agreement,
            *(() if score.error_share is None else (score.error_share,)),
        )
        print(
            f"{score.layer:5} {score.dictionary.value:15} {score.fvu.value:.3f} {score.l0.value:5.1f} "
            f"{score.dead_share:6.3f} " + " ".join(f"{figure.value:6.3f}" for figure in scores)
        )
    print("\ndepth dictionary      cosine                nmse                  pairs")
    for depth in found.depths:
        figures_by_depth = f"{_shown(depth.cosine):20}  {_shown(depth.nmse):20}  {depth.pairs}"
        print(f"{depth.depth:5} {depth.dictionary.value:15} {figures_by_depth}")
    print()
    for control in dict.fromkeys(claim.control for claim in found.claims):
        claims = [claim for claim in found.claims if claim.control is control]
        print(f"beats {control.value} on {sum(claim.beats for claim in claims)} of {len(claims)} figures")
    for caveat in found.caveats:
        print(f"- {caveat}")
    print(f"{found.seconds:.0f} s")


def _shown(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def without_allocator_slack() -> None:
    """Start again with an allocator that gives memory back at once: what is resident is then in use.

    By default glibc keeps up to 64 MB of what was freed, which differs from run to run.
    """
    wanted = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        command = [sys.executable, "-m", "benchmarks.replacements", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **wanted})  # noqa: S606  this very program


def main() -> int:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measure", choices=("residency", "evaluate"))
    parser.add_argument("folder", type=Path, help="the replacement set")
    parser.add_argument("--model", type=Path, required=True, help="a plain Hugging Face folder")
    parser.add_argument("--budget-mb", type=float, default=40.0, help="residency: the set's memory budget")
    parser.add_argument("--text", type=Path, help="evaluate: held-out text")
    parser.add_argument("--contexts", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.measure == "residency":
        without_allocator_slack()
    torch.set_num_threads(1)
    hosted = load_model(given.model)
    if given.measure == "residency":
        return 0 if residency(hosted, given.folder, int(given.budget_mb * 1e6)) else 1
    if given.text is None:
        parser.error("evaluate needs --text")
    command = EvaluateReplacementSet(
        name=NAME,
        text=given.text.read_text(encoding="utf-8"),
        text_name=given.text.name,
        max_contexts=given.contexts,
        seed=given.seed,
    )
    print_evaluation(evaluate(hosted, given.folder, command))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

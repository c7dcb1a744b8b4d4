"""A whole fit on a two-layer text model: `python -m benchmarks.fit_toy TEXT [TEXT ...]`.

The model is trained on the texts (kept in TREPHINE_CACHE). Then the engine's own command fits transcoders in
a process of its own, is killed with -9 in the middle, goes on from its checkpoint, and tunes them end to end
beside the local-only control.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from benchmarks.text_models import TOY, text_model
from trephine.domain.errors import FitFailedError
from trephine.domain.fitting import EndToEnd, FitRecipe, FitReplacementSet, FitReport, PredictFit
from trephine.engine.fitting.command import fit_replacement_set, predict
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session

RECIPE = FitRecipe(
    d_sae=512,
    k=8,
    tokens=250_000,
    context_tokens=128,
    batch_tokens=2048,
    lr=3e-3,
    dead_after_tokens=50_000,
    end_to_end=EndToEnd(tokens=80_000, lr=1e-3),
)


def main() -> int:
    """Fit, kill, go on, print."""
    options = _parser().parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    session = Session(hosted=text_model(TOY, options.texts))
    recipe = replace(RECIPE, seed=options.seed)
    predicted = finish(predict(session, PredictFit(recipe=recipe)))
    print(
        f"predicted   {predicted.seconds:.0f} s, {predicted.memory_bytes >> 20} MiB of memory, "
        f"{predicted.disk_bytes >> 20} MiB of disk"
    )
    with tempfile.TemporaryDirectory() as folder:
        command = FitReplacementSet(
            recipe=recipe,
            corpus=str(_joined(options.texts, Path(folder))),
            corpus_name=", ".join(path.name for path in options.texts),
            folder=str(Path(folder) / "set"),
            checkpoints=str(Path(folder) / "work"),
        )
        began = time.monotonic()
        if not options.whole:
            _kill_in_the_middle(session, command)
        report = _follow(session, command)
        _print_report(report, time.monotonic() - began)
        written = sorted(path.relative_to(folder).as_posix() for path in Path(folder).glob("set/*/*"))
        print(f"written     {', '.join(written)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit_toy", description=__doc__)
    parser.add_argument("texts", type=Path, nargs="+", help="UTF-8 texts to train and fit on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="compute threads of both processes")
    parser.add_argument("--whole", action="store_true", help="do not kill it in the middle")
    return parser


def _joined(texts: list[Path], folder: Path) -> Path:
    path = folder / "corpus.txt"
    path.write_text("\n".join(text.read_text(encoding="utf-8") for text in texts), encoding="utf-8")
    return path


def _kill_in_the_middle(session: Session, command: FitReplacementSet) -> None:
    work, done = fit_replacement_set(session, command), 0
    for progress in work:
        if progress and progress.stage == "local-0" and 2 * progress.done > progress.total:
            done = progress.done
            break
    for child in psutil.Process().children():
        if "trephine.engine.fitting" in " ".join(child.cmdline()):
            os.kill(child.pid, signal.SIGKILL)
    try:
        finish(work)
    except FitFailedError as error:
        print(f"killed      after {done} tokens: {error.message}", flush=True)


def _follow(session: Session, command: FitReplacementSet) -> FitReport:
    work = fit_replacement_set(session, command)
    while True:
        try:
            progress = next(work)
        except StopIteration as stop:
            report: FitReport = stop.value
            return report
        if progress is not None and progress.detail:
            print(
                f"  {progress.stage:<14}{progress.done:>9} of {progress.total}  {progress.detail}", flush=True
            )


def _print_report(report: FitReport, seconds: float) -> None:
    print(f"resumed     {report.resumed} times; {report.seconds:.0f} s of work, {seconds:.0f} s in all")
    print(f"peak        {report.peak_bytes >> 20} MiB of the process")
    for layer in report.layers:
        print(f"layer {layer.layer}     FVU {layer.fvu:.4f}, L0 {layer.l0:.2f}, dead {layer.dead_share:.1%}")
    gap = report.gap
    if gap is None or gap.ce_local_control is None or gap.seconds_local_control is None:
        return
    print(f"plain       {gap.ce_plain:.4f} nats")
    print(f"local       {gap.ce_local:.4f} nats with all layers spliced, before the end-to-end phase")
    print(f"end to end  {gap.ce_end_to_end:.4f} nats, {gap.seconds_end_to_end:.0f} s")
    print(
        f"control     {gap.ce_local_control:.4f} nats, local loss for the same tokens, "
        f"{gap.seconds_local_control:.0f} s"
    )
    print(f"closed      {gap.closed:.1%} of the control's gap, L0 {gap.l0_change:+.2%}")


if __name__ == "__main__":
    raise SystemExit(main())

"""Replacement sets on a real model: `python -m benchmarks.replacements residency|evaluate`.

`residency` loads a set that is larger than its memory budget, uses every layer of it, and prints what the
process really took, by the kernel's own peak. `evaluate` prints the table of a set with its controls.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import psutil
import torch

from benchmarks.laws import load_model
from trephine.domain.replacements import LoadReplacementSet, ReplacementSetInfo, ReplacementSource
from trephine.engine.hosted import HostedModel
from trephine.engine.quanta import finish
from trephine.engine.replacements.loading import load_replacement_set
from trephine.engine.replacements.residency import return_freed_memory
from trephine.engine.replacements.sets import opened
from trephine.engine.replacements.splice import run_context
from trephine.engine.session import Session

NAME = "measured"


def load_set(session: Session, folder: Path, budget: int | None = None) -> ReplacementSetInfo:
    """Load a folder as LoadReplacementSet does."""
    source = ReplacementSource(name=NAME, folder=str(folder), memory_budget_bytes=budget)
    return finish(load_replacement_set(session, LoadReplacementSet(source=source)))


# --- residency -----------------------------------------------------------------------------------


def peak_bytes() -> int:
    """Return the process's peak resident size since `reset_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel reports no VmHWM")


def reset_peak() -> int:
    """Let the kernel's peak start from what is resident now, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return int(psutil.Process().memory_info().rss)


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
    parser.add_argument("measure", choices=("residency",))
    parser.add_argument("folder", type=Path, help="the replacement set")
    parser.add_argument("--model", type=Path, required=True, help="a plain Hugging Face folder")
    parser.add_argument("--budget-mb", type=float, default=40.0)
    given = parser.parse_args()
    if given.measure == "residency":
        without_allocator_slack()
    torch.set_num_threads(1)
    hosted = load_model(given.model)
    return 0 if residency(hosted, given.folder, int(given.budget_mb * 1e6)) else 1


if __name__ == "__main__":
    raise SystemExit(main())

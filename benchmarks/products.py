"""Float32 products of rows with one matrix, by `@` and by the engine: `python -m benchmarks.products`.

Both sides take turns, and medians of rates stand beside each other. Where torch reports no 512-bit units the
engine multiplies by `@`, and both are the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from trephine.engine.models.products import has_wide_units, product

SHAPES = ((64, 576, 1536), (1024, 576, 576), (1024, 192, 576), (4096, 576, 576), (2048, 2048, 2048))
"""Rows, inner width and columns: SmolLM2's, and a square."""


def seconds(multiply: Callable[[], Tensor]) -> float:
    """Time one product."""
    began = time.perf_counter()
    multiply()
    return time.perf_counter() - began


def main() -> int:
    """Print a line per shape."""
    parser = argparse.ArgumentParser(description="Float32 products by @ and by the engine.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=41)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sys.stdout.write(f"512-bit units: {'yes' if has_wide_units() else 'no, both sides are the same'}\n")
    sys.stdout.write(
        "| rows x inner x columns | by @, GFLOP/s | by the engine | times |\n|---|---|---|---|\n"
    )
    for n_rows, inner, columns in SHAPES:
        rows, matrix = torch.randn(n_rows, inner), torch.randn(inner, columns)
        sides = (partial(torch.mm, rows, matrix), partial(product, rows, matrix))
        for side in sides:
            side()
        spent = [[seconds(side) for side in sides] for _ in range(given.repeats)]
        plain, ours = (statistics.median(each) for each in zip(*spent, strict=True))
        work = 2e-9 * n_rows * inner * columns
        shape = f"{n_rows:,} x {inner:,} x {columns:,}"
        rates = f"{work / plain:.0f} | {work / ours:.0f} | {plain / ours:.2f}"
        sys.stdout.write(f"| {shape} | {rates} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

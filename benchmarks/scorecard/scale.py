"""Scale: how time and memory of discovery grow with the prompt, each length in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from math import log, sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy.stats import t as student  # type: ignore[import-untyped]
from transformers import AutoTokenizer

from benchmarks.scorecard.entries import Entry, at_most
from benchmarks.scorecard.subject import Subject
from trephine.domain.findings import Figure

MOST = 1.3
"""Power of the length: near linear."""


def scale(subject: Subject) -> Iterator[Entry]:
    """Discover over the set at several lengths and fit powers of the length."""
    sizes = subject.sizes
    text = subject.text.read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(subject.model)(text, verbose=False)["input_ids"]
    with tempfile.TemporaryDirectory(prefix="trephine-scorecard-") as scratch:
        cells = [_cell(subject, ids[:length], Path(scratch)) for length in sizes.lengths]
    lengths = ", ".join(map(str, sizes.lengths))
    asked = (("cpu_seconds", "processor time", "s"), ("extra_bytes", "memory beyond the model's", "bytes"))
    for name, what, unit in asked:
        values = [float(cell[name]) for cell in cells]
        power = slope([log(length) for length in sizes.lengths], [log(value) for value in values])
        yield Entry(
            figure=f"{what} of discovery grows with the length to the power of",
            of="the set",
            value=power,
            bar=f"at most {MOST:g}",
            verdict=at_most(power, MOST),
            how=f"{lengths} tokens, {sizes.growth_nodes} feature nodes, one thread, a process each: "
            f"{', '.join(f'{value:.3g}' for value in values)} {unit}",
        )


def slope(x: Sequence[float], y: Sequence[float]) -> Figure:
    """Fit a line by least squares; the interval is Student's."""
    mean_x, mean_y = fmean(x), fmean(y)
    spread = sum((each - mean_x) ** 2 for each in x)
    value = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    left = sum((b - mean_y - value * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    free = len(x) - 2
    half = float(student.ppf(0.975, free)) * sqrt(left / free / spread) if free > 0 else float("inf")
    return Figure(name="power", value=value, low=value - half, high=value + half)


def _cell(subject: Subject, ids: Sequence[int], scratch: Path) -> dict[str, Any]:
    answer, path = scratch / f"{len(ids)}.json", scratch / f"{len(ids)}.request.json"
    body = {
        "model": str(subject.model),
        "transcoders": str(subject.folder),
        "choose_logits": 3,
        "logits": [],
        "ids": list(ids),
        "nodes": subject.sizes.growth_nodes,
        "repeats": 3,
        "threads": 1,
        "graph": "",
        "answer": str(answer),
    }
    path.write_text(json.dumps(body))
    subprocess.run([sys.executable, "-m", "benchmarks.discovery_cell", str(path)], check=True)
    found: dict[str, Any] = json.loads(answer.read_text())
    return found

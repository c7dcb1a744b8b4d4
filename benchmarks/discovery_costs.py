"""What `validate_only` predicts of a discovery beside what it takes, over neurons and a set, on one core.

    python -m benchmarks.discovery_costs --transcoders ../shared/replacements/smollm2-135m-tc
    python -m benchmarks.discovery_costs --only-set --transcoders SOME_LAYERS --beside neurons

Seconds are processor time of the engine, so that other work on the machine does not count. Memory is
measured in an engine that has found nothing before, as the prediction means it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from trephine.client import Model, Trephine, connect

TEXT = (
    "The town lies on the left bank of the river, where the old road from the coast crosses it on a bridge "
    "of seven arches. Its market was first mentioned in the year 1203, and in the centuries that followed it "
    "grew rich on wool and salt. After the great fire only the church and two towers of the wall were left. "
)
NEURONS = "neurons"
CELLS = ((5, 64, 0), (5, 256, 64), (24, 256, 0), (24, 256, 32), (24, 512, 0), (90, 128, 0))
"""Words of the prompt, nodes, verified nodes."""


def main() -> int:
    """Print the table; 1 if a prediction is off by more than a factor of two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transcoders", help="A set for SmolLM2; left out: neurons only.")
    parser.add_argument("--beside", nargs="+", default=[], help="Beside the set: further sets, or neurons.")
    parser.add_argument("--only-set", action="store_true", help="Leave out the graphs over neurons alone.")
    arguments = parser.parse_args()
    sets = [*([] if arguments.only_set else [None]), *filter(None, [arguments.transcoders])]
    worst = 1.0
    with tempfile.TemporaryDirectory() as state, connect(state=Path(state)) as trephine:
        sys.stdout.write("set\ttokens\tnodes\tverified\tseconds\tpredicted\tratio\tMB\tpredicted\tratio\n")
        for row in _rows(trephine, Path(state), sets, arguments.beside):
            worst = max(worst, *(max(one, 1 / one) for one in (row[6], row[9])))
            sys.stdout.write("\t".join(f"{one:.3g}" if isinstance(one, float) else str(one) for one in row))
            sys.stdout.write("\n")
            sys.stdout.flush()
    sys.stdout.write(f"worst factor {worst:.2f}\n")
    return int(worst > 2)


def _rows(
    trephine: Trephine, state: Path, sets: list[str | None], others: list[str]
) -> Iterator[tuple[Any, ...]]:
    for name in sets:
        for words, nodes, verified in CELLS:
            model = trephine.load_model("smollm2")
            chosen = model.load_replacements(name).set_id if name else None
            beside = [_beside(model, other) for other in others] if name else []
            prompt = " ".join((TEXT * 3).split()[:words])
            asked: dict[str, Any] = {
                "replacement": chosen,
                "beside": beside,
                "max_feature_nodes": nodes,
                "verify_nodes": verified,
            }
            seconds, megabytes = _predicted(model, prompt, asked)
            engine = _engine(state)
            before = engine.cpu_times()
            info = model.discover(prompt, target=" the", **asked).info
            after = engine.cpu_times()
            spent = after.user + after.system - before.user - before.system
            taken = info.peak_extra_bytes / 1e6
            yield (
                *("+".join((chosen or NEURONS, *beside)), len(info.tokens), nodes, verified),
                *(spent, seconds, seconds / spent, taken, megabytes, megabytes / taken),
            )
            model.unload()


def _beside(model: Model, name: str) -> str:
    return name if name == NEURONS else model.load_replacements(name).set_id


def _predicted(model: Model, prompt: str, asked: dict[str, Any]) -> tuple[float, float]:
    predicted = model.predict_discover(prompt, target=" the", **asked)
    return predicted.seconds, predicted.peak_extra_bytes / 1e6


def _engine(state: Path) -> psutil.Process:
    server = psutil.Process(int(json.loads((state / "server.json").read_text())["pid"]))
    engines = [one for one in server.children(recursive=True) if "trephine.engine" in " ".join(one.cmdline())]
    return engines[-1]


if __name__ == "__main__":
    sys.exit(main())

"""Discovery beside circuit-tracer on one GPU: the cells of `benchmarks.discovery`, both sides on the device.

    python -m benchmarks.discovery_gpu --peer .venv/peer/bin/python --transcoders DIR --text FILE

Same model, transcoders, token ids, logit targets; float32 without TensorFloat-32 on both sides. One process
per side and backend runs all cells: what a GPU allocates is counted by torch and not by process, and loading
would take longer than everything else. Every cell is warmed up on its own prompt; of up to 1,024 nodes it is
run three times, and the median counts. The peer runs each cell whole with every backend and batch size, and
the fastest counts. Extra memory is what torch allocates at most beyond model and transcoders. Cells that the
time does not allow are said to be missing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from benchmarks.discovery import BACKENDS, HEADER, MEMORY_BYTES, PEER_CELL, graphs_compared, line, peer_model
from benchmarks.discovery_gates import EDGES, Gate
from trephine.server.places import default_cache

CELLS = ("64x1024", "16x256", "192x1024", "16x1024", "64x256", "192x256", "64x4096", "16x4096", "192x4096")
"""Tokens by nodes; what matters most comes first."""
BATCHES = (64, 256, 1024)
REPEATS, REPEATED_NODES = 3, 1024
FASTER = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where everything is, and until when it may run by the monotonic clock."""

    options: argparse.Namespace
    ids: Sequence[int]
    until: float

    def ours(self, cells: Sequence[tuple[int, int]]) -> dict[tuple[int, int], dict[str, Any]]:
        """Run all cells of ours."""
        requests = [
            self._request(
                f"ours-{tokens}-{nodes}", self.options.model, tokens, nodes, choose_logits=3, logits=[]
            )
            for tokens, nodes in cells
        ]
        self._run(
            [sys.executable, "-m", "benchmarks.discovery_cell"], "ours", requests, 1.0, self.options.ours_path
        )
        return {cell: self._answer(f"ours-{cell[0]}-{cell[1]}") for cell in cells}

    def theirs(self, ours: dict[tuple[int, int], dict[str, Any]], backend: str, share: float) -> None:
        """Run the peer's cells with one backend, in no more than a share of the time that is left."""
        peer = self.options.out / "peer-model"
        requests = [
            self._request(
                f"peer-{tokens}-{nodes}-{backend}-{batch}",
                peer,
                tokens,
                nodes,
                logits=found["logits"],
                backend=backend,
                batch=batch,
                sampled=None,
                memory_bytes=MEMORY_BYTES,
            )
            for (tokens, nodes), found in ours.items()
            for batch in self.options.batches
            if "failed" not in found
        ]
        command = [str(self.options.peer), str(PEER_CELL)]
        self._run(command, f"peer-{backend}", requests, share, self.options.peer_path)

    def fastest(self, tokens: int, nodes: int) -> tuple[dict[str, Any], str, int]:
        """Return the peer's fastest answer to a cell, its backend and its batch."""
        found = [
            (self._answer(f"peer-{tokens}-{nodes}-{backend}-{batch}"), backend, batch)
            for backend in self.options.backends
            for batch in self.options.batches
        ]
        ran = [each for each in found if "failed" not in each[0]]
        return min(ran, key=lambda each: each[0]["seconds"]) if ran else found[0]

    def graph(self, name: str) -> Path:
        """Return where a cell leaves its graph."""
        return Path(self.options.out / f"{name}.npz")

    def _request(self, name: str, model: Path, tokens: int, nodes: int, **more: Any) -> Path:
        answer, path = self.options.out / f"{name}.json", self.options.out / f"{name}.request.json"
        answer.unlink(missing_ok=True)
        body = more | {
            "model": str(model),
            "ids": list(self.ids[:tokens]),
            "nodes": nodes,
            "threads": self.options.threads,
            "transcoders": str(self.options.transcoders),
            "device": self.options.device,
            "repeats": REPEATS if nodes <= REPEATED_NODES else 1,
            "graph": str(self.graph(name)),
            "answer": str(answer),
        }
        path.write_text(json.dumps(body))
        return Path(path)

    def _run(
        self, command: Sequence[str], name: str, requests: Sequence[Path], share: float, path: str | None
    ) -> None:
        """Run a process over requests; what it has not answered when its time is over is missing."""
        began, left = time.monotonic(), (self.until - time.monotonic()) * share
        environment = os.environ | ({} if path is None else {"PYTHONPATH": path})
        print(f"{name}: at most {left:.0f} s", flush=True)
        with (self.options.out / f"{name}.log").open("w") as log:
            try:
                done = subprocess.run(
                    [*command, *map(str, requests)],
                    stdout=log,
                    stderr=log,
                    check=False,
                    timeout=max(1.0, left),
                    env=environment,
                )
                ended = f"exit {done.returncode}"
            except subprocess.TimeoutExpired:
                ended = "out of time"
        answered = sum(
            request.with_name(request.name.replace(".request", "")).exists() for request in requests
        )
        print(f"{name}: {ended}, {answered} of {len(requests)}, {time.monotonic() - began:.0f} s", flush=True)

    def _answer(self, name: str) -> dict[str, Any]:
        path = self.options.out / f"{name}.json"
        if not path.exists():
            return {"failed": f"no answer of {name}"}
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def row(bench: Bench, tokens: int, nodes: int, ours: dict[str, Any]) -> dict[str, Any]:
    """Put a cell's figures side by side."""
    theirs, backend, batch = bench.fastest(tokens, nodes)
    setting = {"backend": backend, "batch": batch}
    found = {
        "tokens": tokens,
        "nodes": nodes,
        "ours": ours,
        "peer": theirs,
        "whole": True,
        "setting": setting,
    }
    if "failed" in ours or "failed" in theirs:
        return found
    paths = (bench.graph(f"ours-{tokens}-{nodes}"), bench.graph(f"peer-{tokens}-{nodes}-{backend}-{batch}"))
    return found | graphs_compared(tokens, ours, theirs, *paths)


def gates(rows: Sequence[dict[str, Any]]) -> list[Gate]:
    """Hold what was measured against the targets."""
    ran = [each for each in rows if "faster" in each]
    if not ran:
        return [Gate(what="cells", measured=0, passed=None)]
    faster = [each["faster"] for each in ran]
    edges, unfair = max(each["edges"] for each in ran), sum(not each["fair"] for each in ran)
    return [
        Gate(
            what=f"times faster, median (at least {FASTER:g})",
            measured=statistics.median(faster),
            passed=statistics.median(faster) >= FASTER,
        ),
        Gate(
            what=f"times faster, worst cell (at least {FASTER:g})",
            measured=min(faster),
            passed=min(faster) >= FASTER,
        ),
        Gate(
            what=f"edges, largest difference over the row's largest (at most {EDGES:g})",
            measured=edges,
            passed=edges <= EDGES,
        ),
        Gate(what="cells scored below the peer (at most 0)", measured=unfair, passed=unfair == 0),
        Gate(what="cells without a figure", measured=len(rows) - len(ran), passed=None),
    ]


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, required=True, help="python of the peer's environment")
    parser.add_argument("--peer-path", help="PYTHONPATH of the peer's process")
    parser.add_argument("--ours-path", help="PYTHONPATH of our own")
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="text to take prompts from")
    parser.add_argument("--model", type=Path, default=default_cache() / "models" / "smollm2")
    parser.add_argument("--out", type=Path, default=Path("out/bench-discovery-gpu"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--cells", default=",".join(CELLS), help="tokens x nodes, comma-separated")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--backends", nargs="+", default=BACKENDS)
    parser.add_argument("--seconds", type=float, default=1800.0, help="after these everything ends")
    return parser.parse_args()


def main() -> None:
    """Run the cells, print a line for each, and write every figure to OUT/discovery-gpu.json."""
    options = parsed()
    until = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    start = json.loads((options.model / "config.json").read_text())["bos_token_id"]
    text = options.text.read_text(encoding="utf-8")
    ids = [start, *tokenizer.encode(text[len(text) // 3 : len(text) // 3 + 40_000]).ids]
    peer_model(options.model, options.out)
    cells = [(int(tokens), int(nodes)) for tokens, nodes in (c.split("x") for c in options.cells.split(","))]
    bench = Bench(options=options, ids=ids, until=until)
    ours = bench.ours(cells)
    for number, backend in enumerate(options.backends):
        bench.theirs(ours, backend, share=0.9 / (len(options.backends) - number))
    rows = [row(bench, *cell, ours[cell]) for cell in cells]
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device
    print(f"{device}\n{HEADER}")
    for each in rows:
        print(line(each))
    found = gates(rows)
    for gate in found:
        print(gate)
    record = {"device": device, "cells": rows, "gates": [str(gate) for gate in found]}
    (options.out / "discovery-gpu.json").write_text(json.dumps(record, indent=1))
    if any(gate.passed is False for gate in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""Discovery beside circuit-tracer, side by side in one run: `make bench-discovery`.

Same model, transcoders, token ids, logit targets, dtype and threads; a fresh process per cell. It counts as
faster only where edges agree and replacement and completeness, by circuit-tracer's definitions at equal
node count, are not below its own minus 0.005. Every process that ended is kept in a file (`--keep`), so that
an interrupted run goes on where it stopped. Without `--full` long runs of the peer are sampled, and no new
cell starts once the minutes are over.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from benchmarks.discovery_gates import gates
from benchmarks.graph_scores import StoredGraph, agreement, scores
from benchmarks.kept_runs import KeptRuns
from trephine.server.places import default_cache

PEER_CELL = Path(__file__).with_name("peers") / "circuit_tracer_cell.py"
TOKENS, NODES = (16, 64, 192), (256, 1024, 4096)
GROWTH = (64, 128, 256, 512, 1024)
BACKENDS, BATCHES = ("transformerlens", "nnsight"), (16, 64, 256)
WHOLE_SECONDS, MEMORY_BYTES = 240.0, 12 << 30
SAMPLED = 4
CHECKED = (16, 1024)
"""Tokens and nodes of the cell that is sampled and run whole, to check the extrapolation."""
QUICK, REPEATS = 16 * 1024, 3
"""Tokens times nodes up to which both sides are run this often, and the median counts: cells of seconds."""
CHECK_BATCH = 64
"""Its largest batch, so that most of its batches are left to the extrapolation."""
HEADER = (
    "tokens nodes | ours s    MB | peer s      MB  setting              | faster leaner overlap edges "
    "(of graph) R C"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where everything is."""

    peer: Path
    model: Path
    transcoders: Path
    ids: Sequence[int]
    out: Path
    threads: int
    kept: KeptRuns
    settings: Sequence[dict[str, Any]]
    """The peer's backends and batches that are tried."""
    whole: bool = False
    """True if the peer is never sampled, however long it takes."""

    def ours(self, tokens: int, nodes: int, *, graph: bool = True) -> dict[str, Any]:
        """Run a cell of ours."""
        request = {"model": str(self.model), "choose_logits": 3, "logits": []}
        command = [sys.executable, "-m", "benchmarks.discovery_cell"]
        return self._run(command, f"ours-{tokens}-{nodes}", tokens, nodes, request, graph=graph)

    def theirs(self, tokens: int, nodes: int, ours: dict[str, Any], **choice: Any) -> dict[str, Any]:
        """Run a cell of the peer."""
        request = {"model": str(self.out / "peer-model"), "logits": ours["logits"], **choice}
        request["memory_bytes"] = MEMORY_BYTES
        graph = choice["sampled"] is None
        return self._run(
            [str(self.peer), str(PEER_CELL)], f"peer-{tokens}-{nodes}", tokens, nodes, request, graph=graph
        )

    def _run(
        self,
        command: list[str],
        name: str,
        tokens: int,
        nodes: int,
        request: dict[str, Any],
        *,
        graph: bool,
    ) -> dict[str, Any]:
        answer, path = self.out / f"{name}.json", self.out / f"{name}.request.json"
        answer.unlink(missing_ok=True)
        quick = request.get("sampled") is None and tokens * nodes <= QUICK
        body = request | {
            "ids": list(self.ids[:tokens]),
            "nodes": nodes,
            "repeats": REPEATS if quick else 1,
            "threads": self.threads,
            "transcoders": str(self.transcoders),
            "graph": str(self.out / f"{name}.npz") if graph else "",
            "answer": str(answer),
        }
        kept = self.kept.get(name, body)
        if kept is not None:
            return kept
        path.write_text(json.dumps(body))
        with (self.out / f"{name}.log").open("w") as log:
            done = subprocess.run([*command, str(path)], stdout=log, stderr=log, check=False)
        if done.returncode != 0 or not answer.exists():
            return {"failed": f"exit {done.returncode}; see {log.name}"}
        found: dict[str, Any] = json.loads(answer.read_text())
        self.kept.keep(name, body, found)
        return found


def peer_model(model: Path, out: Path) -> None:
    """Lay the same weights out so that transformers 4 reads them: the rotary base where it looks for it."""
    folder = out / "peer-model"
    folder.mkdir(parents=True, exist_ok=True)
    for path in model.iterdir():
        if path.name not in ("config.json", "tokenizer_config.json") and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path.resolve())
    config = json.loads((model / "config.json").read_text())
    config |= {
        "rope_theta": config.pop("rope_parameters")["rope_theta"],
        "torch_dtype": config.pop("dtype"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))


def best_setting(bench: Bench, tokens: int, ours: dict[str, Any]) -> tuple[dict[str, Any], float, float]:
    """Try the peer's backends and batches for two batches each; return the best, its set-up and its rate."""
    best: tuple[float, dict[str, Any], float] | None = None
    for choice in bench.settings:
        tried = bench.theirs(tokens, 2 * choice["batch"], ours, sampled=[0, 1, 2], **choice)
        if "failed" in tried:
            continue
        per_node = statistics.mean(tried["batch_seconds"][1:]) / choice["batch"]
        if best is None or per_node < best[0]:
            best = (per_node, choice, tried["setup_seconds"])
    if best is None:
        raise SystemExit(f"the peer ran with no setting at {tokens} tokens; see {bench.out}")
    return best[1], best[2], best[0]


def peer_cell(
    bench: Bench, tokens: int, nodes: int, ours: dict[str, Any], setting: tuple[dict[str, Any], float, float]
) -> tuple[dict[str, Any], bool]:
    """Run the peer whole where that is quick, else sample it; return its figures and whether it ran whole."""
    choice, setup, per_node = setting
    if bench.whole or setup + per_node * nodes < WHOLE_SECONDS or nodes == NODES[0]:
        return bench.theirs(tokens, nodes, ours, sampled=None, **choice), True
    return extrapolated(bench, tokens, nodes, ours, choice), False


def extrapolated(
    bench: Bench, tokens: int, nodes: int, ours: dict[str, Any], choice: dict[str, Any]
) -> dict[str, Any]:
    """Run the peer's set-up in full and a few batches spread over the run; extrapolate by batch count."""
    batches = 1 + math.ceil(nodes / choice["batch"])
    spread = sorted({0, *(1 + round(i * (batches - 2) / (SAMPLED - 1)) for i in range(SAMPLED))})
    found = bench.theirs(tokens, nodes, ours, sampled=spread, **choice)
    if "failed" not in found:
        rest = statistics.mean(found["batch_seconds"][1:]) * (found["batches"] - 1)
        taken = sum(found["batch_seconds"][1:]) + found["skipped_seconds"]
        found = found | {"seconds": found["seconds"] - taken + rest}
    return found


def check_extrapolation(bench: Bench) -> dict[str, Any]:
    """Run one cell of the peer whole and extrapolated; print how far the extrapolation is off."""
    tokens, nodes = CHECKED
    ours = bench.ours(tokens, nodes)
    best = best_setting(bench, tokens, ours)[0]
    choice = best | {"batch": min(best["batch"], CHECK_BATCH)}
    whole = bench.theirs(tokens, nodes, ours, sampled=None, **choice)
    guess = extrapolated(bench, tokens, nodes, ours, choice)
    failed = [run["failed"] for run in (whole, guess) if "failed" in run]
    if failed:
        print(f"check cell: {failed[0]}")
        return {"failed": failed[0]}
    off = guess["seconds"] / whole["seconds"] - 1
    print(
        f"check cell, {tokens} tokens, {nodes} nodes: {whole['seconds']:.1f} s whole, "
        f"~{guess['seconds']:.1f} s extrapolated, {off:+.1%}"
    )
    return {"whole": whole["seconds"], "extrapolated": guess["seconds"], "off": off}


def cells(tokens: Sequence[int], nodes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """List the cells by node count, so that every length has been seen before the large ones begin."""
    yield from ((length, count) for count in nodes for length in tokens)


def grid(
    bench: Bench, tokens: Sequence[int], nodes: Sequence[int], until: float = math.inf
) -> list[dict[str, Any]]:
    """Run the grid; print a line per cell. No cell starts after `until`, by the monotonic clock."""
    rows: list[dict[str, Any]] = []
    settings: dict[int, tuple[dict[str, Any], float, float]] = {}
    print(HEADER)
    for length, count in cells(tokens, nodes):
        if time.monotonic() > until:
            print(f"{length:6d} {count:5d} | left out: the minutes are over; --full runs it", flush=True)
            continue
        ours = bench.ours(length, count)
        if "failed" in ours:
            rows.append({"tokens": length, "nodes": count, "ours": ours, "peer": {}, "whole": False})
            print(line(rows[-1]), flush=True)
            continue
        if length not in settings:
            settings[length] = best_setting(bench, length, ours)
        setting = settings[length]
        theirs, whole = peer_cell(bench, length, count, ours, setting)
        rows.append(compared(bench, length, count, ours, theirs, whole) | {"setting": setting[0]})
        print(line(rows[-1]), flush=True)
    return rows


def compared(
    bench: Bench, tokens: int, nodes: int, ours: dict[str, Any], theirs: dict[str, Any], whole: bool
) -> dict[str, Any]:
    """Put a cell's figures side by side."""
    row: dict[str, Any] = {"tokens": tokens, "nodes": nodes, "ours": ours, "peer": theirs, "whole": whole}
    if "failed" in ours or "failed" in theirs:
        return row
    paths = [bench.out / f"{who}-{tokens}-{nodes}.npz" for who in ("ours", "peer")]
    return row | (graphs_compared(tokens, ours, theirs, *paths) if whole else sizes_compared(ours, theirs))


def sizes_compared(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Compare time and memory of a cell."""
    return {
        "faster": theirs["seconds"] / ours["seconds"],
        "leaner": theirs["extra_bytes"] / max(1, ours["extra_bytes"]),
    }


def graphs_compared(
    tokens: int, ours: dict[str, Any], theirs: dict[str, Any], our_graph: Path, their_graph: Path
) -> dict[str, Any]:
    """Compare time and memory of a cell that both ran whole, and their graphs."""
    graphs = [StoredGraph.read(path) for path in (our_graph, their_graph)]
    found = agreement(*graphs)
    shares = torch.tensor(ours["shares"])
    n_layers = (len(graphs[0].matrix) - len(graphs[0].selected) - len(shares)) // tokens - 1
    ours_scores, peer_scores = (scores(g, shares, n_layers=n_layers, n_pos=tokens) for g in graphs)
    fair = all(a >= b - 0.005 for a, b in zip(ours_scores, peer_scores, strict=True))
    return sizes_compared(ours, theirs) | {
        "overlap": found.overlap,
        "edges": found.worst,
        "edges_of_graph": found.of_graph,
        "scores": (ours_scores, peer_scores),
        "fair": fair,
    }


def line(row: dict[str, Any]) -> str:
    """One cell for people; `~` marks what was extrapolated."""
    ours, peer = row["ours"], row["peer"]
    failed = [who["failed"] for who in (ours, peer) if "failed" in who]
    start = f"{row['tokens']:6d} {row['nodes']:5d} |"
    if failed:
        return f"{start} {failed[0]}"
    setting = f"{row['setting']['backend']} x{row['setting']['batch']}"
    mark = " " if row["whole"] else "~"
    text = (
        f"{start} {ours['seconds']:6.1f} {ours['extra_bytes'] / 1e6:5.0f} |{mark}{peer['seconds']:6.1f} "
        f"{peer['extra_bytes'] / 1e6:7.0f}  {setting:20s} | {row['faster']:5.1f}x {row['leaner']:5.1f}x"
    )
    if "overlap" not in row:
        return text
    (r, c), (peer_r, peer_c) = row["scores"]
    edges = f"{row['edges']:.0e} ({row['edges_of_graph']:.0e})"
    fair = "" if row["fair"] else "  below the peer's"
    return f"{text} {row['overlap']:6.2f} {edges}  {r:.3f}/{peer_r:.3f} {c:.3f}/{peer_c:.3f}{fair}"


def growth(bench: Bench, lengths: Sequence[int], nodes: int) -> dict[str, float]:
    """Fit log time and log extra memory on log tokens at equal node count."""
    cells = [bench.ours(length, nodes, graph=False) for length in lengths]
    x = torch.tensor([float(length) for length in lengths]).log()
    slopes = {}
    for name in ("seconds", "extra_bytes"):
        y = torch.tensor([float(cell[name]) for cell in cells]).log()
        slopes[name] = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    for length, cell in zip(lengths, cells, strict=True):
        print(f"{length:6d} {nodes:5d} | {cell['seconds']:6.1f} s {cell['extra_bytes'] / 1e6:6.0f} MB")
    print(f"log-log slope: time {slopes['seconds']:.2f}, memory {slopes['extra_bytes']:.2f}")
    return slopes


def main() -> None:
    """Run what was asked for and write every figure to OUT/discovery.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, required=True, help="python of the peer's environment")
    parser.add_argument(
        "--transcoders",
        type=Path,
        required=True,
        help="SAELens folders layer_0, layer_1, ...",
    )
    parser.add_argument("--text", type=Path, required=True, help="text to take prompts from")
    parser.add_argument("--model", type=Path, default=default_cache() / "models" / "smollm2")
    parser.add_argument("--out", type=Path, default=Path("out/bench-discovery"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--nodes", type=int, nargs="*", default=NODES)
    parser.add_argument("--full", action="store_true", help="run every cell whole, however long it takes")
    parser.add_argument("--minutes", type=float, default=32.0, help="after these no new cell starts")
    parser.add_argument("--keep", type=Path, help="file of finished runs; unset: OUT/kept.json")
    parser.add_argument("--growth", type=int, nargs="*", default=GROWTH, help="lengths of the growth fit")
    parser.add_argument("--backend", choices=BACKENDS, help="the peer's, where it is known which is best")
    parser.add_argument("--batch", type=int, help="the peer's, likewise")
    parser.add_argument("--no-check", action="store_true", help="do not check the extrapolation")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    start = json.loads((options.model / "config.json").read_text())["bos_token_id"]
    text = options.text.read_text(encoding="utf-8")
    ids = [start, *tokenizer.encode(text[len(text) // 3 : len(text) // 3 + 40_000]).ids]
    bench = Bench(
        peer=options.peer,
        model=options.model,
        transcoders=options.transcoders,
        ids=ids,
        out=options.out,
        threads=options.threads,
        kept=KeptRuns(options.keep or options.out / "kept.json"),
        settings=[
            {"backend": backend, "batch": batch}
            for backend in ([options.backend] if options.backend else BACKENDS)
            for batch in ([options.batch] if options.batch else BATCHES)
        ],
        whole=options.full,
    )
    peer_model(options.model, options.out)
    until = math.inf if options.full else time.monotonic() + 60 * options.minutes
    grown = growth(bench, options.growth, 1024) if options.growth else {}
    check = {} if options.no_check else check_extrapolation(bench)
    rows = grid(bench, options.tokens, options.nodes, until) if options.nodes else []
    record = {"cells": rows, "growth": grown, "check": check}
    conclude(record, options.out, len(options.tokens) * len(options.nodes))


def conclude(record: dict[str, Any], out: Path, asked: int) -> None:
    """Print the targets and write every figure to OUT/discovery.json; the status says whether all are met."""
    rows = record["cells"]
    found = gates(rows, record["growth"], record["check"], left_out=asked - len(rows))
    for gate in found:
        print(gate)
    out.mkdir(parents=True, exist_ok=True)
    (out / "discovery.json").write_text(
        json.dumps(record | {"gates": [str(gate) for gate in found]}, indent=1)
    )
    if any(gate.passed is False for gate in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

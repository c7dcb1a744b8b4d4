"""Discovery beside circuit-tracer, side by side in one run: `make bench-discovery`.

Same model, transcoders, token ids, logit targets, dtype and threads; a fresh process per cell. It counts as
faster only where edges agree and replacement and completeness, by circuit-tracer's definitions at equal
node count, are not below its own minus 0.005.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from benchmarks.graph_scores import StoredGraph, agreement, scores
from trephine.server.places import default_cache

PEER_CELL = Path(__file__).with_name("peers") / "circuit_tracer_cell.py"
TOKENS, NODES = (16, 64, 192), (256, 1024, 4096)
GROWTH = (64, 128, 256, 512, 1024)
BACKENDS, BATCHES = ("transformerlens", "nnsight"), (16, 64, 256)
WHOLE_SECONDS, MEMORY_BYTES = 240.0, 12 << 30
SAMPLED = 4
HEADER = (
    "tokens nodes | ours s    MB | peer s      MB  setting              | faster leaner overlap edges R C"
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

    def ours(self, tokens: int, nodes: int, *, graph: bool = True) -> dict[str, Any]:
        """Run a cell of ours."""
        request = {"model": str(self.model), "choose_logits": 3, "logits": []}
        command = [sys.executable, "-m", "benchmarks.discovery_cell"]
        return self._run(command, f"ours-{tokens}-{nodes}", tokens, nodes, request, graph=graph)

    def theirs(self, tokens: int, nodes: int, ours: dict[str, Any], **choice: Any) -> dict[str, Any]:
        """Run a cell of the peer."""
        request = {"model": str(self.out / "peer-model"), "logits": ours["logits"], **choice}
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
        body = request | {
            "ids": list(self.ids[:tokens]),
            "nodes": nodes,
            "threads": self.threads,
            "transcoders": str(self.transcoders),
            "graph": str(self.out / f"{name}.npz") if graph else "",
            "answer": str(answer),
        }
        path.write_text(json.dumps(body))
        with (self.out / f"{name}.log").open("w") as log:
            done = subprocess.run([*command, str(path)], stdout=log, stderr=log, check=False)
        if done.returncode != 0 or not answer.exists():
            return {"failed": f"exit {done.returncode}; see {log.name}"}
        found: dict[str, Any] = json.loads(answer.read_text())
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
    for backend in BACKENDS:
        for batch in BATCHES:
            choice = {"backend": backend, "batch": batch}
            tried = bench.theirs(tokens, 2 * batch, ours, sampled=[0, 1, 2], **choice)
            if "failed" in tried or tried["extra_bytes"] > MEMORY_BYTES:
                continue
            per_node = statistics.mean(tried["batch_seconds"][1:]) / batch
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
    if setup + per_node * nodes < WHOLE_SECONDS or nodes == NODES[0]:
        return bench.theirs(tokens, nodes, ours, sampled=None, **choice), True
    batches = 1 + math.ceil(nodes / choice["batch"])
    spread = sorted({0, *(1 + round(i * (batches - 2) / (SAMPLED - 1)) for i in range(SAMPLED))})
    found = bench.theirs(tokens, nodes, ours, sampled=spread, **choice)
    if "failed" not in found:
        rest = statistics.mean(found["batch_seconds"][1:]) * (found["batches"] - 1)
        taken = sum(found["batch_seconds"][1:]) + found["skipped_seconds"]
        found["seconds"] = found["seconds"] - taken + rest
    return found, False


def grid(bench: Bench, tokens: Iterable[int], nodes: Iterable[int]) -> list[dict[str, Any]]:
    """Run the grid; print a line per cell."""
    rows = []
    print(HEADER)
    for length in tokens:
        setting = None
        for count in nodes:
            ours = bench.ours(length, count)
            setting = setting or best_setting(bench, length, ours)
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
    row |= {"faster": theirs["seconds"] / ours["seconds"]}
    row |= {"leaner": theirs["extra_bytes"] / max(1, ours["extra_bytes"])}
    if not whole:
        return row
    graphs = [StoredGraph.read(bench.out / f"{who}-{tokens}-{nodes}.npz") for who in ("ours", "peer")]
    found = agreement(*graphs)
    shares = torch.tensor(ours["shares"])
    n_layers = (len(graphs[0].matrix) - len(graphs[0].selected) - len(shares)) // tokens - 1
    ours_scores, peer_scores = (scores(g, shares, n_layers=n_layers, n_pos=tokens) for g in graphs)
    fair = all(a >= b - 0.005 for a, b in zip(ours_scores, peer_scores, strict=True))
    row |= {
        "overlap": found.overlap,
        "edges": found.worst,
        "scores": (ours_scores, peer_scores),
        "fair": fair,
    }
    return row


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
    fair = "" if row["fair"] else "  below the peer's"
    return f"{text} {row['overlap']:6.2f} {row['edges']:.0e}  {r:.3f}/{peer_r:.3f} {c:.3f}/{peer_c:.3f}{fair}"


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
        "--transcoders", type=Path, required=True, help="SAELens folders layer_0, layer_1, ..."
    )
    parser.add_argument("--text", type=Path, required=True, help="text to take prompts from")
    parser.add_argument("--model", type=Path, default=default_cache() / "models" / "smollm2")
    parser.add_argument("--out", type=Path, default=Path("out/bench-discovery"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--nodes", type=int, nargs="+", default=NODES)
    parser.add_argument("--growth", type=int, nargs="*", default=GROWTH, help="lengths of the growth fit")
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
    )
    peer_model(options.model, options.out)
    rows = grid(bench, options.tokens, options.nodes)
    faster = [row["faster"] for row in rows if "faster" in row]
    if faster:
        print(f"median {statistics.median(faster):.1f}x faster, worst {min(faster):.1f}x")
    slopes = growth(bench, options.growth, 1024) if options.growth else {}
    (options.out / "discovery.json").write_text(json.dumps({"cells": rows, "slopes": slopes}, indent=1))


if __name__ == "__main__":
    main()

"""One long discovery: 1,024 tokens, 4,096 nodes, under 8 GB and 40 minutes on two cores.

`make bench-long` runs one cell in a process of its own, like those of `benchmarks.discovery`, prints its time
and memory, and ends with 1 if either bound is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from trephine.server.places import default_cache

MOST_BYTES, MOST_SECONDS = 8e9, 40 * 60.0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the cell and return its figures."""
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    start = json.loads((options.model / "config.json").read_text())["bos_token_id"]
    text = options.text.read_text(encoding="utf-8")
    ids = [start, *tokenizer.encode(text[len(text) // 3 : len(text) // 3 + 40_000]).ids][: options.tokens]
    with tempfile.TemporaryDirectory() as folder:
        answer, request = Path(folder) / "answer.json", Path(folder) / "request.json"
        body = {
            "model": str(options.model),
            "transcoders": str(options.transcoders),
            "ids": ids,
            "choose_logits": 3,
            "logits": [],
            "nodes": options.nodes,
            "threads": options.threads,
            "graph": "",
            "answer": str(answer),
        }
        request.write_text(json.dumps(body))
        subprocess.run([sys.executable, "-m", "benchmarks.discovery_cell", str(request)], check=True)
        found: dict[str, Any] = json.loads(answer.read_text())
    return found


def main() -> None:
    """Print the figures beside their bounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=default_cache() / "models" / "smollm2")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--nodes", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    found = run(options)
    print(
        f"{options.tokens} tokens, {options.nodes} nodes, {found['active']} active features, "
        f"{options.threads} threads\n"
        f"time    {found['seconds']:8.0f} s on the clock, {found['cpu_seconds']:.0f} s of processors "
        f"(at most {MOST_SECONDS:.0f} s)\n"
        f"memory  {found['peak_bytes'] / 1e9:8.2f} GB at the peak, model and transcoders included (at most "
        f"{MOST_BYTES / 1e9:.0f} GB); {found['extra_bytes'] / 1e9:.2f} GB beyond them"
    )
    if found["peak_bytes"] > MOST_BYTES or found["seconds"] > MOST_SECONDS:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

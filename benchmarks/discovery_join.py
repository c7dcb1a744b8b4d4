"""The table and the targets of the discovery bench out of what several of its runs wrote.

    python -m benchmarks.discovery_join --out out/joined out/a/discovery.json out/b/discovery.json

Where a machine has cores enough, cells run beside each other, a run of `benchmarks.discovery` each, pinned to
cores of its own (`taskset`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.discovery import HEADER, NODES, TOKENS, conclude, line


def joined(paths: Sequence[Path]) -> dict[str, Any]:
    """Put cells, growth and the check of the extrapolation together."""
    runs = [json.loads(path.read_text()) for path in paths]
    found: dict[str, Any] = {"cells": [], "growth": {}, "check": {}}
    for run in runs:
        found["cells"] += run["cells"]
        found["growth"] |= run["growth"]
        found["check"] |= run["check"]
    found["cells"].sort(key=lambda row: (row["tokens"], row["nodes"]))
    return found


def main() -> None:
    """Print the table, growth, and every target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", help="discovery.json of each run")
    parser.add_argument("--out", type=Path, required=True, help="folder for the joined discovery.json")
    options = parser.parse_args()
    found = joined(options.files)
    print(HEADER)
    for row in found["cells"]:
        print(line(row))
    if slopes := found["growth"]:
        print(f"log-log slope: time {slopes['seconds']:.2f}, memory {slopes['extra_bytes']:.2f}")
    conclude(found, options.out, len(TOKENS) * len(NODES))


if __name__ == "__main__":
    main()

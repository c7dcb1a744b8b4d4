"""How many operations a graph asks of a device, views aside, when its prompt is laid out in tables.

    python -m benchmarks.discovery_calls --transcoders SET --text TEXT

On a GPU a model of ordinary size waits for calls, so that their number is the time (ADR 33). They are counted
here without one: tables are made on the processor, whose other sizes (what is listed, stored and put together
at once) stay a processor's. Each length is one graph over the ten likeliest logits.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.discovery_cell import discover, load
from trephine.engine.attribution.operators import capture
from trephine.engine.graphs import basis
from trephine.engine.models.hosted import HostedModel
from trephine.server.places import default_cache

LOGITS = 10
WARM_UP = 6
MEMORY = {"empty", "empty_like", "empty_strided", "new_empty"}
"""Operations that ask an allocator for room, not a device for work."""
ENGINE = "/trephine/engine/"


class Calls(TorchDispatchMode):
    """Counts operations by the module of the engine that asks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.by_module: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one, unless it is a view or composite: what composites are made of is counted itself."""
        composite = func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
        if not (func.is_view or composite or func.overloadpacket.__name__ in MEMORY):
            self.by_module[_module()] += 1
        return func(*args, **(kwargs or {}))


def _module() -> str:
    """Name the innermost module of the engine on the stack."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        _, inside, rest = frame.f_code.co_filename.partition(ENGINE)
        if inside:
            return rest.removesuffix(".py")
        frame = frame.f_back
    return "elsewhere"


def counted(hosted: HostedModel, ids: Sequence[int], nodes: int) -> Counter[str]:
    """Grow one graph over tables; return its operations by module."""
    logits = capture(hosted.model, hosted.architecture, ids).logits.topk(LOGITS).indices.tolist()
    with mock.patch.object(basis, "is_tabled", return_value=True), Calls() as calls:
        discover(hosted, ids, logits, nodes)
    return calls.by_module


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transcoders", required=True, help="SAELens folders layer_0, layer_1, ...")
    parser.add_argument("--text", type=Path, required=True, help="text to take prompts from")
    parser.add_argument("--model", default=str(default_cache() / "models" / "smollm2"))
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 192])
    parser.add_argument("--nodes", type=int, default=256)
    options = parser.parse_args()
    hosted = load(options.model, options.transcoders)
    ids = hosted.encode(options.text.read_text()[: 50 * max(options.tokens)])
    counted(hosted, ids[:WARM_UP], 8)
    for length in options.tokens:
        found = counted(hosted, ids[:length], options.nodes)
        print(f"{length} tokens, {options.nodes} nodes: {found.total():,} calls")
        for module, number in found.most_common(12):
            print(f"{number:8,} {module}")


if __name__ == "__main__":
    main()

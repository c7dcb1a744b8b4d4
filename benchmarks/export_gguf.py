"""What is left of grafts in GGUF files: `python -m benchmarks.export_gguf`.

The export benchmark's ten features of SmolLM2, or those of `--features`, ablated at once, compiled for one
type of file and converted to several. Each file is loaded alone by stock transformers and held against the
parent quantised in the same way, in which the runtime intervenes; with `--llama-cpp`, where the package
`llama-cpp-python` is installed, in llama.cpp as well, beside what llama.cpp makes of the parent's own file.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.export import say
from benchmarks.export_draw import add_features, drawn
from benchmarks.export_features import Windows, firing, intervention, split
from benchmarks.kept_runs import KeptRuns
from benchmarks.laws import load_model
from benchmarks.replacements import load_set
from trephine.domain.edits import Edit
from trephine.domain.exports import GGUF_TYPES
from trephine.domain.interventions import Ablate
from trephine.engine.exports.reshaping import reshaped_files, write_weights
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.models.shards import read_entries
from trephine.engine.quantised.conversion import convert
from trephine.engine.quantised.twin import quantised_twin
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.retain import windows_logits
from trephine.engine.weights.compiling import WeightProgram, compile_weights
from trephine.server.places import default_cache


def written(parent: Path, program: WeightProgram, folder: Path) -> Path:
    """Write an export beside what is copied."""
    folder.mkdir()
    for path in parent.iterdir():
        if path.is_file() and path.name not in reshaped_files(program.changes):
            shutil.copyfile(path, folder / path.name)
    for _ in write_weights(parent, folder, read_entries(parent), program):
        pass
    return folder


def divergence(p: list[Tensor], q: list[Tensor]) -> Tensor:
    """Return KL per position, nats `(n,)`."""
    return torch.cat([kl_divergence(a, b) for a, b in zip(p, q, strict=True)])


def line(name: str, left: Tensor, edit: Tensor, mask: Tensor, beside: float) -> str:
    """Write a row of the table."""
    shares = [1 - float(left[part].mean()) / float(edit[part].mean()) for part in (mask | ~mask, mask)]
    return f"| {name} | {float(edit.mean()):.2e} | {shares[0]:.4f} | {shares[1]:.4f} | {beside:.2e} |"


def llama_line(kind: str, left: Tensor, copy: Tensor, rounding: Tensor, mask: Tensor) -> str:
    """Write what llama.cpp makes of the export and of the parent's file, KL over all and firing tokens."""
    export, parent, own = (
        f"{float(each.mean()):.2e} / {float(each[mask].mean()):.2e}" for each in (left, copy, rounding)
    )
    return f"| {kind} in llama.cpp | export {export} | parent, a no-op {parent} | own rounding {own} | |"


def stock_answers(file: Path, windows: Windows) -> list[Tensor]:
    """Return a file's logits in stock transformers, `(n_pos, d_vocab)` per window."""
    stock = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    return list(stock(torch.tensor(windows), use_cache=False).logits.float())


def llama_answers(file: Path, windows: Windows) -> list[Tensor]:
    """Return the same in llama.cpp, which rounds activations to eight bits as well."""
    llama_cpp: Any = importlib.import_module("llama_cpp")
    model = llama_cpp.Llama(str(file), n_ctx=len(windows[0]), logits_all=True, verbose=False, n_threads=1)
    found = []
    for window in windows:
        model.reset()
        model.eval(list(window))
        found.append(torch.from_numpy(np.array(model.scores[: len(window)], dtype=np.float32)))
    return found


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="What is left of grafts in GGUF files.")
    parser.add_argument("--model", type=Path, help="the fetched smollm2 if not given")
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    add_features(parser)
    parser.add_argument(
        "--compile-for", choices=GGUF_TYPES, default="q4_0", help="type whose grid grafts are written on"
    )
    parser.add_argument("--types", choices=GGUF_TYPES, nargs="+", default=["q8_0", "q4_1", "q4_0"])
    parser.add_argument("--llama-cpp", action="store_true", help="read each file in llama.cpp as well")
    parser.add_argument("--fit-windows", type=int, default=8)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument(
        "--draw", type=Path, default=Path("out/bench-export.json"), help="draws that are kept"
    )
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    hosted = load_model(given.model or default_cache() / "models" / "smollm2")
    load_set(Session(hosted=hosted), given.transcoders)
    text = given.text.read_text(encoding="utf-8")
    features = given.features
    if features is None:
        draws = drawn(hosted, split(hosted, text), 10, 0, KeptRuns(given.draw), say)
        features = [each.feature for each in draws]
    parts = split(hosted, text, given.fit_windows, given.windows)
    mask = torch.stack(list(firing(hosted, parts.measured, features).values())).any(0).flatten()
    change = tuple(intervention(ref, Ablate()) for ref in features)
    edit = Edit(
        name="ten", version=1, content_hash="", interventions=change, reason="", author="", evidence=(),
        model=hosted.info.name, weight_hash=hosted.info.weight_hash, create_time="",
    )  # fmt: skip
    entries = read_entries(hosted.folder)
    program = finish(compile_weights(hosted, entries, edit, parts.fit, kind=given.compile_for))
    plain = windows_logits(hosted, parts.measured)
    say(f"compiled for {given.compile_for}; {int(mask.sum())} of {mask.numel()} tokens fire")
    say("| file | edit KL | recovery | recovery, firing | quantising alone |")
    say("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="trephine-bench-gguf-") as scratch:
        folder = written(hosted.folder, program, Path(scratch) / "export")
        for kind in given.types:
            file = Path(scratch) / f"{kind}.gguf"
            for _ in convert(hosted, folder, kind, file, "ten"):
                pass
            twin = finish(quantised_twin(hosted, kind))
            own, before = (windows_logits(twin, parts.measured, each) for each in (change, ()))
            left = divergence(own, stock_answers(file, parts.measured))
            moved = divergence(own, before)
            say(line(kind, left, moved, mask, float(divergence(plain, before).mean())))
            if given.llama_cpp:
                there = divergence(own, llama_answers(file, parts.measured))
                file.unlink()
                for _ in convert(hosted, hosted.folder, kind, file, "parent"):
                    pass
                parents = llama_answers(file, parts.measured)
                rounding, copy = divergence(before, parents), divergence(own, parents)
                say(llama_line(kind, there, copy, rounding, mask))
            file.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())

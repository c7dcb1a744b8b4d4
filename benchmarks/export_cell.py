"""Answers of exported folders, from stock transformers in a clean process.

Run as `python -I export_cell.py REQUEST`.

The request names folders, a dtype, windows of token ids and where float32 logits of runtimes lie; one line of
JSON per folder says how far its answers are from theirs. Nothing of Trephine is imported but the module that
the request names, by its path: as the certifier does, it has products of bfloat16 computed in float32 and
rounded once where the processor has no units for them.
"""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def main() -> None:
    """Answer a request."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    torch.set_grad_enabled(False)
    for cell in request["cells"]:
        logits = answers(cell["folder"], request)
        if "save" in cell:
            save_file({"logits": logits}, cell["save"])
        found = {
            name: divergence(load_file(path)["logits"], logits).tolist()
            for name, path in cell["against"].items()
        }
        sys.stdout.write(json.dumps({"name": cell["name"], "kl": found}) + "\n")
        sys.stdout.flush()


def answers(folder: str, request: dict[str, Any]) -> torch.Tensor:
    """Return float32 logits `(n_windows, n_pos, d_vocab)`."""
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, request["dtype"]),
        attn_implementation="sdpa",
        local_files_only=True,
        use_safetensors=True,
    )
    model = loaded(request["narrow_products"]).widen_products(model.eval())
    ids = torch.tensor(request["windows"])
    return torch.cat([model(part, use_cache=False).logits.float() for part in ids.split(2)])


def loaded(path: str) -> ModuleType:
    """Load a module that stands alone from its file."""
    spec = spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def divergence(p_logits: torch.Tensor, q_logits: torch.Tensor) -> torch.Tensor:
    """Return KL(p || q) per position in nats, in the form that does not cancel (see the certifier)."""
    found = []
    for p_row, q_row in zip(p_logits.flatten(0, 1).split(4), q_logits.flatten(0, 1).split(4), strict=True):
        p, x = torch.softmax(p_row, -1), p_row - q_row
        x = x - (p * x).sum(-1, keepdim=True)
        if bool(x.abs().max() < 30.0):
            found.append(torch.log1p((p * (torch.expm1(-x) + x)).sum(-1).double()).clamp_min(0.0))
        else:
            log_p, log_q = torch.log_softmax(p_row.double(), -1), torch.log_softmax(q_row.double(), -1)
            found.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(found)


if __name__ == "__main__":
    main()

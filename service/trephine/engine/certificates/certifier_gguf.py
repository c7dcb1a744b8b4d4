"""Measure a GGUF file in a clean process. Run as a script; imports nothing of Trephine.

    python -I certifier_gguf.py REQUEST.json

Stock transformers loads the file, and nothing that lies beside it; its answers are compared with those of the
runtime that intervened in the quantised parent, which lie in safetensors files. Lines of JSON go to stdout as
those of `certifier.py` do.
"""

from __future__ import annotations

import json
import math
import sys
import threading
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any


def _beside(name: str) -> ModuleType:
    """Load a module that lies beside this script, which an isolated interpreter does not look for."""
    spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(f"{name}.py does not lie beside the certifier")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_certifier = _beside("certifier")


def main() -> None:
    """Read the request, measure, print the result."""
    sys.meta_path.insert(0, _certifier.Blocker())
    threading.Thread(target=_certifier._end_with_parent, daemon=True).start()
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    _certifier.say({"result": {"measurements": certify(request)}})


def certify(request: dict[str, Any]) -> dict[str, float | None]:
    """Compare the file's answers with those of the intervened runtime.

    Args:
        request: Folder and name of the file, windows of token ids, evidence of the quantised parent and of
            the unquantised one.
    """
    import torch

    torch.set_num_threads(request["threads"])
    torch.set_grad_enabled(False)
    model = _load(request)
    left, edit, floor, firing, agreed, losses = ([] for _ in range(6))
    for number, logits in _certifier.answers(model, request, "certify gguf"):
        runtime = _certifier.evidence(request, number)
        before = _certifier.evidence({"evidence": request["unquantised"]}, number)["original"]
        left.append(_certifier.kl(runtime["intervened"], logits))
        edit.append(_certifier.kl(runtime["intervened"], runtime["original"]))
        floor.append(_certifier.kl(before, runtime["original"]))
        agreed.append((logits.argmax(-1) == runtime["intervened"].argmax(-1)).float())
        if "firing" in runtime:
            firing.append(runtime["firing"])
        ids = request["windows"][number]
        pair = [_certifier.next_token_loss(each, ids) for each in (logits, runtime["intervened"])]
        losses.append(pair[0] - pair[1])
    mask = torch.cat(firing) if firing else None
    return {
        **_recovered("", torch.cat(left), torch.cat(edit)),
        **_recovered("_firing", *(_where(mask, torch.cat(parts)) for parts in (left, edit))),
        "quantisation_kl": float(torch.cat(floor).mean()),
        "perplexity_ratio": math.exp(float(torch.cat(losses).mean())),
        "top1_agreement": float(torch.cat(agreed).mean()),
    }


def _where(mask: Any, values: Any) -> Any:
    return values[:0] if mask is None else values[mask]


def _recovered(suffix: str, left: Any, edit: Any) -> dict[str, float | None]:
    """Return means and the share that is carried; None where there is nothing to measure."""
    if not len(left):
        return {f"kl{suffix}": None, f"edit_kl{suffix}": None, f"recovery{suffix}": None}
    kl, moved = float(left.mean()), float(edit.mean())
    share = 1.0 - kl / moved if moved > 0 else None
    return {f"kl{suffix}": kl, f"edit_kl{suffix}": moved, f"recovery{suffix}": share}


def _load(request: dict[str, Any]) -> Any:
    """Load the file alone, as its user would."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        request["folder"],
        gguf_file=request["file"],
        dtype=getattr(torch, request["dtype"]),
        attn_implementation=request["attention"],
        local_files_only=True,
    )
    return model.eval()


if __name__ == "__main__":
    main()

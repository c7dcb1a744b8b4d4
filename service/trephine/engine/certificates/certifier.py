"""Certify an exported folder in a clean process. Run as a script; imports nothing of Trephine.

    python -I certifier.py REQUEST.json

It loads the exported folder with stock transformers, recomputes the planned change from the parent's files,
and compares next-token distributions with those that the intervened runtime left in safetensors files.
Lines of JSON go to stdout: `{"stage": ..., "done": ..., "total": ...}`, at last `{"result": {...}}`. It ends
when its stdin closes, so that it never outlives whoever started it. On purpose it shares no code with the
compiler that it checks. On a processor without bfloat16 units it has their products computed in float32 and
rounded once, as units do.
"""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import sys
import threading
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any


def _beside(name: str) -> ModuleType:
    """Load a module by its path from this script, as an isolated interpreter looks for none."""
    path = (Path(__file__).parent / f"{name}.py").resolve()
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} does not lie where the certifier needs it")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_weights = _beside("certifier_weights")
compare_weights, off_plan, same_bits = _weights.compare_weights, _weights.off_plan, _weights.same_bits
changed_files = _beside("certifier_files").changed_files
_figures = _beside("certifier_figures")
kl, next_token_loss, recover = _figures.kl, _figures.next_token_loss, _figures.recover
_features = _beside("certifier_features")
_products = _beside("../models/narrow_products")
widen_products = _products.widen_products
spread, firing_spread, everywhere = _figures.spread, _figures.firing_spread, _figures.everywhere


class Blocker:
    """Makes every import of Trephine fail: what is certified must not depend on it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Refuse names of the package; leave all others to the ordinary finders."""
        if name == "trephine" or name.startswith("trephine."):
            raise ImportError("Trephine is blocked in the certifier")


def main() -> None:
    """Read the request, measure, print the result."""
    sys.meta_path.insert(0, Blocker())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    say({"result": certify(request)})


def _end_with_parent() -> None:
    while os.read(0, 1):  # raw: a buffered reader would hold a lock at exit
        pass
    os._exit(70)


def say(line: dict[str, Any]) -> None:
    """Print one line of JSON."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def certify(request: dict[str, Any]) -> dict[str, Any]:
    """Measure everything that the certificate holds.

    Args:
        request: Folders, windows of token ids, evidence files, planned slices, dtypes.
    """
    import torch

    torch.set_num_threads(request["threads"])
    torch.set_grad_enabled(False)
    measured = compare_weights(request)
    exported, parent = (Path(request[name]) for name in ("exported", "parent"))
    found = changed_files(exported, parent, request["copied"], request["config"])
    measured["files_changed_outside_plan"] = float(found)
    continuations = compare_answers(request, measured)
    return {
        "measurements": measured,
        "continuations": continuations,
        "environment": environment(),
    }


# --- answers -------------------------------------------------------------------------------------


def compare_answers(request: dict[str, Any], measured: dict[str, float]) -> dict[str, list[list[int]]]:
    """Compare next-token distributions; fill in `measured`; return greedy continuations of the prompts.

    `exported`: in the runtime's type. Where the files hold another one, `stored` are the same model's in that
    type, and `parent_stored` the parent's.
    """
    compute, stock = request["compute_dtype"], request["attention"]
    parent, exported = request["parent"], request["exported"]

    model, keys = load(exported, compute, stock)
    names = ("intervened", "original", "damage", "edit", "top", "firing", "loss", "loss_intervened")
    against: dict[str, list[Any]] = {name: [] for name in names}
    features = _features.Features(request["evidence"], request["features"])
    for number, logits in answers(model, request, "certify"):
        runtime = evidence(request, number)
        against["intervened"].append(kl(runtime["intervened"], logits))
        against["original"].append(kl(runtime["original"], logits))
        against["damage"].append(kl(runtime["original"], runtime["intervened"]))
        against["edit"].append(kl(runtime["intervened"], runtime["original"]))
        against["top"].append((logits.argmax(-1) == runtime["intervened"].argmax(-1)).float())
        if "firing" in runtime:
            against["firing"].append(runtime["firing"])
        features.add(number, runtime["intervened"], logits, against["intervened"][-1], against["edit"][-1])
        ids = request["windows"][number]
        against["loss"].append(next_token_loss(logits, ids))
        against["loss_intervened"].append(next_token_loss(runtime["intervened"], ids))
    masks = against["firing"] or [None] * len(request["windows"])
    continuations = {"exported": greedy(model, request["prompts"], request["greedy_tokens"])}
    describe(measured, against)
    features.describe(measured)
    compare_retained(measured, model, request)

    model.set_attn_implementation("eager")
    eager = distances(model, request, "certify: attention", "intervened")
    spread(measured, "kl_intervened_exported_same_attention", eager)
    if request["in_float32"]:
        model.set_attn_implementation(stock)
        compare_in_float32(measured, model.float(), request, masks)
    del model
    gc.collect()

    model, parent_keys = load(parent, compute, stock)
    measured["load_differences"] = float(len(keys ^ parent_keys))
    floor_of_attention(measured, model, request, masks)
    del model
    gc.collect()
    model, _ = load(parent, request["other_dtype"], stock)
    continuations |= floor_of_dtype(measured, model, request, masks, features)
    del model
    gc.collect()
    if request["stored_dtype"] != compute:
        continuations["stored"] = compare_as_stored(measured, request, against["edit"], masks, features)
    return continuations


def compare_retained(measured: dict[str, float], model: Any, request: dict[str, Any]) -> None:
    """Say what a text that the edit must leave alone comes to, where one lies beside what is measured."""
    if not request["retained"]:
        return
    exported, hook = [], []
    for number, logits in answers(model, request, "certify: retain text", of="retained"):
        runtime = evidence(request, number, "retained")
        exported.append(kl(runtime["original"], logits))
        hook.append(kl(runtime["original"], runtime["intervened"]))
    name = "retain_builtin_kl_original"
    spread(measured, f"{name}_exported", exported)
    spread(measured, f"{name}_exported_after_first", [part[1:] for part in exported])
    spread(measured, f"{name}_intervened", hook)
    measured["retain_builtin_excess"] = abs(
        measured[f"{name}_exported_mean"] - measured[f"{name}_intervened_mean"]
    )


def compare_as_stored(
    measured: dict[str, float], request: dict[str, Any], edit: list[Any], masks: list[Any], features: Any
) -> list[list[int]]:
    """Run the folder in the type of its files, as it will be served; return its continuations.

    It is held against the runtime as that computes (`..._in_stored_dtype`, the arithmetic's own noise
    included), and, where that left answers in the narrower type as well, against those (`..._both_in_...`).
    """
    model, _ = load(request["exported"], request["stored_dtype"], request["attention"])
    wide, same = _figures.Comparison(), _figures.Comparison()
    for number, logits in answers(model, request, "certify: as stored"):
        runtime, ids = evidence(request, number), request["windows"][number]
        wide.add(runtime["intervened"], logits, ids, edit[number])
        if "intervened_stored" in runtime:
            wanted, original = (runtime[f"{name}_stored"].float() for name in ("intervened", "original"))
            same.add(wanted, logits, ids, kl(wanted, original))
    wide.describe(measured, "_in_stored_dtype", masks)
    features.where_firing(measured, "kl_intervened_exported_in_stored_dtype", wide.left)
    if same.windows:
        same.describe(measured, "_both_in_stored_dtype", masks)
    return greedy(model, request["prompts"], request["greedy_tokens"])


def compare_in_float32(
    measured: dict[str, float], model: Any, request: dict[str, Any], masks: list[Any]
) -> None:
    """Hold the folder against the runtime, both computing in float32 on the narrow weights that both hold.

    What one does and the other does not is not hidden there by what their own type rounds away.

    Args:
        measured: To be filled in.
        model: Of the folder, loaded in the runtime's type and widened.
        request: What is asked.
        masks: Where edited features fire.
    """
    both = _figures.Comparison()
    for number, logits in answers(model, request, "certify: in float32"):
        runtime = evidence(request, number)
        wanted, original = (runtime[f"{name}_in_float32"] for name in ("intervened", "original"))
        both.add(wanted, logits, request["windows"][number], kl(wanted, original))
    both.describe(measured, "_in_float32", masks)
    for where in ("", "_firing"):
        if f"recovery_in_float32{where}" in measured:
            measured[f"unrecovered_in_float32{where}"] = 1.0 - measured[f"recovery_in_float32{where}"]


def floor_of_dtype(
    measured: dict[str, float], model: Any, request: dict[str, Any], masks: list[Any], features: Any
) -> dict[str, list[list[int]]]:
    """Compare the parent with itself in another type; in that of its files also tokens, as served.

    Returns:
        Its continuations, `parent_stored`, if the other type is that of its files.
    """
    floor, served = [], _figures.Comparison()
    for number, logits in answers(model, request, "certify: noise floor, dtype"):
        runtime = evidence(request, number)
        floor.append(kl(runtime["plain"], logits))
        served.add(runtime["original"], logits, request["windows"][number])
    everywhere(measured, "noise_floor_dtype", floor, masks)
    features.where_firing(measured, "noise_floor_dtype", floor)
    if request["other_dtype"] != request["stored_dtype"]:
        return {}
    measured["noise_top1_agreement_in_stored_dtype"] = served.agreement
    measured["noise_perplexity_ratio_in_stored_dtype"] = served.perplexity_ratio
    return {"parent_stored": greedy(model, request["prompts"], request["greedy_tokens"])}


def floor_of_attention(
    measured: dict[str, float], model: Any, request: dict[str, Any], masks: list[Any]
) -> None:
    """Compare the parent in the runtime with the parent under stock attention; keep the latter's answers.

    They lie beside the evidence, as `plain`: in memory, those of a large vocabulary would take gigabytes.
    """
    import torch
    from safetensors.torch import save_file

    floor, same = [], []
    for number, logits in answers(model, request, "certify: noise floor, attention"):
        original = evidence(request, number)["original"]
        floor.append(kl(original, logits))
        same.append((original.argmax(-1) == logits.argmax(-1)).float())
        save_file({"plain": logits.contiguous()}, kept(request, number, "plain"))
    everywhere(measured, "noise_floor_attention", floor, masks)
    measured["noise_top1_agreement"] = float(torch.cat(same).mean())


def distances(model: Any, request: dict[str, Any], stage: str, other: str) -> list[Any]:
    """Return KL(other's answers || this model's) per position of every window, in order."""
    return [kl(evidence(request, number)[other], logits) for number, logits in answers(model, request, stage)]


def load(folder: str, dtype: str, attention: str) -> tuple[Any, frozenset[str]]:
    """Load a folder with stock transformers; return the model and the keys that it complained about."""
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        attn_implementation=attention,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    complaints = frozenset(
        f"{kind}: {key}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for key in report[kind]
    )
    return widen_products(model.eval()), complaints


def answers(
    model: Any, request: dict[str, Any], stage: str, *, of: str = "windows"
) -> Iterator[tuple[int, Any]]:
    """Yield every window's number with its logits, float32 `(n_pos, d_vocab)`, in the order of windows.

    All figures that stand beside each other are of the same tokens: of all of them.
    """
    import torch

    windows = request[of]
    for batch in request["batches" if of == "windows" else f"{of}_batches"]:
        say({"stage": stage, "done": batch[0], "total": len(windows)})
        ids = torch.tensor([windows[number] for number in batch])
        yield from zip(batch, model(ids, use_cache=False).logits.float().unbind(), strict=True)


def greedy(model: Any, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Continue prompts with the most likely tokens, with the model's own cache; equal lengths together."""
    import torch

    found: dict[int, list[int]] = {}
    for length in {len(prompt) for prompt in prompts}:
        places = [place for place, prompt in enumerate(prompts) if len(prompt) == length]
        cache, fed, chosen = None, torch.tensor([prompts[place] for place in places]), list[Any]()
        for _ in range(count):
            output = model(fed, past_key_values=cache, use_cache=True)
            cache, fed = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
            chosen.append(fed)
        found |= dict(zip(places, torch.cat(chosen, 1).tolist(), strict=True))
    return [found[place] for place in range(len(prompts))]


def evidence(request: dict[str, Any], number: int, what: str = "window") -> dict[str, Any]:
    """Read what the intervened runtime answered to one window, what the original did, and what was kept."""
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(kept(request, number, what))
    if what != "window":
        return found
    plain = kept(request, number, "plain")
    return found | load_file(plain) if os.path.exists(plain) else found


def kept(request: dict[str, Any], number: int, what: str) -> str:
    """Name the file of a window's answers."""
    return str(Path(request["evidence"]) / f"{what}-{number:04d}.safetensors")


def describe(measured: dict[str, float], against: dict[str, list[Any]]) -> None:
    """Summarise the comparison with the runtime over all positions, positions >= 1, and position 0."""
    import torch

    intervened, original, damage = (against[name] for name in ("intervened", "original", "damage"))
    spread(measured, "kl_intervened_exported", intervened)
    spread(measured, "kl_intervened_exported_after_first", [part[1:] for part in intervened])
    spread(measured, "kl_intervened_exported_first", [part[:1] for part in intervened])
    spread(measured, "retain_kl_original_exported", original)
    spread(measured, "retain_kl_original_exported_after_first", [part[1:] for part in original])
    spread(measured, "retain_kl_original_intervened", damage)
    measured["retain_excess"] = abs(float(torch.cat(original).mean()) - float(torch.cat(damage).mean()))
    measured["edit_kl_mean"] = float(torch.cat(against["edit"]).mean())
    masks = against["firing"]
    if masks:
        measured["firing_share"] = float(torch.cat(masks).float().mean())
        firing_spread(measured, "kl_intervened_exported", intervened, masks)
        firing_spread(measured, "edit_kl", against["edit"], masks)
        firing_spread(measured, "retain_kl_silent_original_exported", original, [~mask for mask in masks])
    recover(measured, "recovery", "kl_intervened_exported", "edit_kl")
    if "recovery" in measured:
        measured["unrecovered"] = measured["kl_intervened_exported_mean"] / measured["edit_kl_mean"]
    if "recovery_firing" in measured:
        left, edit = (measured[f"{name}_firing_mean"] for name in ("kl_intervened_exported", "edit_kl"))
        measured["unrecovered_firing"] = left / edit
    losses = [float(torch.cat(against[name]).mean()) for name in ("loss", "loss_intervened")]
    measured["perplexity_ratio"] = math.exp(losses[0] - losses[1])
    measured["top1_agreement"] = float(torch.cat(against["top"]).mean())


def environment() -> dict[str, str]:
    """Name the versions that were used, and prove that Trephine was not."""
    import safetensors
    import torch
    import transformers

    if any(name == "trephine" or name.startswith("trephine.") for name in sys.modules):
        raise RuntimeError("Trephine was imported into the certifier")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "safetensors": safetensors.__version__,
        "threads": str(torch.get_num_threads()),
        "bfloat16_products": "float32, rounded once" if _products.lacks_units() else "torch's own",
    }


if __name__ == "__main__":
    main()

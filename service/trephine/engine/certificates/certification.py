"""Certification: evidence from the intervened runtime, the clean process, and what it found."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.interventions import Intervention
from trephine.engine.certificates.clean_process import patience_for, run_clean
from trephine.engine.certificates.export_texts import ExportTexts
from trephine.engine.certificates.firing import Acting, firing_masks
from trephine.engine.certificates.leaving_out import names_apart
from trephine.engine.certificates.noise import computing_in, stock_attention
from trephine.engine.certificates.rounding_floor import is_compared_wide
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.shards import DTYPES
from trephine.engine.models.staging import full_disk_refused
from trephine.engine.runs.retain import RetainText, plain_logits, window_batches, windows_logits
from trephine.engine.weights.compiling import WeightProgram
from trephine.engine.weights.tensors import TensorChange

SCRIPT = Path(__file__).with_name("certifier.py")
GREEDY_TOKENS = 64
_GREEDY_PROMPTS = 4
_PROMPT_TOKENS = 16
_UNLOADABLE = (
    "stock transformers could not load or run the exported folder in a clean process, and nothing was "
    "published. Load the parent's folder with `AutoModelForCausalLM.from_pretrained`: if that fails too, its "
    "files or this transformers release are at fault; if not, free memory for a second model, export again, "
    "and report it with what follows"
)
STORED_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
"""Types as safetensors writes them, and as we do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the clean process measured."""

    measurements: dict[str, float]
    environment: dict[str, str]


def write_evidence(
    hosted: HostedModel,
    retain: RetainText,
    interventions: tuple[Intervention, ...],
    features: tuple[Acting, ...],
    folder: Path,
    *,
    stored: torch.dtype | None = None,
    wide: bool = False,
) -> Generator[Progress | None, None, None]:
    """Write what the original and the intervened runtime answer to every window, one batch a quantum.

    Each file holds float32 logits `(n_pos, d_vocab)`: logits, because the difference of log-probabilities
    in float32 would hide what is measured. Beside them the mask `(n_pos,)` of the positions at which one of
    the edited features of sets fires in the intervened runtime. Where the files are narrower than the runtime
    (`stored`), what both answer when they compute in the files' type stands there as well, in that type.
    Of a narrow runtime (`wide`) it is what both answer computing in float32, on the same weights.

    Raises:
        DiskFullError: If there is no room.
    """
    plain = yield from plain_logits(hosted, retain)
    firing = yield from firing_masks(hosted, retain.windows, features, interventions)
    for part in window_batches(retain.windows):
        windows = [retain.windows[number] for number in part]
        after = windows_logits(hosted, windows, interventions)
        narrow = {} if stored is None else as_stored(hosted, windows, interventions, stored)
        broad = as_computed(hosted, windows, interventions, torch.float32) if wide else {}
        for number, intervened in zip(part, after, strict=True):
            answers = {"original": plain[number].contiguous(), "intervened": intervened.contiguous()}
            if features:
                answers["firing"] = firing[number]
            answers |= {name: logits[number - part.start].to(stored) for name, logits in narrow.items()}
            answers |= {
                f"{name}_in_float32": each[number - part.start].contiguous() for name, each in broad.items()
            }
            with full_disk_refused():
                save_file(answers, folder / f"window-{number:04d}.safetensors")
        yield Progress(stage="evidence", done=part.stop, total=len(retain.windows))


def write_retained(
    hosted: HostedModel, retained: RetainText, interventions: tuple[Intervention, ...], folder: Path
) -> Generator[Progress | None, None, None]:
    """Write what both runtimes answer to a text that the edit must leave alone, one batch a quantum.

    Each file, `retained-0000.safetensors` and so on, holds float32 logits `(n_pos, d_vocab)`.

    Raises:
        DiskFullError: If there is no room.
    """
    plain = yield from plain_logits(hosted, retained)
    for part in window_batches(retained.windows):
        after = windows_logits(hosted, [retained.windows[number] for number in part], interventions)
        for number, intervened in zip(part, after, strict=True):
            answers = {"original": plain[number].contiguous(), "intervened": intervened.contiguous()}
            with full_disk_refused():
                save_file(answers, folder / f"retained-{number:04d}.safetensors")
        yield Progress(stage="evidence, retain text", done=part.stop, total=len(retained.windows))


def as_stored(
    hosted: HostedModel,
    windows: Sequence[Sequence[int]],
    interventions: tuple[Intervention, ...],
    stored: torch.dtype,
) -> dict[str, list[Tensor]]:
    """Return what both runtimes answer to windows when they compute in the type of the files."""
    found = as_computed(hosted, windows, interventions, stored)
    return {f"{name}_stored": logits for name, logits in found.items()}


def as_computed(
    hosted: HostedModel,
    windows: Sequence[Sequence[int]],
    interventions: tuple[Intervention, ...],
    dtype: torch.dtype,
) -> dict[str, list[Tensor]]:
    """Return what both answer to windows when they compute in a type, float32 `(n_pos, d_vocab)` each."""
    with computing_in(dtype, hosted.model):
        return {
            "original": windows_logits(hosted, windows),
            "intervened": windows_logits(hosted, windows, interventions),
        }


def narrower(hosted: HostedModel, stored_dtype: str) -> torch.dtype | None:
    """Return the type of the files, as safetensors writes it, if it is narrower than the runtime's."""
    stored = DTYPES.get(stored_dtype)
    return stored if stored is not None and stored.itemsize < hosted.model.dtype.itemsize else None


def floor_dtype(hosted: HostedModel, stored_dtype: str) -> str:
    """Return the type that the parent is run in, beside the runtime's, for what rounding costs it.

    That of its files where that is narrower, which is how it is served; else bfloat16 beside float32, and
    float32 beside all others.
    """
    if narrower(hosted, stored_dtype) is not None:
        return STORED_NAMES[stored_dtype]
    return "bfloat16" if hosted.info.dtype == "float32" else "float32"


def evidence_bytes(
    hosted: HostedModel,
    texts: ExportTexts,
    stored: torch.dtype | None = None,
    *,
    quantised: bool = False,
    wide: bool = False,
) -> int:
    """Predict the size of the evidence: three answers to every token, the clean process's own among them.

    Two more in the type of the files where that is narrower; two more of a narrow runtime in float32; two
    more of the quantised parent, one kind of file after the other; two of a text that is to be left alone.
    """
    more = (0 if stored is None else 2 * stored.itemsize) + 2 * 4 * (quantised + wide)
    retained = 0 if texts.retained is None else 2 * 4 * texts.retained.n_tokens
    return ((3 * 4 + more) * texts.measured.n_tokens + retained) * hosted.info.d_vocab


def certify(
    hosted: HostedModel,
    texts: ExportTexts,
    interventions: tuple[Intervention, ...],
    program: WeightProgram,
    folder: Path,
    evidence: Path,
    *,
    stored_dtype: str,
    copied: Mapping[str, str],
) -> Generator[Progress | None, None, Findings]:
    """Reload the folder in a clean process and measure it; the process ends with this generator.

    Args:
        hosted: The parent.
        texts: What is measured.
        interventions: The whole edit.
        program: What was written.
        folder: The exported folder.
        evidence: Where the runtime's answers lie.
        stored_dtype: Type of the parent's files, as safetensors writes it.
        copied: Path of every file in the parent that belongs into the folder -> its path there.

    Raises:
        GateMissedError: If the clean process cannot load or measure the folder.
        DiskFullError: If there is no room.
        DeadlinePassedError: If it does not finish in time.
    """
    request, retain = evidence / "request.json", texts.measured
    prompts = [list(w[:_PROMPT_TOKENS]) for w in retain.windows[:_GREEDY_PROMPTS]]
    room = hosted.info.context_length - _PROMPT_TOKENS
    compute, other = hosted.info.dtype, floor_dtype(hosted, stored_dtype)
    body = {
        "exported": str(folder),
        "parent": str(hosted.folder.resolve()),
        "evidence": str(evidence),
        **_in_batches("windows", "batches", retain),
        **_in_batches("retained", "retained_batches", texts.retained),
        "prompts": prompts,
        "greedy_tokens": max(1, min(GREEDY_TOKENS, room)),
        "attention": stock_attention(hosted.model),
        "compute_dtype": compute,
        "other_dtype": other,
        "stored_dtype": STORED_NAMES.get(stored_dtype, compute),
        "in_float32": is_compared_wide(hosted, program),
        "changes": change_records(program),
        "config": program.config,
        "copied": dict(copied),
        "features": names_apart(program.apart, interventions),
        "threads": torch.get_num_threads(),
    }
    with full_disk_refused():
        save_file(change_tensors(program), evidence / "changes.safetensors")
        request.write_text(json.dumps(body), encoding="utf-8")
    arguments, patience = ["-I", str(SCRIPT), str(request)], patience_for(hosted.info.n_parameters)
    result = yield from run_clean(arguments, evidence, "certification", _UNLOADABLE, patience=patience)
    measured: dict[str, float] = result["measurements"]
    told = result["continuations"]
    measured["greedy_match"] = _greedy_match(hosted, prompts, told["exported"], interventions)
    yield None
    if "parent_stored" in told:
        measured["noise_greedy_match_in_stored_dtype"] = _greedy_match(
            hosted, prompts, told["parent_stored"], ()
        )
        yield None
    if "stored" in told:
        yield from _greedy_as_stored(hosted, prompts, told["stored"], interventions, stored_dtype, measured)
    told_of = {"floor_dtype": other, "greedy_tokens": str(body["greedy_tokens"])}
    return Findings(measurements=measured, environment=result["environment"] | told_of)


def _in_batches(windows: str, batches: str, text: RetainText | None) -> dict[str, list[list[int]]]:
    """Lay a text's windows out for the clean process, under these two names."""
    found = () if text is None else text.windows
    return {
        windows: [list(window) for window in found],
        batches: [list(part) for part in window_batches(found)],
    }


def change_records(program: WeightProgram) -> list[dict[str, Any]]:
    """Describe all changes to the certifier."""
    return [_described(change, drawn=change.name in program.drawn) for change in program.changes]


def _described(change: TensorChange, *, drawn: bool) -> dict[str, Any]:
    """Describe a change to the certifier; its tensors lie beside the request.

    Args:
        change: What was carried out.
        drawn: Whether the compiler says that it rounded some of it stochastically.
    """
    growth = change.growth
    return {
        "tensor": change.name,
        "axis": change.axis,
        "factors": sorted(change.factors.items()),
        "gain": change.gain,
        "drawn": drawn,
        "new": change.entry is None,
        "copied_from": None if change.copied_from is None else change.copied_from.name,
        "growth": None if growth is None else {"axis": growth.axis, "count": growth.count},
        "fresh": None if change.fresh is None else {"size": change.fresh.size, "start": change.fresh.start},
    }


def change_tensors(program: WeightProgram) -> dict[str, Any]:
    """Collect the tensors of all changes by `part:name`, each in memory of its own.

    Two changes may be of one factor, as GPT-2's two embeddings are of one direction, and safetensors stores
    no memory twice.
    """
    found: dict[str, Any] = {}
    taken: set[int] = set()
    for change in program.changes:
        left, right = change.low_rank or (None, None)
        parts = {
            "left": left,
            "right": right,
            "added": change.added,
            "growth": None if change.growth is None else change.growth.values,
            "fresh": None if change.fresh is None else change.fresh.values,
        }
        for part, tensor in parts.items():
            if tensor is not None:
                own = tensor.contiguous()
                start = own.untyped_storage().data_ptr()
                found[f"{part}:{change.name}"] = own.clone() if start in taken else own
                taken.add(start)
    return found


def _greedy_as_stored(
    hosted: HostedModel,
    prompts: list[list[int]],
    continuations: list[list[int]],
    interventions: tuple[Intervention, ...],
    stored_dtype: str,
    measured: dict[str, float],
) -> Generator[None, None, None]:
    """Hold the continuations of the folder in the type of its files against the runtime, in both types."""
    name = "greedy_match{}_in_stored_dtype"
    measured[name.format("")] = _greedy_match(hosted, prompts, continuations, interventions)
    yield
    stored = narrower(hosted, stored_dtype)
    if stored is not None:
        with computing_in(stored, hosted.model):
            measured[name.format("_both")] = _greedy_match(hosted, prompts, continuations, interventions)
        yield


def _greedy_match(
    hosted: HostedModel,
    prompts: list[list[int]],
    continuations: list[list[int]],
    interventions: tuple[Intervention, ...],
) -> float:
    """Return the share of the exported model's greedy tokens that the intervened runtime chooses as well.

    Counted up to the first difference of each continuation. One forward pass over prompt and continuation
    decides it: a greedy continuation is the runtime's own exactly as long as each token is its argmax.
    """
    agreed = total = 0
    texts = [[*prompt, *continuation] for prompt, continuation in zip(prompts, continuations, strict=True)]
    logits = [
        each
        for part in window_batches(texts)
        for each in windows_logits(hosted, [texts[number] for number in part], interventions)
    ]
    for prompt, continuation, answer in zip(prompts, continuations, logits, strict=True):
        own = answer.argmax(-1)[len(prompt) - 1 : -1].tolist()
        same = [a == b for a, b in zip(own, continuation, strict=True)]
        agreed += same.index(False) if False in same else len(same)
        total += len(same)
    return agreed / total

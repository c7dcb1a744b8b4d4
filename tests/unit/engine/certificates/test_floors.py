"""A floor and the figure it stands beside are of the same tokens: of all that are measured."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from tests.builders import tiny_folder, tiny_hosted
from tests.unit.engine.exporting import edit_of, exported, hosted_in
from tests.unit.engine.interventions import neuron
from trephine.domain.errors import DeadlinePassedError, DiskFullError, GateMissedError
from trephine.domain.exports import Export
from trephine.domain.interventions import Ablate
from trephine.engine.certificates import certification, certifier, clean_process
from trephine.engine.certificates.clean_process import run_clean
from trephine.engine.certificates.noise import _under_float32, noise_floor
from trephine.engine.models.quanta import finish
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.retain import retain_text, window_logits


@torch.inference_mode()
def test_planned_floors_are_of_every_window():
    """The mean over all windows, and not over the first ones alone."""
    hosted = tiny_hosted("llama", dtype=torch.bfloat16)
    retain = retain_text(hosted)
    assert len(retain.windows) > 4
    floor = finish(noise_floor(hosted, retain)).dtype.mean
    parts = [
        kl_divergence(
            _under_float32(hosted, torch.tensor([window]))[0].float(), window_logits(hosted, window)
        )
        for window in retain.windows
    ]
    assert floor == pytest.approx(float(torch.cat(parts).mean()), rel=1e-3)
    assert floor != pytest.approx(float(torch.cat(parts[:4]).mean()), rel=1e-3)


@pytest.mark.integration
def test_a_bfloat16_parent_that_was_loaded_in_float32(tmp_path):
    """Compiled to bfloat16, compared in float32, and measured in the stored type as well, on every window."""
    hosted = hosted_in(tiny_folder("llama", tmp_path / "parent", dtype=torch.bfloat16))
    (tmp_path / "root").mkdir()
    plan = (neuron(0, 3, Ablate()),)
    made = exported(hosted, edit_of(hosted, *plan), tmp_path / "root" / "edited")
    found = {m.name: m.value for m in made.certificate.measurements}
    _as_stored(made, found, tmp_path / "root" / "edited")
    windows = retain_text(hosted).windows
    assert len(windows) > 4

    def answers(folder: str, dtype: torch.dtype) -> list[torch.Tensor]:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / folder, dtype=dtype).eval()
        return [model(torch.tensor([window])).logits[0].float() for window in windows]

    with torch.inference_mode():
        wide, narrow = (answers("parent", dtype) for dtype in (torch.float32, torch.bfloat16))
        stored = answers("root/edited", torch.bfloat16)
        intervened = [window_logits(hosted, window, plan) for window in windows]
    for name, pairs in {
        "noise_floor_dtype": zip(wide, narrow, strict=True),
        "kl_intervened_exported_in_stored_dtype": zip(intervened, stored, strict=True),
    }.items():
        parts = [kl_divergence(p, q) for p, q in pairs]
        every, first = (float(torch.cat(some).mean()) for some in (parts, parts[:4]))
        # Batches round a little differently; the first windows alone would be ten times as far off.
        assert abs(found[f"{name}_mean"] - every) < 0.2 * abs(first - every), name
        assert found[f"{name}_max"] == pytest.approx(float(torch.cat(parts).max()), rel=1e-2), name
    narrow_runtime = hosted_in(tmp_path / "parent", dtype=torch.bfloat16)
    with torch.inference_mode():
        same = [window_logits(narrow_runtime, window, plan) for window in windows]
        plain = [window_logits(narrow_runtime, window) for window in windows]
    _beside(found, "", windows, intervened, stored)
    _beside(found, "_both", windows, same, stored)
    left, edit = (_mean_kl(same, answers) for answers in (stored, plain))
    assert found["recovery_both_in_stored_dtype"] == pytest.approx(1 - left / edit, abs=0.02)
    assert found["recovery_both_in_stored_dtype"] != pytest.approx(
        found["recovery_in_stored_dtype"], abs=1e-3
    )


@pytest.mark.integration
def test_the_floor_of_a_float16_parent_is_of_float16(tmp_path):
    """As it will be served; bfloat16 rounds eight times as coarsely, and would excuse as much."""
    hosted = hosted_in(tiny_folder("llama", tmp_path / "parent", dtype=torch.float16))
    (tmp_path / "root").mkdir()
    made = exported(hosted, edit_of(hosted, neuron(0, 3, Ablate())), tmp_path / "root" / "edited")
    found = {m.name: m.value for m in made.certificate.measurements}
    told = made.certificate.environment
    assert (made.certificate.dtype, told["compute_dtype"], told["floor_dtype"]) == (
        "float16",
        "float32",
        "float16",
    )
    windows = retain_text(hosted).windows

    def answers(dtype: torch.dtype) -> list[torch.Tensor]:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "parent", dtype=dtype).eval()
        return [model(torch.tensor([window])).logits[0].float() for window in windows]

    with torch.inference_mode():
        wide, half, brain = map(answers, (torch.float32, torch.float16, torch.bfloat16))
    assert found["noise_floor_dtype_mean"] == pytest.approx(_mean_kl(wide, half), rel=0.2)
    assert found["noise_floor_dtype_mean"] < 0.3 * _mean_kl(wide, brain)
    agreement = [(p.argmax(-1) == q.argmax(-1)).float() for p, q in zip(wide, half, strict=True)]
    expected = float(torch.cat(agreement).mean())
    assert found["noise_top1_agreement_in_stored_dtype"] == pytest.approx(expected, abs=0.01)
    assert found["noise_perplexity_ratio_in_stored_dtype"] == pytest.approx(1.0, abs=1e-2)
    assert 0 < found["noise_greedy_match_in_stored_dtype"] <= 1


@pytest.mark.parametrize(("files", "loads"), [(torch.bfloat16, 1), (torch.float32, 2)])
def test_a_narrow_runtimes_folder_is_loaded_once_and_widened(files, loads, tmp_path, monkeypatch):
    """In float32 it is what it was loaded as, not read again; wider files are run as they are, too."""
    loaded: list[str] = []

    def counted(folder: str, *how: str) -> Any:
        loaded.append(Path(folder).name)
        return load(folder, *how)

    def here(arguments: Sequence[str], *_: Any, **__: Any) -> Generator[None, None, dict[str, Any]]:
        request = json.loads(Path(arguments[-1]).read_text(encoding="utf-8"))
        measured = certifier.compare_weights(request) | {"files_changed_outside_plan": 0.0}
        told = certifier.compare_answers(request, measured)
        yield
        return {"measurements": measured, "continuations": told, "environment": {}}

    load = certifier.load
    monkeypatch.setattr(certifier, "load", counted)
    monkeypatch.setattr(certification, "run_clean", here)
    hosted = hosted_in(tiny_folder("llama", tmp_path / "parent", dtype=files), torch.bfloat16)
    made = exported(hosted, edit_of(hosted, neuron(0, 3, Ablate())), tmp_path / "edited")
    found = {m.name: m.value for m in made.certificate.measurements}
    assert found["kl_intervened_exported_in_float32_mean"] < 1e-9 < found["edit_kl_in_float32_mean"]
    assert len([name for name in loaded if name != "parent"]) == loads


def _mean_kl(ps: list[torch.Tensor], qs: list[torch.Tensor]) -> float:
    return float(torch.cat([kl_divergence(p, q) for p, q in zip(ps, qs, strict=True)]).mean())


def _beside(
    found: dict[str, float],
    both: str,
    windows: Sequence[tuple[int, ...]],
    runtime: list[torch.Tensor],
    stored: list[torch.Tensor],
) -> None:
    """Recompute what the certificate says of tokens of the folder as stored beside a runtime's."""
    same = [(p.argmax(-1) == q.argmax(-1)).float() for p, q in zip(runtime, stored, strict=True)]
    assert found[f"top1_agreement{both}_in_stored_dtype"] == pytest.approx(
        float(torch.cat(same).mean()), abs=0.01
    )
    ids = [torch.tensor(window[1:]) for window in windows]
    losses = [
        float(
            torch.cat(
                [cross_entropy(a[:-1], i, reduction="none") for a, i in zip(each, ids, strict=True)]
            ).mean()
        )
        for each in (stored, runtime)
    ]
    assert found[f"perplexity_ratio{both}_in_stored_dtype"] == pytest.approx(
        math.exp(losses[0] - losses[1]), rel=1e-4
    )
    assert 0 < found[f"greedy_match{both}_in_stored_dtype"] <= 1


def _as_stored(made: Export, found: dict[str, float], folder: Path) -> None:
    assert made.certificate.dtype == "bfloat16"
    assert made.certificate.environment["compute_dtype"] == "float32"
    assert made.certificate.environment["floor_dtype"] == "bfloat16"
    assert found["kl_intervened_exported_mean"] <= 1e-6
    left, edit = (found[f"{name}_in_stored_dtype_mean"] for name in ("kl_intervened_exported", "edit_kl"))
    assert left > found["kl_intervened_exported_mean"]  # bfloat16 arithmetic
    share = found["recovery_in_stored_dtype"]
    assert share == pytest.approx(1.0 - left / edit)
    assert 0.5 < share < found["recovery"]
    units = {m.name: m.unit for m in made.certificate.measurements}
    assert units["recovery_in_stored_dtype"] == units["greedy_match_in_stored_dtype"] == "share"
    assert units["noise_perplexity_ratio_in_stored_dtype"] == "ratio"
    assert 0 < found["noise_greedy_match_in_stored_dtype"] <= 1
    assert 0.9 < found["noise_top1_agreement_in_stored_dtype"] <= 1
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"when it is run as stored, rounding included | {share:.3g} |" in card
    for name, says in {
        "recovery_both_in_stored_dtype": "where runtime and checkpoint are run as stored",
        "top1_agreement_in_stored_dtype": "intervened runtime and this checkpoint as stored",
        "greedy_match_in_stored_dtype": "agreed on, intervened runtime and this checkpoint as stored",
        "perplexity_ratio_in_stored_dtype": "this checkpoint as stored over the intervened runtime's",
    }.items():
        value = f"{found[name]:.5f}" if name.startswith("perplexity") else f"{found[name]:.3g}"
        assert f"{says} | {value} |" in card
    assert "Stored as: bfloat16; the runtime computed in float32" in card
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("said", "error"),
    [("OSError: [Errno 28] No space left on device", DiskFullError), ("KeyError: 'x'", GateMissedError)],
)
def test_a_clean_process_without_room_says_so(tmp_path, said, error):
    """It keeps answers beside the evidence; a full disk is no fault of the export."""
    code = f"import sys; sys.stderr.write({said!r}); sys.exit(1)"
    with pytest.raises(error, match="room" if error is DiskFullError else "unloadable"):
        finish(run_clean(["-c", code], tmp_path, "certification", "unloadable"))


def test_longer_attacks_have_longer_to_finish(tmp_path, monkeypatch):
    """Patience multiplies the limit: what is late with the plain one is in time with more."""
    monkeypatch.setattr(clean_process, "TIME_LIMIT_SECONDS", 0.01)
    code = "import time; time.sleep(0.3); print('{\"result\": {}}', flush=True)"
    with pytest.raises(DeadlinePassedError, match="the attack"):
        finish(run_clean(["-c", code], tmp_path, "the attack", "unloadable"))
    assert finish(run_clean(["-c", code], tmp_path, "the attack", "unloadable", patience=6000.0)) == {}

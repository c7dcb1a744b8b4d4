"""A floor and the figure it stands beside are of the same tokens: of all that are measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.builders import tiny_folder, tiny_hosted
from tests.unit.engine.exporting import edit_of, exported, hosted_in
from tests.unit.engine.interventions import neuron
from trephine.domain.errors import DiskFullError, GateMissedError
from trephine.domain.exports import Export
from trephine.domain.interventions import Ablate
from trephine.engine.clean_process import run_clean
from trephine.engine.divergence import kl_divergence
from trephine.engine.noise import _under_float32, noise_floor
from trephine.engine.quanta import finish
from trephine.engine.retain import retain_text, window_logits


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


def _as_stored(made: Export, found: dict[str, float], folder: Path) -> None:
    assert made.certificate.dtype == "bfloat16"
    assert made.certificate.environment["compute_dtype"] == "float32"
    assert found["kl_intervened_exported_mean"] <= 1e-6
    left, edit = (found[f"{name}_in_stored_dtype_mean"] for name in ("kl_intervened_exported", "edit_kl"))
    assert left > found["kl_intervened_exported_mean"]  # bfloat16 arithmetic
    share = found["recovery_in_stored_dtype"]
    assert share == pytest.approx(1.0 - left / edit)
    assert 0.5 < share < found["recovery"]
    units = {m.name: m.unit for m in made.certificate.measurements}
    assert units["recovery_in_stored_dtype"] == "share"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"when it is run as stored, rounding included | {share:.3g} |" in card
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

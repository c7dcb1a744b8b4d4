"""The export bench's clean process computes as the certifier does."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.export_folders import measured
from tests.builders import tiny_folder
from trephine.engine.certificates import certifier

WINDOWS = [[(7 * n + 3 * k) % 350 + 5 for n in range(24)] for k in range(3)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cell_answers_as_the_certifier_does(dtype, tmp_path, request):
    """To the last bit, products of bfloat16 on processors without units for them included."""
    if dtype == "bfloat16":
        request.getfixturevalue("warm_cells")  # the other one starts as it does in a bench
    folder = str(tiny_folder("llama", tmp_path / "model", dtype=getattr(torch, dtype)))
    model, _ = certifier.load(folder, dtype, "sdpa")
    with torch.inference_mode():
        parts = [model(part, use_cache=False).logits.float() for part in torch.tensor(WINDOWS).split(2)]
    wanted = torch.cat(parts)
    save_file({"logits": wanted}, tmp_path / "certifier.safetensors")
    cell = {
        "name": "model",
        "folder": folder,
        "save": str(tmp_path / "cell.safetensors"),
        "against": {"certifier": str(tmp_path / "certifier.safetensors")},
    }
    found = measured([cell], dtype, WINDOWS, tmp_path)
    assert torch.equal(load_file(tmp_path / "cell.safetensors")["logits"], wanted)
    assert float(found["model"]["certifier"].abs().max()) == 0.0

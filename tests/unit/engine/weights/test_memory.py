"""A parent of eight shards is exported with no more in memory than a shard and a tensor."""

from __future__ import annotations

import tracemalloc

import pytest
import torch

from tests.builders import tiny_model, tiny_tokenizer
from tests.resident_sets import resident_set
from tests.unit.engine.exporting import hosted_in
from tests.unit.engine.interventions import neuron
from tests.unit.engine.weights.folders import compiled, feature
from trephine.domain.interventions import Ablate
from trephine.engine import reshaping
from trephine.engine.reshaping import write_weights
from trephine.engine.shards import read_entries


@pytest.mark.parametrize(
    "edit", [(neuron(0, 3, Ablate()),), (feature(0, 3, Ablate()),)], ids=["exact", "graft"]
)
@torch.inference_mode()
def test_at_most_a_shard_and_a_tensor_are_in_memory(edit, tmp_path, monkeypatch):
    """Bytes read and held at once, tensors and copied ranges alike, over a write of every shard."""
    model = tiny_model("llama", n_layers=8, d_model=64)
    total = sum(p.numel() * 4 for p in model.parameters())
    model.save_pretrained(tmp_path / "parent", max_shard_size=total // 7)
    tiny_tokenizer().save_pretrained(tmp_path / "parent")
    hosted = hosted_in(tmp_path / "parent")
    resident_set(hosted, "jumprelu")
    entries = read_entries(hosted.folder)
    shards = {entry.file for entry in entries.values()}
    assert len(shards) >= 8
    largest = max((hosted.folder / file).stat().st_size for file in shards)
    tensor = max(entry.end - entry.start for entry in entries.values())
    program = compiled(hosted, edit)
    folder = tmp_path / "exported"
    folder.mkdir()
    for path in hosted.folder.iterdir():
        if path.name not in reshaping.reshaped_files(program.changes):
            (folder / path.name).write_bytes(path.read_bytes())
    held = _Held(monkeypatch)
    tracemalloc.start()
    for _ in write_weights(hosted.folder, folder, entries, program):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held.largest > 0
    assert peak + held.largest <= largest + tensor


class _Held:
    """Records the largest tensor that was made; torch's memory is not traced by the interpreter."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.largest = 0
        original = reshaping.changed_tensor

        def watched(folder, change):
            found = original(folder, change)
            self.largest = max(self.largest, found.numel() * found.element_size())
            return found

        monkeypatch.setattr(reshaping, "changed_tensor", watched)

"""The attack as an export runs it: what it writes, and how long it may take."""

from __future__ import annotations

import pytest
import torch

from tests.builders import tiny_folder
from tests.file_limits import files_end_at
from tests.unit.engine.exporting import hosted_in
from tests.unit.engine.interventions import neuron
from trephine.domain.errors import DiskFullError
from trephine.domain.interventions import Ablate
from trephine.engine.attack.running import attacked
from trephine.engine.export_texts import export_texts
from trephine.engine.quanta import finish

EDIT = (neuron(0, 3, Ablate()),)


@pytest.fixture
def hosted(tmp_path):
    """A parent with its folder."""
    return hosted_in(tiny_folder("llama", tmp_path / "parent"))


@pytest.mark.parametrize("size", [100, 1_000], ids=["directions", "request"])
@torch.inference_mode()
def test_a_disk_that_fills_up_before_the_attack_is_a_typed_error(hosted, tmp_path, size):
    """Its directions and its request are written like every other file of an export."""
    (tmp_path / "work").mkdir()
    with pytest.raises(DiskFullError, match="make room"), files_end_at(size):
        finish(attacked(hosted, export_texts(hosted, None), EDIT, (), tmp_path, tmp_path / "work"))
    assert (tmp_path / "work" / "directions.safetensors").exists() == (size > 100)

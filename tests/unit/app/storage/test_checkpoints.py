"""What is seen of a model folder before the engine reads it."""

from __future__ import annotations

import pytest

from tests.builders import tiny_folder
from trephine.app.storage.checkpoints import count_parameters
from trephine.domain.errors import BrokenCheckpointError


def test_an_adapter_in_place_of_a_model_is_named(tmp_path):
    """With what to do; a folder without any config is incomplete instead."""
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BrokenCheckpointError, match="holds an adapter and no model: load the model"):
        count_parameters(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(BrokenCheckpointError, match="has no config"):
        count_parameters(tmp_path)


def test_parameters_are_counted_from_headers(tmp_path):
    """Tied embeddings are stored once."""
    folder = tiny_folder("llama", tmp_path / "tiny", n_layers=1)
    assert count_parameters(folder) > 400 * 32

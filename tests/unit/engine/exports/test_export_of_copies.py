"""A parent with older copies of a tensor in its shards: what is published verifies, and loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.builders import tiny_folder
from tests.unit.client.test_verification import relist
from tests.unit.engine.exporting import edit_of, exported, hosted_in
from tests.unit.engine.interventions import neuron
from tests.unit.engine.models.test_shards import DOWN, with_older_copies
from trephine.client.verification import verify_folder
from trephine.domain.interventions import Ablate
from trephine.engine.models.shards import INDEX_NAME, shard_names

pytestmark = pytest.mark.integration


def test_the_copy_that_counts_is_edited_and_the_folder_verifies(tmp_path: Path):
    """An index that names another copy is found, even if every digest was made to fit."""
    parent = tiny_folder("llama", tmp_path / "parent", max_shard_size="40KB")
    with_older_copies(parent, named=-1)
    hosted, target = hosted_in(parent), tmp_path / "edited"
    exported(hosted, edit_of(hosted, neuron(0, 3, Ablate())), target)
    assert verify_folder(target).problems == ()
    loaded = AutoModelForCausalLM.from_pretrained(target).state_dict()[DOWN]
    assert not loaded[:, 3].any()
    assert torch.equal(loaded, load_file(target / shard_names(target)[-1])[DOWN])

    index = json.loads((target / INDEX_NAME).read_text())
    index["weight_map"][DOWN] = shard_names(target)[0]
    (target / INDEX_NAME).write_text(json.dumps(index))
    relist(target)
    assert any(f"tensor {DOWN} is not the one" in problem for problem in verify_folder(target).problems)

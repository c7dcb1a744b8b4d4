"""Safetensors files are read and patched byte by byte."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.builders import tiny_folder
from trephine.domain.errors import BrokenCheckpointError
from trephine.engine.models.shards import (
    INDEX_NAME,
    overwrite,
    read_bytes,
    read_entries,
    read_tensor,
    scale_slices,
    sha256_of,
    shard_names,
)


@pytest.fixture
def folder(tmp_path):
    """A model of several shards."""
    return tiny_folder("llama", tmp_path / "parent", max_shard_size="40KB")


def test_every_tensor_is_found_where_safetensors_finds_it(folder):
    """Over all shards, names, shapes and values agree with the library's own reading."""
    entries = read_entries(folder)
    assert len(shard_names(folder)) > 1
    seen = {}
    for file in shard_names(folder):
        seen |= load_file(folder / file)
    assert set(seen) == set(entries)
    for name, tensor in seen.items():
        assert torch.equal(read_tensor(folder, entries[name]), tensor)


def test_patching_changes_the_named_bytes_and_no_others(folder):
    """Header, other tensors and other shards keep every byte."""
    entries = read_entries(folder)
    entry = entries["model.layers.1.mlp.down_proj.weight"]
    before = {file: (folder / file).read_bytes() for file in shard_names(folder)}
    tensor = read_tensor(folder, entry)
    overwrite(folder, entry, scale_slices(tensor, {5: 0.0}, axis=1))
    after = {file: (folder / file).read_bytes() for file in shard_names(folder)}
    changed = {file for file in before if before[file] != after[file]}
    assert changed == {entry.file}
    old, new = before[entry.file], after[entry.file]
    assert len(old) == len(new)
    assert old[: entry.start] == new[: entry.start]
    assert old[entry.end :] == new[entry.end :]
    assert torch.equal(load_file(folder / entry.file)[entry.name][:, 5], torch.zeros(32))


def test_a_tensor_of_another_size_is_not_written(folder):
    """It would run over its neighbour."""
    entry = read_entries(folder)["model.norm.weight"]
    with pytest.raises(ValueError, match="do not fill"):
        overwrite(folder, entry, torch.zeros(3))


@pytest.mark.parametrize("axis", [0, 1])
def test_only_the_named_slices_are_scaled(axis):
    """All other elements keep their bits; a factor of 0 writes +0 even over negatives."""
    tensor = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    scaled = scale_slices(tensor, {1: 0.0, 3: -0.3}, axis=axis)
    moved, plain = scaled.movedim(axis, 0), tensor.movedim(axis, 0)
    assert torch.equal(moved[[0, 2, 4, 5]], plain[[0, 2, 4, 5]])
    assert not moved[1].any()
    assert not bool(torch.signbit(moved[1]).any())
    assert torch.equal(moved[3], plain[3] * -0.3)


def test_bfloat16_is_rounded_once():
    """The product is taken in float32: in bfloat16 a factor of 0.3 would be rounded first."""
    tensor = torch.randn(4, 1000, generator=torch.Generator().manual_seed(1)).bfloat16()
    scaled = scale_slices(tensor, {2: 0.3}, axis=0)[2]
    assert torch.equal(scaled, (tensor[2].float() * 0.3).bfloat16())
    rounded_twice = tensor[2] * torch.tensor(0.3).bfloat16()
    assert not torch.equal(scaled, rounded_twice)


def test_digests_are_of_raw_bytes(folder):
    """Two tensors of equal bytes have equal digests; a flipped byte shows."""
    entry = read_entries(folder)["model.norm.weight"]
    digest = sha256_of(folder, entry)
    tensor = read_tensor(folder, entry)
    tensor[3] = -tensor[3]
    overwrite(folder, entry, tensor)
    assert sha256_of(folder, entry) != digest


def test_a_folder_without_safetensors_is_refused(tmp_path):
    """Pickles are never opened."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(BrokenCheckpointError, match="safetensors"):
        read_entries(tmp_path)


def test_a_truncated_shard_is_refused(folder):
    """Its header promises more than the file holds."""
    entry = max(read_entries(folder).values(), key=lambda e: e.end)
    path = folder / entry.file
    path.write_bytes(path.read_bytes()[: entry.end - 4])
    with pytest.raises(BrokenCheckpointError, match="ends inside"):
        read_bytes(folder, entry)


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, (12).to_bytes(8, "little") + b"not json at all"])
def test_a_shard_with_a_broken_header_is_refused(tmp_path, content):
    """Whatever is wrong with it, the file is named."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(BrokenCheckpointError) as caught:
        read_entries(tmp_path)
    assert caught.value.context["file"] == "model.safetensors"


def test_an_index_cannot_name_files_outside_the_folder(tmp_path):
    """A patch must never leave the copy."""
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(BrokenCheckpointError, match="outside"):
        shard_names(tmp_path)


def test_types_that_cannot_be_edited_are_refused(tmp_path):
    """Integers have no rounding that would make sense."""
    save_file({"x": torch.arange(4)}, tmp_path / "model.safetensors")
    with pytest.raises(BrokenCheckpointError, match="I64"):
        read_tensor(tmp_path, read_entries(tmp_path)["x"])


DOWN = "model.layers.0.mlp.down_proj.weight"


def with_older_copies(folder, *, named):
    """Leave copies of a tensor in every shard, older ones but in the last; the index names one, or none."""
    index = json.loads((folder / INDEX_NAME).read_text())
    tensor = load_file(folder / index["weight_map"][DOWN])[DOWN]
    files = shard_names(folder)
    for file in files:
        held = load_file(folder / file) | {DOWN: tensor if file == files[-1] else torch.zeros_like(tensor)}
        save_file(held, folder / file, metadata={"format": "pt"})
    if named is None:
        del index["weight_map"][DOWN]
    else:
        index["weight_map"][DOWN] = files[named]
    (folder / INDEX_NAME).write_text(json.dumps(index))


def test_of_several_copies_the_one_counts_that_the_index_names_and_transformers_loads(folder):
    """The last: both agree on it."""
    before = {name: read_tensor(folder, entry) for name, entry in read_entries(folder).items()}
    with_older_copies(folder, named=-1)
    entries = read_entries(folder)
    assert entries[DOWN].file == shard_names(folder)[-1]
    for name, tensor in before.items():
        assert torch.equal(read_tensor(folder, entries[name]), tensor)
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert torch.equal(loaded[DOWN], before[DOWN])


@pytest.mark.parametrize("named", [0, None])
def test_copies_that_readers_would_choose_between_are_refused(folder, named):
    """The index names the first, which transformers does not load; or none."""
    with_older_copies(folder, named=named)
    with pytest.raises(BrokenCheckpointError, match=rf"{DOWN} stands in .*save_pretrained"):
        read_entries(folder)

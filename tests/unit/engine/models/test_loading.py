"""Folders are loaded whole and safe, or refused by a typed error that says what to do."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.builders import FAMILIES, tiny_folder, tiny_model
from trephine.domain.commands import Progress
from trephine.domain.errors import (
    AlreadyExistsError,
    BrokenCheckpointError,
    InvalidRequestError,
    UnsafeCheckpointError,
    UnsupportedArchitectureError,
)
from trephine.domain.models import DescribeCapabilities, LoadModel, ModelSource
from trephine.engine.models.fingerprint import hash_now
from trephine.engine.models.loading import HANDLERS
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.runs.rows import RowInput, run_rows


def load(folder: Path, session: Session | None = None, **rest: Any) -> Session:
    """Load a folder into a fresh engine."""
    session = session or Session()
    finish(
        HANDLERS[LoadModel](session, LoadModel(source=ModelSource(name="tiny", folder=str(folder), **rest)))
    )
    return session


def change_config(folder: Path, **values: Any) -> None:
    """Rewrite some entries of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_folder_is_the_saved_model(family, tmp_path):
    """Loading gives the logits of the saved model bit for bit, and describes it."""
    folder = tiny_folder(family, tmp_path / "m")
    hosted = load(folder).require_model()
    ids = hosted.encode(" Mary and John")
    with torch.inference_mode():
        expected = tiny_model(family)(input_ids=torch.tensor([ids])).logits[0]
    assert torch.equal(run_rows(hosted, [RowInput(ids)]).logits[0], expected)
    info = hosted.info
    assert info.weight_hash == info.parent_hash == hash_now(tiny_model(family))
    assert (info.n_layers, info.d_model, info.d_mlp, info.d_vocab) == (3, 32, 64, 400)
    assert (info.context_length, info.dtype, info.device) == (256, "float32", "cpu")
    assert (info.eos_token_ids, info.has_chat_template) == ((0,), True)
    assert info.tied_embeddings == (family in ("gpt2", "gemma2"))
    assert info.has_mlp_bias == (family not in ("gemma2", "qwen2", "qwen3"))
    assert info.memory_bytes == 4 * info.n_parameters


def test_shards_and_dtypes(tmp_path):
    """A sharded folder loads like a single one; the dtype is the one asked for and part of the hash."""
    single = load(tiny_folder("llama", tmp_path / "a")).require_model().info
    folder = tiny_folder("llama", tmp_path / "b", max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert load(folder).require_model().info.weight_hash == single.weight_hash
    half = load(folder, dtype="bfloat16").require_model().info
    assert half.dtype == "bfloat16"
    assert half.weight_hash != single.weight_hash


def test_progress_counts_to_the_end(tmp_path):
    """Loading reports its stages in order, in bounded quanta."""
    source = ModelSource(name="tiny", folder=str(tiny_folder("llama", tmp_path / "m")))
    events = [e for e in HANDLERS[LoadModel](Session(), LoadModel(source=source)) if isinstance(e, Progress)]
    assert list(dict.fromkeys(e.stage for e in events)) == ["check", "read", "hash"]
    assert all(e.done <= e.total for e in events)


def test_what_lies_beside_the_weights_is_remembered_as_it_was_before_it_was_read(tmp_path):
    """A file that changes while the model loads counts as changed; weights have a hash of their own."""
    folder = tiny_folder("llama", tmp_path / "m")
    (folder / "model.gguf").write_text("other weights")
    (folder / ".hidden.json").write_text("{}")
    as_it_was = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    session, command = Session(), LoadModel(source=ModelSource(name="tiny", folder=str(folder)))
    for event in HANDLERS[LoadModel](session, command):
        if isinstance(event, Progress) and (event.stage, event.done) == ("read", 0):
            change_config(folder, rms_norm_eps=0.5)
    hosted = session.require_model()
    assert hosted.model.config.rms_norm_eps == 0.5
    assert hosted.beside["config.json"] == as_it_was
    names = {path.name for path in folder.iterdir()} - {"model.safetensors", "model.gguf", ".hidden.json"}
    assert set(hosted.beside) == names


def test_a_name_that_no_export_can_hold_does_not_keep_a_model_from_loading(tmp_path):
    """Exports refuse it by name; all else works."""
    folder = tiny_folder("llama", tmp_path / "m")
    (folder / os.fsdecode(b"\xff.txt")).write_text("x")
    assert load(folder).require_model().beside == {}


def test_a_missing_shard_is_named(tmp_path):
    """The error says which shard is missing."""
    folder = tiny_folder("llama", tmp_path / "m", max_shard_size="60KB")
    victim = sorted(folder.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(BrokenCheckpointError, match=victim.name):
        load(folder)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_truncated_file_is_named(tmp_path, sharded):
    """A file shorter than its header says is refused before anything is loaded."""
    folder = tiny_folder("llama", tmp_path / "m", max_shard_size="60KB" if sharded else "5GB")
    victim = sorted(folder.glob("*.safetensors"))[0]
    victim.write_bytes(victim.read_bytes()[:-10])
    with pytest.raises(BrokenCheckpointError, match=f"{victim.name} is cut short"):
        load(folder)


def test_a_missing_tensor_is_refused(tmp_path):
    """What transformers would make up silently is refused by name."""
    folder = tiny_folder("llama", tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BrokenCheckpointError, match=r"model\.layers\.1\.mlp\.down_proj\.weight"):
        load(folder)


def test_an_index_that_lies_is_refused(tmp_path):
    """An index that names a tensor its shard lacks, or a file outside the folder, is refused."""
    folder = tiny_folder("llama", tmp_path / "m", max_shard_size="60KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shard = index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps({"weight_map": index["weight_map"] | {"made.up": shard}}))
    with pytest.raises(BrokenCheckpointError, match=r"lacks made\.up"):
        load(folder)
    path.write_text(json.dumps({"weight_map": {"x": "../secret.safetensors"}}))
    with pytest.raises(BrokenCheckpointError, match="not a file of this folder"):
        load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.pth"])
def test_pickles_are_never_opened(tmp_path, name):
    """A folder whose only weights are pickles is refused, whatever they hold."""
    folder = tiny_folder("llama", tmp_path / "m")
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(UnsafeCheckpointError, match="convert the checkpoint"):
        load(folder)


def test_incomplete_folders_say_what_is_missing(tmp_path):
    """No config, a broken config, no tokenizer and no weights each have their message."""
    with pytest.raises(BrokenCheckpointError, match=r"no config\.json"):
        load(tmp_path)
    folder = tiny_folder("llama", tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BrokenCheckpointError, match=r"neither model\.safetensors"):
        load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BrokenCheckpointError, match=r"no tokenizer\.json"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(BrokenCheckpointError, match=r"config\.json cannot be read"):
        load(folder)


def test_unverified_models_are_refused_by_name_before_weights_are_read(tmp_path):
    """Another architecture and quantised weights are refused although the weights are not even there."""
    folder = tiny_folder("llama", tmp_path / "m")
    (folder / "model.safetensors").unlink()
    change_config(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(UnsupportedArchitectureError, match="gptq"):
        load(folder)
    change_config(folder, architectures=["MixtralForCausalLM"])
    with pytest.raises(
        UnsupportedArchitectureError, match=r"MixtralForCausalLM is not supported.*GPT2LMHeadModel"
    ):
        load(folder)


def test_a_device_that_is_not_there_is_refused(tmp_path):
    """The error names the device, and those there are; also for what torch knows and nobody computes on."""
    folder = tiny_folder("llama", tmp_path / "m")
    for device in ("cuda:99", "toaster", "meta"):
        with pytest.raises(InvalidRequestError, match=rf"{device}.*hoose cpu") as caught:
            load(folder, device=device)
        assert caught.value.context["field"] == "device"


def test_an_adapter_is_merged_in_memory(tmp_path):
    """Both hashes are recorded, the logits are those of the adapted model, and nothing is written."""
    folder = tiny_folder("llama", tmp_path / "m")
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["down_proj"]))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    hosted = load(folder, adapter=str(tmp_path / "adapter")).require_model()
    ids = hosted.encode(" Mary and John")
    with torch.inference_mode():
        expected = adapted.eval()(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(run_rows(hosted, [RowInput(ids)]).logits[0], expected, atol=1e-5, rtol=0)
    assert hosted.info.parent_hash == hash_now(tiny_model("llama"))
    assert hosted.info.weight_hash == hash_now(hosted.model) != hosted.info.parent_hash
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_pickled_adapters_are_refused(tmp_path):
    """An adapter is checked as strictly as a model."""
    folder, adapter = tiny_folder("llama", tmp_path / "m"), tmp_path / "adapter"
    adapter.mkdir()
    with pytest.raises(BrokenCheckpointError, match=r"adapter_config\.json"):
        load(folder, adapter=str(adapter))
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(UnsafeCheckpointError):
        load(folder, adapter=str(adapter))


def test_an_adapter_in_place_of_a_model_is_refused(tmp_path):
    """By what it belongs to, and not by a file that is missing."""
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["down_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = "some/base"
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(BrokenCheckpointError, match="adapter of some/base"):
        load(tmp_path / "adapter")


def test_an_adapter_beside_a_model_is_refused(tmp_path):
    """What is loaded would be the model that the adapter names, which may lie anywhere, and not this one."""
    folder = tiny_folder("llama", tmp_path / "m")
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["down_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(tiny_folder("llama", tmp_path / "other"))
    adapted.save_pretrained(folder)
    with pytest.raises(BrokenCheckpointError, match=r"beside it an adapter of .*other, which transformers"):
        load(folder)


def test_one_engine_one_model(tmp_path):
    """Loading into an engine that has a model is refused."""
    folder = tiny_folder("llama", tmp_path / "m")
    session = load(folder)
    with pytest.raises(AlreadyExistsError):
        load(folder, session)


def test_loading_leaves_transformers_settings_and_stderr_alone(tmp_path, capfd):
    """No progress bar or warning is printed, and verbosity is what it was."""
    before = transformers.logging.get_verbosity()
    transformers.utils.logging.enable_progress_bar()  # whatever ran before in this process
    folder = tiny_folder("gpt2", tmp_path / "m")
    capfd.readouterr()
    load(folder)
    assert capfd.readouterr().err == ""
    assert transformers.logging.get_verbosity() == before
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_capabilities_are_honest(tmp_path):
    """What does not work is listed with a reason; parallel blocks lack the stream between branches."""
    session = load(tiny_folder("gpt_neox", tmp_path / "m"))
    capabilities = finish(HANDLERS[DescribeCapabilities](session, DescribeCapabilities()))
    listed = {c.name: c for c in capabilities.capabilities}
    assert listed["intervene.ablate"].available
    assert not listed["intervene.heads"].available
    assert not listed["intervene.resid_mid"].available
    assert all(c.note for c in capabilities.capabilities if not c.available)
    assert capabilities.max_prompt_tokens == 256
    assert capabilities.memory_budget_bytes > 0

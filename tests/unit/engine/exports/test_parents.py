"""What of a parent belongs into its edited copy."""

from __future__ import annotations

import os

import pytest

from tests.builders import tiny_folder
from trephine.domain.errors import BrokenCheckpointError
from trephine.engine.exports.manifest import describe_files
from trephine.engine.exports.parents import copied_bytes, sort_files
from trephine.engine.models.quanta import finish
from trephine.engine.models.shards import read_entries


@pytest.fixture
def parent(tmp_path):
    """A parent with all kinds of files."""
    folder = tiny_folder("llama", tmp_path / "parent", max_shard_size="40KB")
    extra = (
        *(
            "README.md",
            "LICENSE",
            "pytorch_model.bin",
            "model.gguf",
            "onnx/model.onnx",
            "original/consolidated.pth",
        ),
        *("adapter_model.safetensors", ".gitattributes", ".cache/x", "edit_manifest.json", "trephine.sig"),
        *("pytorch_model.bin.index.json", "notes/usage.md"),
    )
    for name in extra:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_unedited_weights_are_never_copied(parent):
    """Pickles, GGUF, ONNX and foreign shards would ship the model without the edit."""
    copied, left_out = sort_files(parent, read_entries(parent))
    for name in ("pytorch_model.bin", "model.gguf", "onnx/model.onnx", "original/consolidated.pth"):
        assert "unedited" in left_out[name]
    assert "adapter_model.safetensors" in left_out
    assert "pytorch_model.bin.index.json" in left_out
    assert not set(copied) & set(left_out)


@pytest.mark.parametrize(
    "name",
    [
        *("model.onnx_data", "onnx/model.onnx_data_1", "model.onnx.data", "onnx__MatMul_1234", "model.ot"),
        *("model.llamafile", "model.nemo", "rank0.engine", "weights.zip", "model.tar.gz", "model.mlpackage"),
        *("model.safetensors.bak", "model.safetensors.index", "pytorch_model-00001", "model", "best.model"),
        *("model.embed_tokens.weight", "model.safetensors~", "core.12", "version.pt", "tokenizer.pkl"),
    ],
)
def test_whatever_is_not_known_to_hold_no_weights_is_left_out(name, parent):
    """Weights come under more names than can be listed; however small, and whatever they are called."""
    (parent / name).parent.mkdir(exist_ok=True)
    (parent / name).write_bytes(b"x" * 20_000)
    copied, left_out = sort_files(parent, read_entries(parent))
    assert name not in copied
    assert "unedited" in left_out[name]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, 40 << 20) for name in ("tokenizer.json", "vocab.json", "merges.txt")),
        *((name, 8 << 20) for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")),
        *((name, 8 << 20) for name in ("tokenizer.model.v3", "qwen.tiktoken", "vocab.bpe", "card.PNG")),
        *((name, 9_000) for name in ("LICENSE", "LICENSE.llama3", "LICENSE-MIT", "NOTICE", "USE_POLICY.md")),
        *((name, 9_000) for name in ("tool_use.jinja", "modeling_x.py", "config.yaml", "Modelfile")),
    ],
)
def test_what_people_rely_on_is_copied(name, size, parent):
    """Tables of tokenizers of some size, licences however they are called, templates, pictures of cards."""
    with (parent / name).open("wb") as file:
        file.truncate(size)
    assert sort_files(parent, read_entries(parent))[0][name] == name


@pytest.mark.parametrize(
    ("name", "size"), [("all.json", 300 << 20), ("all.md", 17 << 20), ("tokenizer.model", 33 << 20)]
)
def test_what_is_larger_than_any_file_of_its_kind_is_left_out(name, size, parent):
    """A whole model may be called anything."""
    with (parent / name).open("wb") as file:
        file.truncate(size)
    copied, left_out = sort_files(parent, read_entries(parent))
    assert name not in copied
    assert left_out[name].startswith("larger than any file of its kind is (")
    assert left_out[name].endswith("MiB); weights would be unedited")


def test_everything_else_is_copied_under_its_name(parent):
    """Config, tokenizer, shards, index, licence and folders; the card is kept as the parent's."""
    copied, _ = sort_files(parent, read_entries(parent))
    shards = {entry.file for entry in read_entries(parent).values()}
    for name in (
        *shards,
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
        "LICENSE",
        "notes/usage.md",
    ):
        assert copied[name] == name
    assert copied["README.md"] == "README.parent.md"


def test_hidden_files_and_an_earlier_exports_papers_are_left_out(parent):
    """A certificate of an earlier edit must not lie beside a later one."""
    _, left_out = sort_files(parent, read_entries(parent))
    assert left_out[".gitattributes"] == left_out[".cache/x"] == "hidden"
    assert "earlier export" in left_out["edit_manifest.json"]
    assert "earlier export" in left_out["trephine.sig"]


def test_an_earlier_exports_adapter_is_left_out_whole(parent):
    """Its configuration without its weights is no adapter, and with them it makes another model."""
    (parent / "adapter").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (parent / "adapter" / name).write_text(name)
    (parent / "adapters.md").write_text("a file of the parent's own")
    copied, left_out = sort_files(parent, read_entries(parent))
    assert not [path for path in copied if path.startswith("adapter/")]
    assert sum("adapter that makes" in reason for reason in left_out.values()) == 3
    assert "adapters.md" in copied


def test_the_size_is_that_of_what_is_copied(parent):
    """The prediction counts no file that is left out."""
    before = copied_bytes(parent, read_entries(parent))
    (parent / "model.gguf").write_bytes(b"x" * 100_000)
    assert copied_bytes(parent, read_entries(parent)) == before
    (parent / "LICENSE").write_bytes(b"x" * 100)
    assert copied_bytes(parent, read_entries(parent)) == before + 100 - len("LICENSE")


def test_linked_folders_are_copied_and_what_is_no_file_is_named(parent, tmp_path):
    """A folder of templates that is a link is as much the parent's as any other; no loop is followed."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "tools.jinja").write_text("{{ messages }}")
    for name in ("chat_templates", "more"):
        (parent / name).symlink_to(shared)
    (shared / "round").symlink_to(parent)
    (parent / "gone").symlink_to("/nowhere")
    os.mkfifo(parent / "pipe")
    copied, left_out = sort_files(parent, read_entries(parent))
    assert {"chat_templates/tools.jinja", "more/tools.jinja"} <= set(copied)
    assert "it lies in" in left_out["chat_templates/round"]
    assert "nowhere" in left_out["gone"]
    assert "no regular file" in left_out["pipe"]
    assert {file.path for file in finish(describe_files(parent))} >= set(copied)


def test_a_name_that_no_manifest_can_hold_is_refused(parent):
    """Rather than an error of encoding once everything is measured."""
    (parent / os.fsdecode(b"\xff.txt")).write_text("x")
    with pytest.raises(BrokenCheckpointError, match=r"\\xff\.txt, whose name is no UTF-8"):
        sort_files(parent, read_entries(parent))


def test_a_folder_that_cannot_be_looked_into_is_refused(parent, monkeypatch):
    """Its files would be lost without a word."""
    real = os.listdir

    def listed(folder):
        if folder.name == "notes":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr("trephine.engine.models.folder_contents.os.listdir", listed)
    with pytest.raises(BrokenCheckpointError, match=r"notes of the model cannot be looked into"):
        sort_files(parent, read_entries(parent))

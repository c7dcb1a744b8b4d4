"""GGUF files of folders: stock transformers reads back the same model and the same tokenizer."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.builders import tiny_folder
from tests.file_limits import files_end_at
from tests.unit.engine.exporting import hosted_in
from tests.unit.engine.weights.folders import parent
from trephine.domain.errors import DiskFullError, InvalidRequestError, UnsupportedOptionError
from trephine.domain.exports import GGUF_TYPES, ExportOptions
from trephine.engine.models.quanta import finish
from trephine.engine.quantised.conversion import Layout, convert, gguf_bytes, require_convertible
from trephine.engine.quantised.twin import quantised_twin
from trephine.engine.runs.retain import windows_logits
from trephine.engine.weights.gguf_families import FAMILIES, laid_out, restored, stored_type

WINDOW = [tuple(range(5, 45))]


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@torch.inference_mode()
def test_stock_transformers_reads_back_the_quantised_model(family, kind, tmp_path):
    """Alone, without a config beside it; its answers are those of the twin, which intervenes as it likes."""
    hosted = parent(family, tmp_path / "parent", biases=family != "llama")
    file = tmp_path / "files" / f"{kind}.gguf"
    file.parent.mkdir()
    written = list(convert(hosted, hosted.folder, kind, file, "a title"))
    assert len(written) == len(set(written)) == len(Layout(hosted, hosted.folder, kind).tensors)
    stock = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()
    twin = finish(quantised_twin(hosted, kind))
    answers = stock(torch.tensor(WINDOW), use_cache=False).logits[0]
    own, parents = windows_logits(twin, WINDOW)[0], windows_logits(hosted, WINDOW)[0]
    assert float((answers - own).abs().max()) < 1e-4
    assert float((parents - own).abs().max()) > 1e-2, "quantising must show"


@pytest.mark.parametrize(("family", "pre"), [("llama", "gpt-2"), ("qwen2", "qwen2")])
def test_the_tokenizer_is_in_the_file(family, pre, tmp_path):
    """Tokens, merges and special tokens, as stock transformers rebuilds them."""
    hosted = parent(family, tmp_path / "parent", biases=family != "llama")
    file = tmp_path / "files" / "q8_0.gguf"
    file.parent.mkdir()
    list(convert(hosted, hosted.folder, "q8_0", file, "a title"))
    reader = gguf.GGUFReader(file)
    assert reader.fields["tokenizer.ggml.pre"].contents() == pre
    rebuilt = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = "When Mary and John went to the store, an émigré paid 12 euros.<|end|>"
    assert rebuilt(text, add_special_tokens=False)["input_ids"] == hosted.encode(text)


def test_a_disk_that_fills_up_under_a_file_is_a_typed_error(tmp_path):
    """In its header, in the midst of a tensor, and under the very last bytes, which wait in a buffer."""
    hosted = parent("llama", tmp_path / "parent", biases=False)
    whole, again = tmp_path / "whole.gguf", tmp_path / "again.gguf"
    list(convert(hosted, hosted.folder, "q8_0", whole, "a title"))
    size = whole.stat().st_size
    for room in (100, size // 2, size - 1):
        with pytest.raises(DiskFullError, match="make room"), files_end_at(room):
            list(convert(hosted, hosted.folder, "q8_0", tmp_path / f"{room}.gguf", "a title"))
    with files_end_at(size):
        list(convert(hosted, hosted.folder, "q8_0", again, "a title"))
    assert again.read_bytes() == whole.read_bytes()


def test_a_tied_unembedding_is_not_written_twice(tmp_path):
    """Readers take a missing one for tied, and one that is there for untied."""
    hosted = parent("llama", tmp_path / "parent", biases=False)
    names = {tensor.name for tensor in Layout(hosted, hosted.folder, "q8_0").tensors}
    assert ("output.weight" in names) is not hosted.info.tied_embeddings


@torch.inference_mode()
def test_an_unembedding_of_its_own_is_written_whatever_the_config_says(tmp_path):
    """Loaders take two matrices that differ for two, and so must a file that is made of them."""
    folder = tmp_path / "parent"
    parent("qwen2", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}), encoding="utf-8")
    hosted = hosted_in(folder)
    assert not hosted.info.tied_embeddings
    file = tmp_path / "files" / "q8_0.gguf"
    file.parent.mkdir()
    assert "output.weight" in list(convert(hosted, folder, "q8_0", file, "a title"))
    stock = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()
    own = windows_logits(finish(quantised_twin(hosted, "q8_0")), WINDOW)[0]
    assert float((stock(torch.tensor(WINDOW), use_cache=False).logits[0] - own).abs().max()) < 1e-4


@pytest.mark.parametrize("architecture", list(FAMILIES))
def test_layouts_are_undone(architecture):
    """Permuted rows and turned matrices come back, so that the twin holds what a reader gets."""
    config, family = SimpleNamespace(num_attention_heads=4, num_key_value_heads=2), FAMILIES[architecture]
    for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.ffn_up.weight"):
        values = np.arange(16 * 8, dtype=np.float32).reshape(16, 8)
        there = laid_out(values, name, family, config)
        assert np.array_equal(restored(there, name, family, config), values)
    if family.permuted:
        there = laid_out(values, "blk.0.attn_q.weight", family, config)
        assert there[:4, 0].tolist() == [0.0, 16.0, 8.0, 24.0]


def test_what_stays_wider():
    """Vectors, embeddings, and rows that do not divide into blocks."""
    kinds = gguf.GGMLQuantizationType
    assert stored_type("blk.0.attn_norm.weight", (64,), "q4_0") is kinds.F32
    assert stored_type("token_embd.weight", (100, 64), "q4_0") is kinds.Q8_0
    assert stored_type("blk.0.ffn_down.weight", (64, 48), "q4_0") is kinds.F16
    assert [stored_type("blk.0.ffn_up.weight", (8, 64), kind).name.lower() for kind in GGUF_TYPES] == list(
        GGUF_TYPES
    )


@pytest.mark.parametrize(
    ("family", "why"),
    [("gemma2", "not converted"), ("gpt2", "not converted"), ("llama", "biases"), ("qwen3", "heads of 128")],
)
def test_what_would_not_be_read_back_is_refused(family, why, tmp_path):
    """Before anything is planned: a loader that drops tensors says nothing."""
    hosted = parent(family, tmp_path / "parent")
    with pytest.raises(UnsupportedOptionError, match=why):
        require_convertible(hosted)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"hidden_act": "gelu"}, "every activation for SiLU, and this model's is gelu"),
        ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, "sliding window of 16"),
    ],
)
def test_what_a_file_has_no_word_for_is_refused(fields, why, tmp_path):
    """Read back it would be another model, and nothing would say so."""
    folder = tmp_path / "parent"
    parent("qwen2", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config | fields), encoding="utf-8")
    with pytest.raises(UnsupportedOptionError, match=why):
        require_convertible(hosted_in(folder))


def test_another_kind_of_tokenizer_is_refused(tmp_path):
    """Its tokens could not be written as bytes."""
    hosted = parent("qwen2", tmp_path / "parent")
    hosted.tokenizer.backend_tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(UnsupportedOptionError, match="byte-level"):
        require_convertible(hosted)


WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
O200K, TEKKEN = (f"{CASED}{numbers}| ?[^\\s\\p{{L}}]+" for numbers in (r"\p{N}{1,3}", r"\p{N}"))
LLAMA3, QWEN2 = (f"{WORDS}{numbers}{REST}" for numbers in (r"\p{N}{1,3}", r"\p{N}"))


def split_by(pattern, behavior="isolated", *, invert=False):
    """A split by an expression, then bytes alone."""
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior, invert), bytes_alone])


def digits_first(*, individual=True, use_regex=True):
    """As SmolLM splits: each digit alone."""
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=individual), words])


@pytest.fixture(scope="module")
def unsplit(tmp_path_factory):
    """A hosted parent whose tokenizer a test makes another."""
    return parent("qwen2", tmp_path_factory.mktemp("unsplit") / "parent")


def prepared(hosted, pre_tokenizer, *, normalizer=None, **fields: Any):
    """Let the hosted tokenizer prepare texts in a way; `fields` are of its BPE."""
    told = json.loads(hosted.tokenizer.backend_tokenizer.to_str())
    told["pre_tokenizer"] = pre_tokenizer and json.loads(pre_tokenizer.__getstate__())
    told["normalizer"] = normalizer
    told["model"] |= fields
    tokenizer = copy.deepcopy(hosted.tokenizer)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(told))
    return replace(hosted, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("name", "pre_tokenizer", "ignore_merges"),
    [
        ("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False), False),
        ("gpt-2", pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False)]), False),
        ("smollm", digits_first(), False),
        ("llama-bpe", split_by(LLAMA3), True),
        ("smaug-bpe", split_by(LLAMA3), False),
        ("qwen2", split_by(QWEN2), False),
    ],
)
def test_how_texts_are_split_is_named(name, pre_tokenizer, ignore_merges, unsplit, tmp_path):
    """By llama.cpp's names, as they stand for it there; transformers reads SmolLM's without its digits."""
    hosted = prepared(unsplit, pre_tokenizer, ignore_merges=ignore_merges)
    file = tmp_path / "q8_0.gguf"
    list(convert(hosted, hosted.folder, "q8_0", file, "a title"))
    assert gguf.GGUFReader(file).fields["tokenizer.ggml.pre"].contents() == name
    rebuilt = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name).backend_tokenizer.pre_tokenizer
    text = "HelloWorld it's 12345, IT'S\n\n  PyTorch 7 "
    same = rebuilt.pre_tokenize_str(text) == pre_tokenizer.pre_tokenize_str(text)
    assert same == (name != "smollm")


@pytest.mark.parametrize(
    ("pre_tokenizer", "fields"),
    [
        (split_by(O200K), {}),
        (split_by(O200K), {"ignore_merges": True}),
        (split_by(TEKKEN), {}),
        (split_by(LLAMA3 + r"|\p{N}|"), {}),
        (split_by(QWEN2), {"ignore_merges": True}),
        (split_by(QWEN2, "removed"), {}),
        (split_by(QWEN2, invert=True), {}),
        (split_by(QWEN2), {"normalizer": {"type": "Lowercase"}}),
        (split_by(QWEN2), {"end_of_word_suffix": "</w>"}),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), {}),
        (pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), {}),
        (digits_first(individual=False), {}),
        (digits_first(use_regex=False), {}),
        (None, {}),
    ],
)
def test_a_way_of_splitting_that_has_no_name_is_refused(pre_tokenizer, fields, unsplit):
    """A file that named a similar one would make other tokens of the same text, and nothing would say so."""
    with pytest.raises(UnsupportedOptionError, match=r"no name that GGUF has .* gpt-2, smollm") as refused:
        require_convertible(prepared(unsplit, pre_tokenizer, **fields))
    assert refused.value.context["field"] == "gguf"


def test_types_are_named_once():
    """What is no type, and one that is named twice."""
    for wrong in (("q3_k",), ("q8_0", "q8_0")):
        with pytest.raises(InvalidRequestError):
            ExportOptions(gguf=wrong)


@pytest.mark.parametrize(("d_model", "kind"), [(48, "q8_0"), (48, "q4_0"), (64, "q8_0"), (64, "q4_0")])
def test_no_file_is_larger_than_was_planned(d_model, kind, tmp_path):
    """Rows that do not divide into blocks stay wider, and vectors do: 48 is no multiple of 32."""
    hosted = hosted_in(tiny_folder("qwen2", tmp_path / "parent", d_model=d_model))
    list(convert(hosted, hosted.folder, kind, tmp_path / "a.gguf", "a title"))
    tensors = gguf.GGUFReader(tmp_path / "a.gguf").tensors
    assert sum(tensor.n_bytes for tensor in tensors) <= gguf_bytes(hosted, (kind,))

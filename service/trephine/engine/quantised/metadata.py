"""What a GGUF file says of a model beside its tensors: shape, rotary base, tokenizer."""

from __future__ import annotations

import json
from typing import Any

import gguf
from gguf import LlamaFileType, TokenType

from trephine.domain.errors import UnsupportedOptionError
from trephine.domain.exports import GgufType

_FILE_TYPES = {
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q5_1": LlamaFileType.MOSTLY_Q5_1,
    "q5_0": LlamaFileType.MOSTLY_Q5_0,
    "q4_1": LlamaFileType.MOSTLY_Q4_1,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
_SPLITS = {r"\p{N}{1,3}": "llama-bpe", r"|\p{N}|": "qwen2"}
"""What tells the two regular expressions of byte-level tokenizers apart, and llama.cpp's names for them."""


def write_shape(writer: gguf.GGUFWriter, config: Any, kind: GgufType, title: str) -> None:
    """Write what the config says."""
    writer.add_name(title)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)


def write_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, d_vocab: int) -> None:
    """Write a byte-level BPE tokenizer, the kind that GGUF calls `gpt2`.

    Raises:
        UnsupportedOptionError: If it is of another kind.
    """
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    model = stored["model"]
    if (
        model["type"] != "BPE"
        or model.get("byte_fallback")
        or "ByteLevel" not in json.dumps(stored["decoder"])
    ):
        raise UnsupportedOptionError(
            "only byte-level BPE tokenizers are written to GGUF here; export without gguf, and convert the "
            "folder with llama.cpp's own tools",
            field="gguf",
        )
    added = {int(entry["id"]): entry for entry in stored["added_tokens"]}
    spelled = {number: token for token, number in tokenizer.get_vocab().items()}
    writer.add_tokenizer_model("gpt2")
    if pre := _pre_tokenizer(stored["pre_tokenizer"]):
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([spelled.get(number, f"[UNUSED{number}]") for number in range(d_vocab)])
    writer.add_token_types([_type(number, spelled, added) for number in range(d_vocab)])
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in model["merges"]])
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(_begins(tokenizer))
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _type(number: int, spelled: dict[int, str], added: dict[int, Any]) -> TokenType:
    if number not in spelled:
        return TokenType.UNUSED
    if number not in added:
        return TokenType.NORMAL
    return TokenType.CONTROL if added[number]["special"] else TokenType.USER_DEFINED


def _begins(tokenizer: Any) -> bool:
    """True if the tokenizer puts its first token before every text."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def _pre_tokenizer(stored: Any) -> str | None:
    """Name how text is split before merging, in llama.cpp's words; None if unknown here."""
    steps = stored["pretokenizers"] if stored["type"] == "Sequence" else [stored]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        pattern = str(steps[0]["pattern"].get("Regex", ""))
        return next((name for part, name in _SPLITS.items() if part in pattern), None)
    return None

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
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_BYTES_ALONE = _BYTES | {"use_regex": False}


def _split(numbers: str) -> dict[str, Any]:
    """Write the step that Llama-3 and Qwen2 begin with; they differ in how digits are put together."""
    pattern = {"Regex": f"{_WORDS}{numbers}{_REST}"}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


_PRE_TOKENIZERS: tuple[tuple[str, list[dict[str, Any]], bool], ...] = (
    ("gpt-2", [_BYTES], False),
    ("smollm", [{"type": "Digits", "individual_digits": True}, _BYTES], False),
    ("llama-bpe", [_split(r"\p{N}{1,3}"), _BYTES_ALONE], True),
    ("smaug-bpe", [_split(r"\p{N}{1,3}"), _BYTES_ALONE], False),
    ("qwen2", [_split(r"\p{N}"), _BYTES_ALONE], False),
)
"""llama.cpp's names of byte-level tokenizers; the steps that split a text, whole, as each name stands for
them there; and whether a piece that is a token is taken as it is, whatever merges would make of it."""
_CONVERT = "export without gguf, and convert the folder with llama.cpp's own tools"


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
        UnsupportedOptionError: If it is of another kind, or splits texts in a way that has no name here.
    """
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    model = stored["model"]
    if (
        model["type"] != "BPE"
        or model.get("byte_fallback")
        or "ByteLevel" not in json.dumps(stored["decoder"])
    ):
        raise UnsupportedOptionError(
            f"only byte-level BPE tokenizers are written to GGUF here; {_CONVERT}", field="gguf"
        )
    pre = _pre_tokenizer(stored)
    added = {int(entry["id"]): entry for entry in stored["added_tokens"]}
    spelled = {number: token for token, number in tokenizer.get_vocab().items()}
    writer.add_tokenizer_model("gpt2")
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


def _pre_tokenizer(stored: dict[str, Any]) -> str:
    """Name how text is split before merging, in llama.cpp's words: a reader of the file knows no more of it.

    Raises:
        UnsupportedOptionError: If no name that is known here stands for just that.
    """
    model, normalizer = stored["model"], stored.get("normalizer")
    steps = [_told(step) for step in _steps(stored.get("pre_tokenizer"))]
    whole = bool(model.get("ignore_merges"))
    name = next((name for name, known, taken in _PRE_TOKENIZERS if known == steps and taken is whole), None)
    # Characters that NFC composes are composed already in nearly all texts, and Qwen2's files are written so.
    changed = normalizer is not None and normalizer.get("type") != "NFC"
    affixed = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if name is None or changed or affixed:
        raise UnsupportedOptionError(
            "this tokenizer prepares texts in a way for which no name that GGUF has is known here (known are "
            f"those of {', '.join(name for name, *_ in _PRE_TOKENIZERS)}), and a file that named another "
            f"would split texts otherwise; {_CONVERT}",
            field="gguf",
        )
    return name


def _steps(stored: dict[str, Any] | None) -> list[dict[str, Any]]:
    """List what is done to a text one after the other; nothing if it is not split at all."""
    if stored is None:
        return []
    if stored["type"] != "Sequence":
        return [stored]
    return [step for part in stored["pretokenizers"] for step in _steps(part)]


def _told(step: dict[str, Any]) -> dict[str, Any]:
    """Return a step without what moves offsets alone, and with what older files leave to be understood."""
    told = {name: value for name, value in step.items() if name != "trim_offsets"}
    return {"use_regex": True} | told if step["type"] == "ByteLevel" else told

"""What GGUF calls the tensors of an architecture, and how it lays them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from trephine.domain.errors import UnsupportedOptionError
from trephine.domain.exports import GgufType


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How an architecture is laid out."""

    arch: str
    """`general.architecture`."""
    permuted: bool = False
    """Rows of q and k lie in the order of the original Llama: halves of a head interleaved."""


FAMILIES = {
    "LlamaForCausalLM": Family(arch="llama", permuted=True),
    "Qwen2ForCausalLM": Family(arch="qwen2"),
    "Qwen3ForCausalLM": Family(arch="qwen3"),
}
"""Those whose files stock transformers loads as the same model; others are refused by name. Of GPT-2 its
loader takes the MLP's width for four times the model's and 1024 positions, whatever the file says."""

_TYPES = {
    "q8_0": GGMLQuantizationType.Q8_0,
    "q5_1": GGMLQuantizationType.Q5_1,
    "q5_0": GGMLQuantizationType.Q5_0,
    "q4_1": GGMLQuantizationType.Q4_1,
    "q4_0": GGMLQuantizationType.Q4_0,
}
_BLOCK = 32
_SILU = ("silu", "swish")


def family_of(architecture: str, config: Any) -> Family:
    """Return an architecture's layout.

    Raises:
        UnsupportedOptionError: If a GGUF file of it is not read back as the same model by stock transformers.
    """
    family = FAMILIES.get(architecture)
    if family is None:
        raise UnsupportedOptionError(
            f"{why_unread(architecture, config)}. "
            "Export without gguf, and convert the folder with llama.cpp's own tools",
            field="gguf",
        )
    if why := why_unread(architecture, config):
        raise UnsupportedOptionError(
            f"stock transformers would not read this model back from GGUF: {why}; export without gguf",
            field="gguf",
        )
    return family


def why_unread(architecture: str, config: Any) -> str:
    """Say why stock transformers would not read a GGUF file of a model as the same one; empty if it would."""
    family = FAMILIES.get(architecture)
    if family is None:
        return f"{architecture} is not converted to GGUF here; {', '.join(sorted(FAMILIES))} are"
    return _unread(family, config)


def _unread(family: Family, config: Any) -> str:
    """Say what the stock loader leaves out or takes for its default; empty if nothing."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        return f"it does not carry rotary scaling of type {rope['rope_type']}"
    if config.hidden_act not in _SILU:
        return f"it takes every activation for SiLU, and this model's is {config.hidden_act}"
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    if getattr(config, "use_sliding_window", False) and window < config.max_position_embeddings:
        return f"it leaves the sliding window of {window} tokens out"
    if family.arch == "llama" and (config.mlp_bias or config.attention_bias):
        return "it leaves the biases of a Llama out"
    if family.arch == "qwen3" and config.head_dim != 128:
        return f"it takes heads of 128, and these are of {config.head_dim}"
    if family.arch == "qwen3" and config.attention_bias:
        return "it leaves attention biases of a Qwen3 out"
    return ""


class TensorNames:
    """From names of a Hugging Face checkpoint to those of a GGUF file."""

    def __init__(self, family: Family, n_layers: int, prefix: str) -> None:
        """Take the map of the `gguf` package; `prefix` is that of the base model, `model`."""
        arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == family.arch)
        self._map = gguf.get_tensor_name_map(arch, n_layers)
        self._prefix = prefix

    def __call__(self, name: str) -> str | None:
        """Return a tensor's name, None for what GGUF does not hold, such as buffers."""
        stem, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias"):
            return None
        found = self._map.get_name(stem) or self._map.get_name(f"{self._prefix}.{stem}")
        return None if found is None else f"{found}.{kind}"


def laid_out(values: NDArray[Any], name: str, family: Family, config: Any) -> NDArray[Any]:
    """Turn a tensor's values, as Hugging Face stores them, into GGUF's order."""
    if family.permuted and ".attn_q." in name:
        return _permuted(values, config.num_attention_heads)
    if family.permuted and ".attn_k." in name:
        return _permuted(values, config.num_key_value_heads)
    return values


def restored(values: NDArray[Any], name: str, family: Family, config: Any) -> NDArray[Any]:
    """Undo `laid_out`."""
    heads = {".attn_q.": "num_attention_heads", ".attn_k.": "num_key_value_heads"}
    for part, field in heads.items():
        if family.permuted and part in name:
            n = getattr(config, field)
            return values.reshape(n, values.shape[0] // n // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
    return values


def _permuted(values: NDArray[Any], heads: int) -> NDArray[Any]:
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def stored_type(name: str, shape: tuple[int, ...], wanted: GgufType) -> GGMLQuantizationType:
    """Say how a tensor is stored, much as llama.cpp's quantiser does.

    Vectors stay float32. Embeddings and unembedding of files below 8 bits take 8. Rows
    that are no multiple of a block's 32 values stay float16.

    Args:
        name: GGUF's.
        shape: Rows last.
        wanted: Of all other matrices.
    """
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    if shape[-1] % _BLOCK:
        return GGMLQuantizationType.F16
    if name in ("token_embd.weight", "output.weight"):
        return GGMLQuantizationType.Q8_0
    return _TYPES[wanted]

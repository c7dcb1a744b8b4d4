"""Tiny models of every verified family, with nothing trivial in them, and the folders to load them from.

Every parameter is random at a scale that keeps activations of order one: norm gains are not 1, biases
are not 0, soft caps bite, the sliding window is shorter than the prompts. A test that passes here does
not pass because a term happened to vanish.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from trephine.engine.models.hosted import HostedModel, host

FAMILIES: Final = ("llama", "gpt2", "gemma2", "qwen2", "qwen3", "gpt_neox", "gpt_neox_sequential")
"""`gpt_neox` has parallel blocks (both branches read the same residual), `gpt_neox_sequential` has not."""

WORDS: Final = (
    " Mary", " John", " the", " store", " gave", " drink", " to", " a", " and", " went", " When",
    " Paris", " France", " capital", " is", " of", " cat", " dog", "The", "When",
)  # fmt: skip
"""Words that are one token each in `tiny_tokenizer`; everything else falls into single bytes."""

EOS: Final = "<|end|>"
PAD: Final = "<|pad|>"
D_VOCAB: Final = 400
"""More than the tokenizer needs, as in real checkpoints whose embeddings are padded."""
CONTEXT: Final = 256

torch.set_num_threads(1)  # tiny matrices only get slower with more, and products stay reproducible

CHAT_TEMPLATE: Final = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Build a byte-level BPE tokenizer in which every one of `WORDS` is one token.

    Any text can be encoded: what is no word becomes one token per UTF-8 byte, so that half an emoji
    is a token. `<|end|>` (id 0) ends a text, `<|pad|>` is id 1, `<|start|>` id 2.
    """
    specials = [EOS, PAD, "<|start|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        spelled = word.replace(" ", "Ġ")
        for end in range(1, len(spelled)):
            left, right = spelled[:end], spelled[end]
            if left + right not in vocabulary:
                vocabulary[left + right] = len(vocabulary)
                merges.append((left, right))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, pad_token=PAD)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_config(family: str, *, n_layers: int = 3, d_model: int = 32) -> Any:
    """Build the configuration of a tiny model: 4 heads (2 for keys and values where the family can)."""
    heads, d_mlp = 4, 2 * d_model
    common: dict[str, Any] = {
        "vocab_size": D_VOCAB,
        "hidden_size": d_model,
        "intermediate_size": d_mlp,
        "num_hidden_layers": n_layers,
        "num_attention_heads": heads,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    if family == "llama":
        return LlamaConfig(**common, num_key_value_heads=2, attention_bias=True, mlp_bias=True)
    if family == "qwen2":
        return Qwen2Config(**common, num_key_value_heads=2)
    if family == "qwen3":
        return Qwen3Config(**common, num_key_value_heads=2, head_dim=d_model // heads, attention_bias=True)
    if family == "gemma2":
        return Gemma2Config(
            **common,
            num_key_value_heads=2,
            head_dim=d_model // heads,
            query_pre_attn_scalar=d_model // heads,
            sliding_window=6,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        )
    if family in ("gpt_neox", "gpt_neox_sequential"):
        return GPTNeoXConfig(**common, use_parallel_residual=family == "gpt_neox", hidden_act="gelu")
    if family == "gpt2":
        return GPT2Config(
            vocab_size=D_VOCAB,
            n_embd=d_model,
            n_inner=d_mlp,
            n_layer=n_layers,
            n_head=heads,
            n_positions=CONTEXT,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=1,
        )
    raise ValueError(f"no such family: {family}; there are {', '.join(FAMILIES)}")


def tiny_model(
    family: str,
    *,
    n_layers: int = 3,
    d_model: int = 32,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    attention: str = "eager",
) -> Any:
    """Build a random model of one family, in evaluation mode, without gradients.

    Args:
        family: One of `FAMILIES`.
        n_layers: Blocks. Gemma-2 alternates sliding and full attention.
        d_model: Width; the MLP is twice as wide.
        dtype: Of every parameter. The same seed draws the same numbers in every dtype.
        seed: Of the model's own generator; the global one is left alone.
        attention: transformers' attention implementation.
    """
    config = tiny_config(family, n_layers=n_layers, d_model=d_model)
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model = model.to(dtype).eval().requires_grad_(False)
    randomise(model, seed)
    return model


def randomise(model: nn.Module, seed: int) -> None:
    """Draw every parameter anew: matrices of variance 1/d_in, gains about 1, biases about 0.2."""
    generator = torch.Generator().manual_seed(seed)
    gemma = type(model).__name__.startswith("Gemma")
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                parameter.copy_(_draw(module, name, parameter, gemma, generator))


def _draw(module: nn.Module, name: str, parameter: Tensor, gemma: bool, generator: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    if parameter.ndim == 1:
        is_gain = name == "weight"
        centre = 0.0 if gemma or not is_gain else 1.0
        return noise * (0.3 if is_gain else 0.2) + centre
    if isinstance(module, nn.Embedding):
        return 0.7 * noise
    d_in = parameter.shape[0] if type(module).__name__ == "Conv1D" else parameter.shape[1]
    scaled: Tensor = noise / d_in**0.5
    return scaled


def tiny_hosted(
    family: str,
    *,
    n_layers: int = 3,
    d_model: int = 32,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: str = "cpu",
) -> HostedModel:
    """Host a tiny random model in this process, with `tiny_tokenizer`, as `LoadModel` would."""
    model = tiny_model(family, n_layers=n_layers, d_model=d_model, dtype=dtype, seed=seed)
    return hosted_from(model.to(device), name=f"tiny-{family}")


def hosted_from(model: Any, *, name: str = "tiny") -> HostedModel:
    """Host a model that a test made or changed itself."""
    return host(model, tiny_tokenizer(), name=name, folder=Path("/nowhere") / name)


def tiny_folder(
    family: str,
    path: Path,
    *,
    n_layers: int = 3,
    d_model: int = 32,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    max_shard_size: str = "5GB",
) -> Path:
    """Save a tiny random model with its tokenizer as a plain Hugging Face folder; return `path`."""
    model = tiny_model(family, n_layers=n_layers, d_model=d_model, dtype=dtype, seed=seed)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    tiny_tokenizer().save_pretrained(path)
    return path

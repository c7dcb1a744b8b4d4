"""Which servers load an exported folder, and why: what is loadable in transformers need not be elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from trephine.domain.exports import ServerSupport
from trephine.engine.weights.compiling import WeightProgram
from trephine.engine.weights.gguf_families import why_unread

_FROM_GGUF = "transformers, from GGUF"

_LLAMA_BIAS = {
    "vllm": "its Llama reads `mlp_bias`, the down projection's included",
    "llama.cpp": "its `llama` graph loads optional ffn_gate, ffn_up and ffn_down biases",
}
_LLAMA_ATTENTION_BIAS = {
    "vllm": "its Llama reads `attention_bias`, the output projection's included",
    "llama.cpp": "its `llama` graph loads optional attn_q, attn_k, attn_v and attn_output biases",
}
_REFUSED = {
    ("GPT2LMHeadModel", "n_inner", "llama.cpp"): (
        "its GPT-2 converter writes four times the model's width as the MLP's, whatever `n_inner` says",
        "plan with --keep-shapes for a form without new neurons",
    ),
    ("Gemma2ForCausalLM", "tie_word_embeddings", "vllm"): (
        "its Gemma-2 asserts that embedding and unembedding are one",
        "edit what blocks write instead",
    ),
    ("Gemma2ForCausalLM", "tie_word_embeddings", "llama.cpp"): (
        "its Gemma converter leaves `lm_head.weight` out, so that the unembedding would be the edited "
        "embedding",
        "edit what blocks write instead",
    ),
}
"""(architecture, field of the config, server) -> why that server cannot load what has it otherwise than
the architecture has by itself, and what to do about a change. All as read in their sources; a changed release
is not noticed here."""


_MISTAKEN = (
    "its config says that embedding and unembedding are one (`tie_word_embeddings`), its files hold two that "
    "differ, and what is served follows the config: transformers alone takes both; set the field to false in "
    "the parent's config.json, and load it again"
)


def supporting_servers(
    architecture: str, config: Any, program: WeightProgram, *, tied: bool
) -> tuple[ServerSupport, ...]:
    """Say who loads the folder and how that is known.

    Args:
        architecture: The parent's, as transformers names it.
        config: The parent's, of transformers.
        program: What the export changes.
        tied: Whether embedding and unembedding of the loaded parent are one, whatever its config says.
    """
    transformers = ServerSupport(
        server="transformers", loads=True, note="reloaded in a clean process before publishing"
    )
    mistaken = [_MISTAKEN] if config.tie_word_embeddings and not tied else []
    vllm = _other("vllm", architecture, config, program, mistaken)
    llama_cpp = _other("llama.cpp", architecture, config, program)
    return (transformers, vllm, llama_cpp, _from_gguf(architecture, config, program))


def _from_gguf(architecture: str, config: Any, program: WeightProgram) -> ServerSupport:
    """Say what becomes of a converted file in transformers, which drops what it has no key for."""
    if why := why_unread(architecture, config):
        return ServerSupport(server=_FROM_GGUF, loads=False, note=why)
    if {"mlp_bias", "attention_bias"} & set(program.config):
        return ServerSupport(
            server=_FROM_GGUF,
            loads=False,
            note="it leaves a Llama's biases out without a word, and with them the edit; "
            "plan with --gguf TYPE for a form without biases",
        )
    note = "no tensor that its GGUF loader leaves out; measured if GGUF files are asked for"
    return ServerSupport(server=_FROM_GGUF, loads=True, note=note)


def _other(
    server: str, architecture: str, config: Any, program: WeightProgram, mistaken: Sequence[str] = ()
) -> ServerSupport:
    inherited = [_REFUSED[key][0] for key in _keys(architecture, _own(architecture, config), server)]
    if inherited or mistaken:  # first: no other form of this edit would help
        whys = "; ".join((*inherited, *mistaken))
        return ServerSupport(server=server, loads=False, note=f"nor does it load the parent as it is: {whys}")
    refused = [_REFUSED[key] for key in _keys(architecture, program.config, server)]
    if refused:
        return ServerSupport(server=server, loads=False, note="; ".join(map("; ".join, refused)))
    verb = "converts" if server == "llama.cpp" else "loads"
    if not program.config:
        same = "same architecture, tensor names, shapes and config as the parent"
        return ServerSupport(
            server=server, loads=True, note=f"wherever the parent {verb}: {same}; not run here"
        )
    reasons = [_reason(server, name, value) for name, value in sorted(program.config.items())]
    return ServerSupport(server=server, loads=True, note=f"{'; '.join(reasons)}; not run here")


def _keys(architecture: str, fields: Iterable[str], server: str) -> list[tuple[str, str, str]]:
    """List what is refused of these fields."""
    keys = [(architecture, name, server) for name in sorted(fields)]
    return [key for key in keys if key in _REFUSED]


def _own(architecture: str, config: Any) -> list[str]:
    """List the fields that the parent has otherwise than its architecture by itself: an export may be one."""
    if architecture == "GPT2LMHeadModel" and config.n_inner not in (None, 4 * config.n_embd):
        return ["n_inner"]
    if architecture == "Gemma2ForCausalLM" and not config.tie_word_embeddings:
        return ["tie_word_embeddings"]
    return []


def _reason(server: str, name: str, value: Any) -> str:
    """Say why a changed field is taken."""
    if name == "mlp_bias":
        return _LLAMA_BIAS[server]
    if name == "attention_bias":
        return _LLAMA_ATTENTION_BIAS[server]
    if name == "tie_word_embeddings":
        return "an unembedding of its own is an ordinary tensor"
    return f"{name} = {value} is read from the config, the same for all layers"

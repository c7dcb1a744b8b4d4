"""Which servers load an exported folder, and why: what is loadable in transformers need not be elsewhere."""

from __future__ import annotations

from trephine.domain.exports import ServerSupport
from trephine.engine.weights.compiling import WeightProgram

_LLAMA_BIAS = {
    "vllm": "its Llama reads `mlp_bias`, the down projection's included",
    "llama.cpp": "its `llama` graph loads optional ffn_gate, ffn_up and ffn_down biases",
}
"""As read in their sources; a changed release is not noticed here."""


def supporting_servers(architecture: str, program: WeightProgram) -> tuple[ServerSupport, ...]:
    """Say who loads the folder and how that is known."""
    transformers = ServerSupport(
        server="transformers", loads=True, note="reloaded in a clean process before publishing"
    )
    others = (_other(server, architecture, program) for server in ("vllm", "llama.cpp"))
    return (transformers, *others, _from_gguf(program))


def _from_gguf(program: WeightProgram) -> ServerSupport:
    """Say what becomes of a converted file in transformers, which drops what it has no key for."""
    server = "transformers, from GGUF"
    if "mlp_bias" in program.config:
        return ServerSupport(
            server=server,
            loads=False,
            note="it leaves a Llama's MLP biases out without a word, and with them the edit; "
            "plan with --gguf TYPE for a form without biases",
        )
    note = "no tensor that its GGUF loader leaves out; measured if GGUF files are asked for"
    return ServerSupport(server=server, loads=True, note=note)


def _other(server: str, architecture: str, program: WeightProgram) -> ServerSupport:
    verb = "converts" if server == "llama.cpp" else "loads"
    if not program.config:
        same = "same architecture, tensor names, shapes and config as the parent"
        return ServerSupport(
            server=server, loads=True, note=f"wherever the parent {verb}: {same}; not run here"
        )
    reasons = []
    for name, value in sorted(program.config.items()):
        if name == "mlp_bias":
            reasons.append(_LLAMA_BIAS[server])
        elif name == "tie_word_embeddings":
            reasons.append("an unembedding of its own is an ordinary tensor")
        else:
            reasons.append(f"{name} = {value} is read from the config, the same for all layers")
    return ServerSupport(server=server, loads=True, note=f"{'; '.join(reasons)}; not run here")

"""One view of every supported architecture: modules to hook, weights in one orientation.

`interp-engine` finds the modules; this file only adds what attribution needs on top: value and output
matrices per head out of fused projections, gains as they are applied, gated or plain MLPs. Nothing is
copied or converted: weights are views of the loaded model.

All matrices are `(d_out, d_in)`, as in `torch.nn.Linear`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from interp_engine.arch import ArchSpec, resolve_arch
from torch import Tensor, nn

from trephine.domain.errors import UnsupportedArchitectureError


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A norm whose scale can be frozen: `y = centre(x) * inverse_scale(x) * gain + bias`."""

    module: nn.Module
    gain: Tensor
    """`(d_model,)`, as applied (Gemma's offset of 1 included)."""
    bias: Tensor | None
    centred: bool
    """True for LayerNorm, which subtracts the mean; False for RMSNorm."""
    eps: float

    def centre(self, x: Tensor) -> Tensor:
        """Subtract the mean over the last axis where the norm does."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def inverse_scale(self, x: Tensor) -> Tensor:
        """Return 1 / rms (or 1 / std) of `x (..., d_model)` as `(..., 1)`, float32 or wider."""
        wide = self.centre(x.to(torch.promote_types(x.dtype, torch.float32)))
        return torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """An attention layer; the pattern is applied to `W_V x + b_V`, then `W_O`."""

    module: nn.Module
    out: nn.Module
    """The output projection; its input is `attn_z`."""
    W_V: Tensor
    """`(n_kv_heads, d_head, d_model)`."""
    b_V: Tensor | None
    """`(n_kv_heads, d_head)`."""
    W_O: Tensor
    """`(d_model, n_heads, d_head)`."""
    b_O: Tensor | None
    """`(d_model,)`."""
    n_heads: int
    n_kv_heads: int

    @property
    def d_head(self) -> int:
        """Width of a head's values."""
        return self.W_V.shape[1]

    @property
    def group(self) -> int:
        """Query heads per key and value head; head `h` reads values of head `h // group`."""
        return self.n_heads // self.n_kv_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """An MLP. Gated: `W_down (phi(W_gate x + b_gate) * (W_in x + b_in)) + b_down`.

    Plain: `W_down phi(W_in x + b_in) + b_down`.
    """

    module: nn.Module
    down: nn.Module
    """The module whose input is the neurons' activations."""
    W_gate: Tensor | None
    """`(d_mlp, d_model)`; None for plain MLPs."""
    b_gate: Tensor | None
    W_in: Tensor
    """`(d_mlp, d_model)`."""
    b_in: Tensor | None
    W_down: Tensor
    """`(d_model, d_mlp)`."""
    b_down: Tensor | None
    activation: Callable[[Tensor], Tensor]

    @property
    def gated(self) -> bool:
        """True for a = phi(g) u, False for a = phi(u)."""
        return self.W_gate is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One transformer block, sequential (`x + attn`, then `+ mlp`) or parallel (both read `x`)."""

    layer: int
    module: nn.Module
    attention_norm: Norm
    attention: Attention
    attention_post_norm: Norm | None
    """Applied to the attention's output before it is added (Gemma-2)."""
    mlp_norm: Norm
    mlp: Mlp
    mlp_post_norm: Norm | None
    parallel: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A supported model, module by module."""

    name: str
    """transformers' class name."""
    blocks: tuple[Block, ...]
    embedding: nn.Module
    final_norm: Norm
    unembedding: nn.Module
    W_U: Tensor
    """`(d_vocab, d_model)`."""
    b_U: Tensor | None
    mean_unembedding: Tensor
    """`(d_model,)`, float32 or wider: the mean row of `W_U`, what the mean logit reads."""
    logit_softcap: float | None
    """Final `cap * tanh(logits / cap)`, or None."""
    d_model: int
    d_mlp: int
    d_vocab: int
    n_heads: int
    n_kv_heads: int

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)


@dataclass(frozen=True, slots=True)
class _Family:
    """What inspection cannot settle for a family of architectures."""

    input_norm: str
    read: str
    gate: str | None
    gain_offset: float = 0.0
    transposed: bool = False
    """True for GPT-2's Conv1D, whose weights are `(d_in, d_out)`."""


_LLAMA = _Family(input_norm="input_layernorm", read="up_proj", gate="gate_proj")

VERIFIED: dict[str, _Family] = {
    "LlamaForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _LLAMA,
    "Qwen3ForCausalLM": _LLAMA,
    "Gemma2ForCausalLM": _Family(
        input_norm="input_layernorm", read="up_proj", gate="gate_proj", gain_offset=1.0
    ),
    "GPT2LMHeadModel": _Family(input_norm="ln_1", read="c_fc", gate=None, transposed=True),
    "GPTNeoXForCausalLM": _Family(input_norm="input_layernorm", read="dense_h_to_4h", gate=None),
}
"""Architectures whose laws are tested; every other one is refused by name."""


def describe_architecture(model: nn.Module) -> Architecture:
    """Resolve a loaded model.

    Raises:
        UnsupportedArchitectureError: If its laws are not tested here.
    """
    name = type(model).__name__
    family = VERIFIED.get(name)
    if family is None:
        raise UnsupportedArchitectureError(
            f"{name} is not supported: its attribution and export are not verified here. "
            f"Supported: {', '.join(sorted(VERIFIED))}",
            architecture=name,
        )
    config: Any = model.config
    spec: Any = resolve_arch(model, config)
    parallel = bool(getattr(config, "use_parallel_residual", False))
    blocks = tuple(_block(spec, family, layer, parallel) for layer in range(spec.n_layers))
    head = spec.lm_head
    return Architecture(
        name=name,
        blocks=blocks,
        embedding=spec.embed,
        final_norm=_norm(spec.final_norm, family),
        unembedding=head,
        W_U=head.weight.detach(),
        b_U=_detached(getattr(head, "bias", None)),
        mean_unembedding=_mean_row(head.weight.detach()),
        logit_softcap=getattr(config, "final_logit_softcapping", None),
        d_model=spec.d_model,
        d_mlp=blocks[0].mlp.W_in.shape[0],
        d_vocab=head.weight.shape[0],
        n_heads=spec.n_heads,
        n_kv_heads=spec.n_kv_heads,
    )


def _mean_row(matrix: Tensor) -> Tensor:
    return matrix.mean(0, dtype=torch.promote_types(matrix.dtype, torch.float32))


def _block(spec: ArchSpec, family: _Family, layer: int, parallel: bool) -> Block:
    module = spec.block(layer)
    post_attention, post_mlp = spec.post_attn_norm(layer), spec.post_mlp_norm(layer)
    mlp_norm = spec.pre_mlp_norm(layer)
    if mlp_norm is None:
        raise UnsupportedArchitectureError(f"layer {layer} has no norm before its MLP", layer=layer)
    return Block(
        layer=layer,
        module=module,
        attention_norm=_norm(getattr(module, family.input_norm), family),
        attention=_attention(spec, family, layer),
        attention_post_norm=None if post_attention is None else _norm(post_attention, family),
        mlp_norm=_norm(mlp_norm, family),
        mlp=_mlp(spec, family, layer),
        mlp_post_norm=None if post_mlp is None else _norm(post_mlp, family),
        parallel=parallel,
    )


def _norm(module: nn.Module, family: _Family) -> Norm:
    centred, weight = isinstance(module, nn.LayerNorm), cast(Tensor, module.weight).detach()
    eps = next(getattr(module, name) for name in ("eps", "variance_epsilon") if hasattr(module, name))
    return Norm(
        module=module,
        gain=weight + family.gain_offset if family.gain_offset else weight,
        bias=_detached(getattr(module, "bias", None)),
        centred=centred,
        eps=float(eps),
    )


def _attention(spec: ArchSpec, family: _Family, layer: int) -> Attention:
    module, output = spec.attn_module(layer), spec.attn_out_proj(layer)
    n_heads, n_kv_heads, d_model = spec.n_heads, spec.n_kv_heads, spec.d_model
    value = spec.v_proj(layer)
    if value is not None:
        W_V = value.weight.detach().unflatten(0, (n_kv_heads, -1))
        b_V = _split_bias(getattr(value, "bias", None), n_kv_heads)
    else:
        W_V, b_V = _fused_value(spec, family, layer)
    W_O = _matrix(output, family).unflatten(1, (n_heads, -1))  # (d_model, n_heads, d_head)
    if W_O.shape[0] != d_model:
        raise UnsupportedArchitectureError(f"layer {layer} writes {W_O.shape[0]} of {d_model}", layer=layer)
    return Attention(
        module=module,
        out=output,
        W_V=W_V,
        b_V=b_V,
        W_O=W_O,
        b_O=_detached(getattr(output, "bias", None)),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
    )


def _fused_value(spec: ArchSpec, family: _Family, layer: int) -> tuple[Tensor, Tensor | None]:
    """Take V out of a fused QKV projection: thirds (GPT-2) or interleaved per head (GPT-NeoX)."""
    fused = spec.fused_qkv_module(layer)
    if fused is None:
        raise UnsupportedArchitectureError(f"layer {layer} has no value projection", layer=layer)
    weight, n_heads = _matrix(fused, family), spec.n_heads
    bias = _detached(getattr(fused, "bias", None))
    if family.transposed:
        third = weight.shape[0] // 3
        return weight[2 * third :].unflatten(0, (n_heads, -1)), (
            None if bias is None else bias[2 * third :].unflatten(0, (n_heads, -1))
        )
    per_head = weight.unflatten(0, (n_heads, 3, -1))  # (n_heads, 3, d_head, d_model)
    return per_head[:, 2], None if bias is None else bias.unflatten(0, (n_heads, 3, -1))[:, 2]


def _mlp(spec: ArchSpec, family: _Family, layer: int) -> Mlp:
    module, down = spec.mlp_module(layer), spec.mlp_projection(layer, "down")
    read = getattr(module, family.read)
    gate = None if family.gate is None else getattr(module, family.gate)
    return Mlp(
        module=module,
        down=down,
        W_gate=None if gate is None else _matrix(gate, family),
        b_gate=None if gate is None else _detached(getattr(gate, "bias", None)),
        W_in=_matrix(read, family),
        b_in=_detached(getattr(read, "bias", None)),
        W_down=_matrix(down, family),
        b_down=_detached(getattr(down, "bias", None)),
        activation=getattr(module, "act_fn", None) or module.act,
    )


def _matrix(module: nn.Module, family: _Family) -> Tensor:
    weight = cast(Tensor, module.weight).detach()
    return weight.T if family.transposed else weight


def _split_bias(bias: Tensor | None, heads: int) -> Tensor | None:
    return None if bias is None else bias.detach().unflatten(0, (heads, -1))


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()

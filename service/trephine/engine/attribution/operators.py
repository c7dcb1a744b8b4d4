"""The frozen linear network of one prompt: what attribution holds constant, captured in one clean pass.

Attention patterns and the scales of all norms are constants of the prompt (Elhage et al. 2021; Ameisen et
al. 2025). With them, every pre-activation is an affine function of what embeddings and MLPs wrote below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from trephine.engine.models.architecture import Architecture, Block, Norm
from trephine.engine.models.attention import PatternTape, pattern_tape
from trephine.engine.models.products import linears_in
from trephine.engine.runs.partial_passes import ending_at

Store = dict[tuple[int, str], Tensor]

_NORMED_BYTES = 256 << 20
"""Inputs of norms that are frozen together on a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenNorm:
    """A norm as an affine map: `y = centre(x) * scale[position] * gain + bias`."""

    gain: Tensor
    """`(d_model,)`."""
    bias: Tensor | None
    centred: bool
    scale: Tensor
    """`(n_pos, 1)`, 1 / rms of the clean input."""
    normed: Tensor
    """`(n_pos, d_model)`, the clean input centred and scaled, before gain and bias."""

    @property
    def clean(self) -> Tensor:
        """`(n_pos, d_model)`, the norm's output in the clean run."""
        y = self.normed * self.gain
        return y if self.bias is None else y + self.bias

    def apply(self, x: Tensor) -> Tensor:
        """Return the norm's output for `x (n_pos, d_model)`, with the clean scale."""
        y = self.centre(x) * self.scale * self.gain
        return y if self.bias is None else y + self.bias

    def centre(self, x: Tensor) -> Tensor:
        """Subtract the mean over the last axis where the norm does."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def push(self, vectors: Tensor, positions: Tensor | slice) -> Tensor:
        """Carry summands of the input `(n, d_model)` at `positions` to the output; linear, without bias."""
        return self.centre(vectors) * self.scale[positions] * self.gain

    def fold(self, directions: Tensor) -> Tensor:
        """Carry directions `(..., d_model)` on the output to the input, at a scale of 1."""
        return self.centre(directions * self.gain)

    def pull_back(self, cotangent: Tensor, positions: Tensor | slice) -> Tensor:
        """Return the adjoint of the norm's input for cotangents `(..., n_rows, d_model)` at `positions`."""
        return self.centre(cotangent * self.gain * self.scale[positions])

    def pull_back_all(self, cotangent: Tensor) -> Tensor:
        """Return the adjoint of the norm's input for cotangents `(..., n, d_model)` at the first n."""
        return self.pull_back(cotangent, slice(cotangent.shape[-2]))

    def pull_back_live(self, cotangent: Tensor) -> Tensor:
        """Return the adjoint `(n_pos, d_model)` of the input with the scale following the input."""
        scaled = cotangent * self.gain
        along = (scaled * self.normed).mean(-1, keepdim=True)
        return self.centre((scaled - self.normed * along) * self.scale)


@dataclass(frozen=True, kw_only=True)
class FrozenLayer:
    """One block's constants and clean values; positions come first, in the working dtype.

    Without slots, so that what only neurons ask for is computed when it is asked for.
    """

    block: Block
    resid_pre: Tensor
    """`(n_pos, d_model)`."""
    resid_mid: Tensor
    """`(n_pos, d_model)`, what the MLP's norm reads (`resid_pre` in parallel blocks)."""
    pattern: Tensor
    """`(n_heads, n_query, n_key)`."""
    rotation: tuple[Tensor, Tensor] | None
    """Rotary cosines and sines `(n_pos, d_rotary)`, or None."""
    attention_norm: FrozenNorm
    attention_post_norm: FrozenNorm | None
    mlp_norm: FrozenNorm
    mlp_post_norm: FrozenNorm | None
    mlp_in: Tensor
    """`(n_pos, d_model)`, what the MLP reads."""
    activation: Tensor
    """`(n_pos, d_mlp)`, what the down projection reads."""
    mlp_out: Tensor
    """`(n_pos, d_model)`, what the MLP adds to the residual stream (after a post-norm)."""

    @cached_property
    def gate(self) -> Tensor | None:
        """`(n_pos, d_mlp)`, g with its bias; None for plain MLPs."""
        mlp = self.block.mlp
        return None if mlp.W_gate is None else _linear(self.mlp_in, mlp.W_gate, mlp.b_gate)

    @cached_property
    def read(self) -> Tensor:
        """`(n_pos, d_mlp)`, u with its bias."""
        return _linear(self.mlp_in, self.block.mlp.W_in, self.block.mlp.b_in)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenOperators:
    """The frozen network of one prompt."""

    architecture: Architecture
    layers: tuple[FrozenLayer, ...]
    embedding: Tensor
    """`(n_pos, d_model)`, what the first block reads."""
    final_norm: FrozenNorm
    stream: Tensor
    """`(n_pos, d_model)`, the residual stream that the final norm reads."""
    final: Tensor
    """`(n_pos, d_model)`, the final norm's output."""
    logits: Tensor
    """`(d_vocab,)`, the clean logits at the last position, after a soft cap where there is one."""
    covered: tuple[bool, ...]
    """Per layer that was run: True if its neurons are sources, False if its MLP is an opaque error source."""

    @property
    def n_pos(self) -> int:
        """Tokens of the prompt."""
        return self.embedding.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Accumulation dtype: float32, or wider if the model is."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the sweep runs."""
        return self.embedding.device


def capture(
    model: nn.Module,
    architecture: Architecture,
    ids: Sequence[int],
    layers: Sequence[int] | None = None,
    *,
    positions: Tensor | None = None,
    top: int | None = None,
) -> FrozenOperators:
    """Run the prompt once and keep what the frozen network needs.

    Args:
        model: The hosted model, with Trephine's attention.
        architecture: Its description.
        ids: Token ids of the prompt, at least one.
        layers: Layers whose neurons are sources; the others become error sources. None means all.
        positions: int64 `(len(ids),)`; where they restart at 0 a new prompt begins, which sees none before
            it. None means one prompt.
        top: The last block that is run. What is kept is the network of the blocks up to it, whose stream
            goes straight to the final norm; None means all.

    Returns:
        The operators, `len(ids)` positions long.
    """
    store: Store = {}
    weight: Any = architecture.embedding.weight
    batch = torch.tensor([list(ids)], device=weight.device)
    places = None if positions is None else positions[None]
    linears = linears_in(weight.dtype, weight.device)
    with pattern_tape(PatternTape(record=True)) as tape, _recording(architecture, store), linears:
        logits = _run(model, architecture, {"input_ids": batch, "position_ids": places}, top)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    blocks = architecture.blocks[: None if top is None else top + 1]
    norms = _freeze_norms(architecture.final_norm, blocks, store, dtype)
    frozen = tuple(
        _freeze_layer(block, store, norms, tape.recorded[block.layer][0].to(dtype), dtype) for block in blocks
    )
    covered = range(architecture.n_layers) if layers is None else layers
    return FrozenOperators(
        architecture=architecture,
        layers=frozen,
        embedding=frozen[0].resid_pre,
        final_norm=norms[-1, "final_norm"],
        stream=store[-1, "final_norm"].to(dtype),
        final=store[-1, "final"].to(dtype),
        logits=logits.to(dtype),
        covered=tuple(layer in covered for layer in range(len(frozen))),
    )


def _run(
    model: nn.Module, architecture: Architecture, inputs: dict[str, Tensor | None], top: int | None
) -> Tensor:
    """Run the model, or its blocks up to `top` and the final norm; return the last logits `(d_vocab,)`."""
    if top is None:
        output: Any = model(**inputs, use_cache=False, logits_to_keep=1)
        return output.logits[0, -1]
    with ending_at(architecture.blocks[top].module) as reached:
        model(**inputs, use_cache=False, logits_to_keep=1)
    final = architecture.final_norm.module(reached[0])
    logits: Tensor = architecture.unembedding(final[:, -1:])[0, -1]
    cap = architecture.logit_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


def stored_bytes(operators: FrozenOperators) -> int:
    """Return the bytes that the operators hold beyond the model."""
    kept = [operators.stream, operators.final, operators.logits, operators.final_norm.normed]
    for layer in operators.layers:
        kept += [layer.resid_pre, layer.resid_mid, layer.pattern, layer.mlp_in, layer.mlp_out]
        # What the projections give is computed where neurons are asked about, and as wide as what they write.
        kept += [layer.activation] * (2 if layer.block.mlp.W_gate is None else 3)
        norms = (layer.attention_norm, layer.attention_post_norm, layer.mlp_norm, layer.mlp_post_norm)
        kept += [norm.normed for norm in norms if norm is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


@contextmanager
def _recording(architecture: Architecture, store: Store) -> Iterator[None]:
    handles: list[RemovableHandle] = []
    try:
        for block in architecture.blocks:
            handles += _record_block(block, store)
        final = architecture.final_norm.module
        handles.append(final.register_forward_pre_hook(_keep_input(store, (-1, "final_norm"))))
        handles.append(final.register_forward_hook(_keep_output(store, (-1, "final"))))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _record_block(block: Block, store: Store) -> list[RemovableHandle]:
    layer = block.layer
    inputs = {
        "attention_norm": block.attention_norm.module,
        "mlp_norm": block.mlp_norm.module,
        "mlp_in": block.mlp.module,
        "activation": block.mlp.down,
    }
    if block.attention_post_norm is not None:
        inputs["attention_post_norm"] = block.attention_post_norm.module
    handles = [
        module.register_forward_pre_hook(_keep_input(store, (layer, name))) for name, module in inputs.items()
    ]
    rotary = _keep_rotation(store, layer)
    handles.append(block.attention.module.register_forward_pre_hook(rotary, with_kwargs=True))
    handles.append(block.mlp.module.register_forward_hook(_keep_output(store, (layer, "mlp_out"))))
    return handles


def _keep_input(store: Store, key: tuple[int, str]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
        store[key] = args[0][0]

    return hook


def _keep_output(store: Store, key: tuple[int, str]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        store[key] = output[0]

    return hook


def _keep_rotation(store: Store, layer: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rotation = kwargs.get("position_embeddings")
        if rotation is not None:
            store[layer, "cos"], store[layer, "sin"] = rotation[0][0], rotation[1][0]

    return hook


def _freeze_norms(
    final: Norm, blocks: Sequence[Block], store: Store, dtype: torch.dtype
) -> dict[tuple[int, str], FrozenNorm]:
    """Hold all norms at their clean scales, by layer and name.

    On a GPU norms of one kind are computed together: there each one alone costs calls, not work. Elsewhere a
    copy of all their inputs costs memory.
    """
    found = {(-1, "final_norm"): (final, store[-1, "final_norm"])}
    for block in blocks:
        found[block.layer, "attention_norm"] = block.attention_norm, store[block.layer, "attention_norm"]
        found[block.layer, "mlp_norm"] = block.mlp_norm, store[block.layer, "mlp_norm"]
        if block.attention_post_norm is not None:
            key = (block.layer, "attention_post_norm")
            found[key] = block.attention_post_norm, store[key]
        if block.mlp_post_norm is not None:
            found[block.layer, "mlp_post_norm"] = block.mlp_post_norm, store[block.layer, "mlp_out"]
    if store[-1, "final_norm"].device.type == "cpu":
        return {key: freeze_norm(norm, clean, dtype) for key, (norm, clean) in found.items()}
    return dict(zip(found, _frozen_together(list(found.values()), dtype), strict=True))


def _frozen_together(pairs: Sequence[tuple[Norm, Tensor]], dtype: torch.dtype) -> Iterator[FrozenNorm]:
    """Freeze norms at clean inputs of one shape, those of one kind in as few calls as memory allows."""
    clean = pairs[0][1]
    together = max(1, _NORMED_BYTES // (clean.numel() * dtype.itemsize))
    for _, group in groupby(pairs, key=lambda pair: (pair[0].centred, pair[0].eps)):
        own = list(group)
        for first in range(0, len(own), together):
            norms, inputs = zip(*own[first : first + together], strict=True)
            wide = torch.stack(inputs).to(dtype)  # (n_norms, n_pos, d_model)
            scale = norms[0].inverse_scale(wide)
            normed = norms[0].centre(wide) * scale
            for norm, own_scale, own_normed in zip(norms, scale.unbind(), normed.unbind(), strict=True):
                yield _frozen(norm, own_scale, own_normed, dtype)


def _freeze_layer(
    block: Block,
    store: Store,
    norms: dict[tuple[int, str], FrozenNorm],
    pattern: Tensor,
    dtype: torch.dtype,
) -> FrozenLayer:
    layer = block.layer

    def value(name: str) -> Tensor:
        return store[layer, name].to(dtype)

    post_norm = norms.get((layer, "mlp_post_norm"))
    return FrozenLayer(
        block=block,
        resid_pre=value("attention_norm"),
        resid_mid=value("mlp_norm"),
        pattern=pattern,
        rotation=(value("cos"), value("sin")) if (layer, "cos") in store else None,
        attention_norm=norms[layer, "attention_norm"],
        attention_post_norm=norms.get((layer, "attention_post_norm")),
        mlp_norm=norms[layer, "mlp_norm"],
        mlp_post_norm=post_norm,
        mlp_in=value("mlp_in"),
        activation=value("activation"),
        mlp_out=value("mlp_out") if post_norm is None else post_norm.apply(value("mlp_out")),
    )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def push_through(norm: FrozenNorm | None, vectors: Tensor, positions: Tensor | slice) -> Tensor:
    """Carry summands `(n, d_model)` through a post-norm of frozen scale, if there is one, unbiased."""
    return vectors if norm is None else norm.push(vectors, positions)


def freeze_norm(norm: Norm, clean_input: Tensor, dtype: torch.dtype) -> FrozenNorm:
    """Hold a norm at the scales that it has on `clean_input (n_pos, d_model)`."""
    wide = clean_input.to(dtype)
    scale = norm.inverse_scale(wide)
    return _frozen(norm, scale, norm.centre(wide) * scale, dtype)


def _frozen(norm: Norm, scale: Tensor, normed: Tensor, dtype: torch.dtype) -> FrozenNorm:
    return FrozenNorm(
        gain=norm.gain.to(dtype),
        bias=None if norm.bias is None else norm.bias.to(dtype),
        centred=norm.centred,
        scale=scale,
        normed=normed,
    )

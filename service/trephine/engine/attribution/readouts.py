"""What is explained: linear read-outs of the residual stream, at an MLP's input or at the logits.

A gated neuron `a = phi(g) u` has two linear read-outs, g and u. The shown edge is
`A = 1/2 (phi(g)/g) u A^g + 1/2 phi(g) A^u` (the half rule of layer-wise relevance propagation, Arras et al.
2019; `relp_half` in DESIGN 5.5): it sums to a, and is an estimate. A plain neuron has `A = (phi(u)/u) A^u`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from trephine.domain.errors import InvalidRequestError, TokenOutOfRangeError
from trephine.engine.attribution.operators import FrozenLayer, FrozenOperators, capture
from trephine.engine.models.architecture import Architecture

ReadoutRule = Literal["relp_half", "gate", "read"]
_NEAR_ZERO = 1e-6
_STEP = 1e-3


class Hosted(Protocol):
    """The part of a hosted model that read-outs need."""

    @property
    def model(self) -> nn.Module:
        """The transformers model."""
        ...

    @property
    def architecture(self) -> Architecture:
        """Its description."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitReadout:
    """A token's logit less another's, or less the mean logit; always before a soft cap."""

    target: int
    against: int | None
    direction: Tensor
    """`(d_model,)`, on the final norm's output."""
    bias: float
    softcap: float | None

    def measure(self, logits: Tensor) -> Tensor:
        """Read the quantity off a model's logits `(..., d_vocab)`, undoing a soft cap: `(...,)`."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.softcap is not None:
            wide = self.softcap * torch.atanh(wide / self.softcap)
        other = wide.mean(-1) if self.against is None else wide[..., self.against]
        return wide[..., self.target] - other


def logit_readout(hosted: Hosted, target_id: int, against_id: int | None = None) -> LogitReadout:
    """Build the read-out of a next-token choice.

    Raises:
        TokenOutOfRangeError: If an id is outside the vocabulary.
        InvalidRequestError: If both ids are the same.
    """
    architecture = hosted.architecture
    for token in (target_id,) if against_id is None else (target_id, against_id):
        if not 0 <= token < architecture.d_vocab:
            raise TokenOutOfRangeError(
                f"token {token} is outside the vocabulary of {architecture.d_vocab}", token=token
            )
    if target_id == against_id:
        raise InvalidRequestError(
            "target and against are the same token; name another one", field="target.against"
        )
    direction = _contrast(architecture.W_U, target_id, against_id, architecture.mean_unembedding)
    b_U = architecture.b_U
    bias = 0.0 if b_U is None else float(_contrast(b_U, target_id, against_id, b_U.double().mean()))
    return LogitReadout(
        target=target_id,
        against=against_id,
        direction=direction,
        bias=bias,
        softcap=architecture.logit_softcap,
    )


def baseline(hosted: Hosted, ids: Sequence[int], readout: LogitReadout) -> float:
    """Measure the read-out at the last position of a prompt, in one clean pass, in logits."""
    return float(readout.measure(capture(hosted.model, hosted.architecture, ids).logits))


def _contrast(rows: Tensor, target: int, against: int | None, mean: Tensor) -> Tensor:
    dtype = torch.promote_types(rows.dtype, torch.float32)
    other = mean.to(dtype) if against is None else rows[against].to(dtype)
    return rows[target].to(dtype) - other


class StreamRead(Enum):
    """What of its block a target reads."""

    NORMED = 0
    """The output of the MLP's norm, or of the final norm."""
    MIDDLE = 1
    """The stream that the MLP's norm reads."""
    BEFORE = 2
    """The stream before the block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Linear read-outs to be explained together, from the top layer down."""

    layer: Tensor
    """int64 `(n_targets,)`, on the CPU, descending; `n_layers` for logits."""
    position: Tensor
    """int64 `(n_targets,)`, on the CPU."""
    direction: Tensor
    """`(n_targets, d_model)`, on what is read: the normed input of the MLP or of the unembedding."""
    constant: Tensor
    """`(n_targets,)`, the read-out's own bias as far as it counts to `total`."""
    total: Tensor
    """`(n_targets,)`, what everything that enters must sum to."""
    reads: tuple[StreamRead, ...] | None = None
    """What each reads; None: all the norm's output."""

    def __post_init__(self) -> None:
        if (self.layer[1:] > self.layer[:-1]).any():
            raise ValueError("targets must be sorted from the top layer down")


def logit_target(operators: FrozenOperators, readout: LogitReadout) -> Targets:
    """Explain a logit read-out at the last position."""
    last, dtype = operators.n_pos - 1, operators.dtype
    direction = readout.direction.to(dtype)[None]
    constant = torch.full((1,), readout.bias, dtype=dtype, device=operators.device)
    return Targets(
        layer=torch.tensor([len(operators.layers)]),
        position=torch.tensor([last]),
        direction=direction,
        constant=constant,
        total=direction @ operators.final[last] + constant,
    )


def neuron_targets(
    operators: FrozenOperators, layer: Tensor, position: Tensor, index: Tensor, rule: ReadoutRule
) -> Targets:
    """Explain neurons by one rule.

    Args:
        operators: The frozen network.
        layer: int64 `(n_targets,)`, descending.
        position: int64 `(n_targets,)`.
        index: int64 `(n_targets,)`, neurons.
        rule: `gate` and `read` explain g and u without their own bias (laws 2 to 4); `relp_half` explains
            the activation, biases included.

    Returns:
        The targets, in the order given.
    """
    parts = [
        _layer_targets(operators.layers[value], position[layer == value], index[layer == value], rule)
        for value in sorted(set(layer.tolist()), reverse=True)
    ]
    direction, constant, total = (torch.cat(column) for column in zip(*parts, strict=True))
    return Targets(layer=layer, position=position, direction=direction, constant=constant, total=total)


def _layer_targets(
    layer: FrozenLayer, position: Tensor, index: Tensor, rule: ReadoutRule
) -> tuple[Tensor, Tensor, Tensor]:
    mlp, dtype = layer.block.mlp, layer.read.dtype
    position, index = position.to(layer.read.device), index.to(layer.read.device)
    read, read_bias = mlp.W_in[index].to(dtype), _bias(mlp.b_in, index, dtype)
    if rule == "read":
        return read, torch.zeros_like(read_bias), layer.read[position, index] - read_bias
    if rule == "gate":
        if layer.gate is None or mlp.W_gate is None:
            raise ValueError(f"layer {layer.block.layer} has no gate")
        gate_bias = _bias(mlp.b_gate, index, dtype)
        value = layer.gate[position, index] - gate_bias
        return mlp.W_gate[index].to(dtype), torch.zeros_like(gate_bias), value
    by_gate, by_read = half_rule(layer, position, index)
    direction, constant = by_read[:, None] * read, by_read * read_bias
    if mlp.W_gate is not None and by_gate is not None:
        direction = direction + by_gate[:, None] * mlp.W_gate[index].to(dtype)
        constant = constant + by_gate * _bias(mlp.b_gate, index, dtype)
    return direction, constant, layer.activation[position, index]


def _bias(bias: Tensor | None, index: Tensor, dtype: torch.dtype) -> Tensor:
    return (
        torch.zeros(index.shape, dtype=dtype, device=index.device) if bias is None else bias[index].to(dtype)
    )


def half_rule(
    layer: FrozenLayer, position: Tensor | slice = slice(None), index: Tensor | slice = slice(None)
) -> tuple[Tensor | None, Tensor]:
    """Return the coefficients of g (None without a gate) and u in `relp_half`.

    `a = by_gate * g + by_read * u`, for the neurons `[position, index]` of the layer.
    """
    phi, read = layer.block.mlp.activation, layer.read[position, index]
    if layer.gate is None:
        return None, secant(phi, read)
    gate = layer.gate[position, index]
    return 0.5 * secant(phi, gate) * read, 0.5 * phi(gate)


def mlp_half_adjoint(layer: FrozenLayer, by_neuron: Tensor) -> Tensor:
    """Carry `(n_pos, d_mlp)` to what the MLP reads, `(n_pos, d_model)`, by the half rule."""
    mlp, dtype = layer.block.mlp, by_neuron.dtype
    by_gate, by_read = half_rule(layer)
    read = (by_neuron * by_read) @ mlp.W_in.to(dtype)
    if by_gate is not None and mlp.W_gate is not None:
        read = read + (by_neuron * by_gate) @ mlp.W_gate.to(dtype)
    return read


def secant(phi: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return phi(x) / x, continued by its limit phi'(0) at 0."""
    near = x.abs() < _NEAR_ZERO
    step = torch.full((), _STEP, dtype=x.dtype, device=x.device)
    limit = (phi(step) - phi(-step)) / (2 * step)
    return torch.where(near, limit, phi(x) / torch.where(near, torch.ones_like(x), x))

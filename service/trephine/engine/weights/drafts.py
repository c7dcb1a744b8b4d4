"""Changes of tensors while they are collected; several operations may touch one tensor."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from trephine.engine.models.shards import TensorEntry
from trephine.engine.weights.mlp import StoredModule
from trephine.engine.weights.tensors import Fresh, Growth, TensorChange


@dataclass(slots=True, kw_only=True)
class ModuleDraft:
    """What happens to one linear module, in its `(d_out, d_in)` orientation."""

    stored: StoredModule
    layer: int
    factors: dict[int, float] = field(default_factory=dict)
    """Input index -> factor."""
    gain: float = 1.0
    lefts: list[Tensor] = field(default_factory=list)
    """float64 `(d_out, k)` each."""
    rights: list[Tensor] = field(default_factory=list)
    bias: Tensor | None = None
    """float64 `(d_out,)`, added to the bias."""
    new_inputs: tuple[int, Tensor | None] | None = None
    """How many columns are appended, and the values `(k, d_out)` of the first."""
    new_outputs: tuple[int, Tensor | None, Tensor | None] | None = None
    """How many rows are appended, the values `(k, d_in)` of the first, and their biases `(k,)`."""
    needs_bias: bool = False
    """True if the exported module has a bias, the parent's or a fresh one."""

    def current(self) -> Tensor:
        """Return the changed matrix so far, float64 `(d_out, d_in)`, appended slices left out."""
        matrix = self.stored.matrix.to(torch.float64).cpu().clone()
        for index, factor in self.factors.items():
            matrix[:, index] *= factor
        matrix = self.gain * matrix
        for left, right in zip(self.lefts, self.rights, strict=True):
            matrix = matrix + left @ right
        return matrix

    def add(self, left: Tensor, right: Tensor) -> None:
        """Add a low-rank matrix."""
        self.lefts.append(left)
        self.rights.append(right)

    def scale(self, gain: float) -> None:
        """Scale all of it, what was added so far included."""
        self.gain *= gain
        self.lefts = [gain * left for left in self.lefts]

    def shift(self, amount: Tensor) -> None:
        """Add to the bias."""
        self.bias = amount if self.bias is None else self.bias + amount

    def changes(self) -> list[TensorChange]:
        """Return what becomes of weight and bias; nothing where nothing changes."""
        return [change for change in (self._weight(), self._bias()) if change is not None]

    def _weight(self) -> TensorChange | None:
        entry, axis = self.stored.weight, self.stored.input_axis
        growth: Growth | None = None
        if self.new_inputs is not None:
            growth = Growth(axis=axis, count=self.new_inputs[0], values=self.new_inputs[1])
        if self.new_outputs is not None:
            growth = Growth(axis=1 - axis, count=self.new_outputs[0], values=self.new_outputs[1])
        low_rank = None
        if self.lefts:
            left, right = torch.cat(self.lefts, 1), torch.cat(self.rights)
            low_rank = (
                (right.T.contiguous(), left.T.contiguous()) if self.stored.transposed else (left, right)
            )
        if growth is None and low_rank is None and not self.factors and self.gain == 1.0:
            return None
        return TensorChange(
            name=entry.name,
            file=entry.file,
            dtype=entry.dtype,
            layer=self.layer,
            entry=entry,
            axis=axis,
            factors=dict(sorted(self.factors.items())),
            gain=self.gain,
            low_rank=low_rank,
            growth=growth,
        )

    def _bias(self) -> TensorChange | None:
        entry, weight = self.stored.bias, self.stored.weight
        count, values = 0, None
        if self.new_outputs is not None:
            count, _, values = self.new_outputs
        if entry is not None:
            growth = Growth(axis=0, count=count, values=values) if count else None
            if growth is None and self.bias is None:
                return None
            return self._bias_change(entry, growth=growth, added=self.bias)
        if not self.needs_bias:
            return None
        d_out = self.stored.matrix.shape[0]
        fresh = Fresh(size=d_out + count, start=d_out if count else 0, values=values if count else self.bias)
        return TensorChange(
            name=self.stored.bias_name,
            file=weight.file,
            dtype=weight.dtype,
            layer=self.layer,
            entry=None,
            fresh=fresh,
        )

    def _bias_change(
        self, entry: TensorEntry, *, growth: Growth | None, added: Tensor | None
    ) -> TensorChange:
        return TensorChange(
            name=entry.name,
            file=entry.file,
            dtype=entry.dtype,
            layer=self.layer,
            entry=entry,
            growth=growth,
            added=added,
        )

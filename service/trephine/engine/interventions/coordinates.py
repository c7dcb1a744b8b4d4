"""Which numbers of an activation an intervention works on: some entries, one component, or all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Coordinates(Protocol):
    """Reads k coordinates of an activation and writes them back, touching nothing else."""

    def read(self, old: Tensor) -> Tensor:
        """Return float64 coordinates `(n, k)` of activations `(n, width)`."""
        ...

    def write(self, x: Tensor, columns: Tensor, old: Tensor, values: Tensor, new: Tensor) -> None:
        """Put new coordinates `(n, k)` into rows `columns` of `x`, which held `old` with `values`."""
        ...

    def sizes(self, difference: Tensor) -> Tensor:
        """Return the L2 size of a change of coordinates, one column per thing that is counted."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """Single entries: neurons."""

    indices: tuple[int, ...]

    def read(self, old: Tensor) -> Tensor:
        """Gather the entries."""
        return old[:, list(self.indices)].to(torch.float64)

    def write(self, x: Tensor, columns: Tensor, old: Tensor, values: Tensor, new: Tensor) -> None:
        """Scatter the entries."""
        indices = torch.tensor(self.indices, device=x.device)
        x[columns[:, None], indices] = new.to(x.dtype)

    def sizes(self, difference: Tensor) -> Tensor:
        """Count every entry on its own, `(n, k)`."""
        return difference.abs()


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """The component along a unit vector."""

    unit: Tensor
    """float64 `(width,)`, length 1."""

    def read(self, old: Tensor) -> Tensor:
        """Project, `(n, 1)`."""
        return (old.to(torch.float64) @ self.unit)[:, None]

    def write(self, x: Tensor, columns: Tensor, old: Tensor, values: Tensor, new: Tensor) -> None:
        """Move along the unit vector only."""
        x[columns] = (old.to(torch.float64) + (new - values) * self.unit).to(x.dtype)

    def sizes(self, difference: Tensor) -> Tensor:
        """Count the move, `(n, 1)`."""
        return difference.abs()


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """The whole vector."""

    def read(self, old: Tensor) -> Tensor:
        """Return it."""
        return old.to(torch.float64)

    def write(self, x: Tensor, columns: Tensor, old: Tensor, values: Tensor, new: Tensor) -> None:
        """Replace it."""
        x[columns] = new.expand_as(values).to(x.dtype)

    def sizes(self, difference: Tensor) -> Tensor:
        """Count the vector's change, `(n, 1)`."""
        return difference.norm(dim=-1, keepdim=True)

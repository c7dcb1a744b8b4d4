"""Dense numbers that cross process borders as raw bytes, never as text and never pickled."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from trephine.domain.errors import ShapeMismatchError

ArrayType = Literal["float32", "float64", "int32", "int64", "uint8"]

ITEM_BYTES: dict[str, int] = {"float32": 4, "float64": 8, "int32": 4, "int64": 8, "uint8": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """A dense array in C order, little endian. Travels beside the JSON header of a frame."""

    dtype: ArrayType
    shape: tuple[int, ...]
    data: bytes

    def __post_init__(self) -> None:
        if len(self.data) != prod(self.shape) * ITEM_BYTES[self.dtype]:
            raise ShapeMismatchError(
                f"{len(self.data)} bytes do not fill {self.dtype} of shape {self.shape}", bytes=len(self.data)
            )

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.client.decoding import WireValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Token(WireValue):
    """One token. Byte-level tokens may be no valid text on their own: `display` always is."""

    id: int
    raw: bytes
    display: str


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class FeatureRef(WireValue):
    """The address of one feature: replacement set (empty: `neurons`), layer, index."""

    layer: int
    index: int
    replacement: str = ""

    def __str__(self) -> str:
        """`12:345`, or `my-set:12:345` for a set's, as the command line takes it."""
        own = self.replacement in ("", "neurons")
        return f"{self.layer}:{self.index}" if own else f"{self.replacement}:{self.layer}:{self.index}"


class SiteKind(StrEnum):
    """What is written or read at a site."""

    UNSPECIFIED = "unspecified"
    EMBED = "embed"
    RESID_PRE = "resid_pre"
    RESID_MID = "resid_mid"
    RESID_POST = "resid_post"
    ATTN_Z = "attn_z"
    ATTN_OUT = "attn_out"
    MLP_IN = "mlp_in"
    NEURONS = "neurons"
    MLP_OUT = "mlp_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site(WireValue):
    """The frozen address of an activation."""

    kind: SiteKind
    layer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Version(WireValue):
    """Which weights answered."""

    model: str
    """Resource name, `models/smollm2`."""
    weight_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(WireValue):
    """Where a piece of long work is."""

    stage: str
    done: int
    total: int
    """Units of the stage; 0 when it is not known."""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure(WireValue):
    """A number with its interval. The bounds are None where none was computed."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""

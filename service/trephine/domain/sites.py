"""Addresses: where in a model an activation lives, and which feature of which replacement layer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

NEURONS = "neurons"
"""The name of the replacement set that every supported model has: its own MLP neurons."""


class SiteKind(StrEnum):
    """What is written or read at a site."""

    EMBED = "embed"
    """What the first block reads (token embedding, with scale and learned positions)."""
    RESID_PRE = "resid_pre"
    RESID_MID = "resid_mid"
    RESID_POST = "resid_post"
    ATTN_Z = "attn_z"
    """What attention's output projection reads: the heads' mixed values side by side."""
    ATTN_OUT = "attn_out"
    """What attention adds to the residual stream (after a post-norm where there is one)."""
    MLP_IN = "mlp_in"
    """What the MLP reads (after the norm's gain)."""
    NEURONS = "neurons"
    """The MLP's hidden activations: what its down projection reads."""
    MLP_OUT = "mlp_out"
    """What the MLP adds to the residual stream (after a post-norm where there is one)."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Site:
    """The frozen address of an activation."""

    kind: SiteKind
    layer: int


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class FeatureRef:
    """The address of one feature: replacement set, layer, index."""

    replacement: str = NEURONS
    layer: int
    index: int

    def __str__(self) -> str:
        """`12:345`, or `my-set:12:345` for a set's: what the command line and override files take."""
        own = self.replacement == NEURONS
        return f"{self.layer}:{self.index}" if own else f"{self.replacement}:{self.layer}:{self.index}"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class LayerRef:
    """The address of one layer of a replacement set: two sets may have dictionaries in the same block."""

    layer: int
    replacement: str = NEURONS

"""How the input of a set is read: the MLP's input as it is, or what the norm gave before its gain.

Releases name hooks that mean either (`hook_mlp_in` differs between versions of TransformerLens). Where the
files settle it, their word holds; where they do not, admission tries both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from trephine.domain.replacements import ReplacementLayerInfo
from trephine.domain.sites import SiteKind
from trephine.engine.models.architecture import Architecture, Norm
from trephine.engine.replacements.folding import with_input_gain
from trephine.engine.replacements.layer import LayerReader, ReadSet, ReplacementLayer

Convention = Literal["stored", "post_gain", "pre_gain"]

_ALIKE = 1e-3
"""Gains this close to 1 (and biases to 0) everywhere make both conventions the same within rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One convention for a whole set: a set's layers were trained alike."""

    convention: Convention
    norms: Mapping[int, Norm]
    """Norms whose gain is taken out again, by layer of the set; layers that are absent are read as stored."""
    harmless: bool = False
    """True if all these gains are 1, so that nothing depends on the choice."""


def readings(architecture: Architecture, found: ReadSet) -> tuple[Reading, ...]:
    """List the ways to read a set's inputs: one, or two where its files leave it open."""
    norms = {
        reader.info.layer: architecture.blocks[reader.info.site_in.layer].mlp_norm
        for reader in found.layers
        if reader.info.site_in.kind is SiteKind.MLP_IN
    }
    settled = {reader.info.layer for reader in found.layers if reader.pre_gain}
    if not found.ambiguous_input:
        chosen = {layer: norms[layer] for layer in settled if layer in norms}
        return (Reading(convention="pre_gain" if chosen else "stored", norms=chosen),)
    possible = {layer: norm for layer, norm in norms.items() if not bool((norm.gain == 0).any())}
    harmless = all(map(_is_one, possible.values()))
    return (
        Reading(convention="post_gain", norms={}, harmless=harmless),
        Reading(convention="pre_gain", norms=possible, harmless=harmless),
    )


def _is_one(norm: Norm) -> bool:
    off = (norm.gain - 1).abs().max()
    return bool(off < _ALIKE) and (norm.bias is None or bool(norm.bias.abs().max() < _ALIKE))


def read_as(layer: ReplacementLayer, reading: Reading) -> ReplacementLayer:
    """Return the layer as a convention reads it; weights are shared, not copied."""
    norm = reading.norms.get(layer.info.layer)
    return layer if norm is None else with_input_gain(layer, norm.gain, norm.bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConventionReader:
    """A `LayerReader` whose layers follow a convention."""

    reader: LayerReader
    reading: Reading

    @property
    def info(self) -> ReplacementLayerInfo:
        """What it is."""
        return self.reader.info

    @property
    def pre_gain(self) -> bool:
        """The gain is folded in already."""
        return False

    def read(self, device: torch.device | str = "cpu") -> ReplacementLayer:
        """Read the weights and fold the gain in.

        Raises:
            BrokenReplacementError: If the file cannot be read.
        """
        return read_as(self.reader.read(device), self.reading)


def following(readers: Sequence[LayerReader], reading: Reading) -> tuple[LayerReader, ...]:
    """Return readers that follow a convention."""
    return tuple(ConventionReader(reader=reader, reading=reading) for reader in readers)

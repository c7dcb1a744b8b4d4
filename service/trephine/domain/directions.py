"""Which features of a circuit read and write alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trephine.domain.arrays import Array
from trephine.domain.commands import Command, Progress
from trephine.domain.sites import FeatureRef


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarPairs:
    """Pairs `first[k] < second[k]` of the features that were asked about."""

    first: Array
    """int32 `(n_pairs,)`."""
    second: Array
    """int32 `(n_pairs,)`."""
    similarity: Array
    """float32 `(n_pairs,)`, mean of the cosines of encoders and of decoders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareFeatures(Command[SimilarPairs, Progress]):
    """Compare features by their encoder and decoder directions; the same feature twice has similarity 1."""

    interactive: ClassVar[bool] = False

    features: tuple[FeatureRef, ...]
    positive: tuple[bool, ...]
    """Whether each is active above zero: where a neuron is negative, what it writes is turned round."""
    min_similarity: float
    """Less similar pairs are left out."""
    max_layers_apart: int

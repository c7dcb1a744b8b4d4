"""Reading feature activations over a text."""

from __future__ import annotations

from dataclasses import dataclass

from trephine.domain.arrays import Array
from trephine.domain.commands import Command, Progress
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.domain.tokens import Token


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Activations of chosen features over a text."""

    tokens: tuple[Token, ...]
    values: Array
    """float32 `(n_features, n_pos)`, activation units."""
    caveats: tuple[str, ...] = ()
    """What a reader must know of the text: a first token that a set was trained with and that it lacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadActivations(Command[Activations, Progress]):
    """Read chosen features at every position of a text."""

    text: str
    features: tuple[FeatureRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureActivity:
    """One feature at one position."""

    feature: FeatureRef
    position: int
    activation: float
    contribution: float
    """|activation| x decoder norm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StrongestFeatures:
    """The strongest features of a text, largest contribution first."""

    tokens: tuple[Token, ...]
    features: tuple[FeatureActivity, ...]
    caveats: tuple[str, ...] = ()
    """What a reader must know of the text: a first token that a set was trained with and that it lacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankActivity(Command[StrongestFeatures, Progress]):
    """List the features with the largest contributions at positions >= 1."""

    text: str
    replacement: str = NEURONS
    count: int = 20

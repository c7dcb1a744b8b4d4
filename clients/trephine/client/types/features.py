from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trephine.client.decoding import WireValue
from trephine.client.highlighting import activations_html, activations_page
from trephine.client.types.common import FeatureRef, Token, Version


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureActivations(WireValue):
    """One feature over a text."""

    feature: FeatureRef
    values: tuple[float, ...]
    """One activation per token."""
    label: str
    """What somebody calls it; empty where nobody does."""
    degraded: bool
    """True if its set failed admission and was accepted all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations(WireValue):
    """Activations of chosen features over a text."""

    tokens: tuple[Token, ...]
    features: tuple[FeatureActivations, ...]
    """In the order asked for."""
    version: Version
    caveats: tuple[str, ...]
    """What a reader must know of the text."""

    def html(self) -> str:
        """One self-contained page: the text per feature, its tokens coloured by activation."""
        return activations_page(self)

    def _repr_html_(self) -> str:
        return activations_html(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureActivity(WireValue):
    """A feature at a position."""

    feature: FeatureRef
    position: int
    activation: float
    contribution: float
    """|activation| x decoder norm."""
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TopFeatures(WireValue):
    """The strongest features of a text, over the whole text or at every token."""

    tokens: tuple[Token, ...]
    features: tuple[FeatureActivity, ...]
    version: Version
    degraded: bool
    """True if the set failed admission and was accepted all the same."""
    caveats: tuple[str, ...]
    """What a reader must know of the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenWeight(WireValue):
    """A token with a number: logits per unit of activation, or a share."""

    token: Token
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSimilarity(WireValue):
    """A feature with a decoder nearby."""

    feature: FeatureRef
    cosine: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CoFiring(WireValue):
    """A feature of the same layer that fires where another one does."""

    feature: FeatureRef
    count: int
    """Of `of` positions at which the other one fires, those at which this one does too."""
    of: int
    jaccard: float
    """Estimate for the whole corpus."""
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureContext(WireValue):
    """A place where a feature fires strongly."""

    tokens: tuple[Token, ...]
    activations: tuple[float, ...]
    """One per token, rounded to 1/127 of the peak."""
    peak: int
    """Place of the peak among the tokens."""
    document: int
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureStatistics(WireValue):
    """What an index knows of a feature."""

    density: float
    """Share of positions at which it fires; position 0 is left out."""
    count: int
    mean: float
    largest: float
    histogram_edges: tuple[float, ...]
    """One more than counts; magnitudes, log-spaced."""
    histogram_counts: tuple[int, ...]
    contexts: tuple[FeatureContext, ...]
    """Strongest first."""
    cofiring: tuple[CoFiring, ...]
    tokens: tuple[TokenWeight, ...]
    """Tokens on which it fires, with their share of its activation mass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureLabel(WireValue):
    """What somebody calls a feature."""

    feature: FeatureRef
    text: str
    author: str
    create_time: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureIndex(WireValue):
    """An index of a set over a corpus."""

    name: str
    """Resource name, `featureIndexes/...`; empty for a prediction."""
    replacement: str
    content_hash: str
    version: Version
    corpus: str
    corpus_sha256: str
    tokens: int
    """Positions that were counted; position 0 of every context is left out."""
    contexts: int
    documents: int
    layers: tuple[int, ...]
    features: int
    fired: int
    """Features that fired at all."""
    degraded: bool
    begins_with: str
    rule: str
    """When a feature counts as firing."""
    create_time: str
    size_bytes: int
    seconds: float | None
    """Predicted; None for an index that exists."""
    memory_bytes: int | None
    """Predicted; None for an index that exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureDescription(WireValue):
    """Everything that is known of one feature."""

    feature: FeatureRef
    promotes: tuple[TokenWeight, ...]
    suppresses: tuple[TokenWeight, ...]
    neighbours: tuple[FeatureSimilarity, ...]
    decoder_norm: float
    threshold: float | None
    statistics: FeatureStatistics | None
    """None where no index covers it."""
    label: FeatureLabel | None
    index: FeatureIndex | None
    caveats: tuple[str, ...]
    version: Version
    excited_by: tuple[TokenWeight, ...] = ()
    """De-embedding: tokens whose bare embeddings excite its encoder most."""
    inhibited_by: tuple[TokenWeight, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFeature(WireValue):
    """A hit of a search."""

    feature: FeatureRef
    score: float
    """By token: share of its activation mass. By text: contribution. By label: share that matched."""
    why: str
    label: str
    degraded: bool
    """True if its set failed admission and was accepted all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFeatures(WireValue):
    """The hits of a search, best first; a sequence of them."""

    features: tuple[FoundFeature, ...]
    caveats: tuple[str, ...]
    """What a reader must know of the text searched by."""

    def __iter__(self) -> Iterator[FoundFeature]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, place: int) -> FoundFeature:
        return self.features[place]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureContrast(WireValue):
    """How one feature differs between two sets of texts."""

    feature: FeatureRef
    mean_difference: float
    """Of the maxima over positions >= 1, first less second."""
    auroc: float
    p_value: float
    q_value: float
    mean_first: float
    mean_second: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast(WireValue):
    """Features that tell two sets of texts apart, clearest first."""

    features: tuple[FeatureContrast, ...]
    compared: int
    permutations: int
    seed: int
    version: Version
    degraded: bool
    """True if the set failed admission and was accepted all the same."""
    caveats: tuple[str, ...]
    """What a reader must know of the texts: a first token the set was trained with and some lack."""

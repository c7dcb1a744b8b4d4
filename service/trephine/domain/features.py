"""Looking at features: what they do on texts, what an index knows of them, how people label them."""

from __future__ import annotations

from dataclasses import dataclass

from trephine.domain.commands import Command, Progress
from trephine.domain.errors import InvalidRequestError
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.domain.tokens import Token

# --- what an engine reads ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderView:
    """What a feature writes, read from weights alone."""

    feature: FeatureRef
    promotes: tuple[tuple[Token, float], ...]
    """Tokens whose logits its decoder raises most, with the logit per unit of activation (logit lens)."""
    suppresses: tuple[tuple[Token, float], ...]
    neighbours: tuple[tuple[FeatureRef, float], ...]
    """Features of the same layer with the nearest decoders, with the cosine; itself left out."""
    decoder_norm: float
    threshold: float | None
    """Of its support rule, where it has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewDecoder(Command[DecoderView, Progress]):
    """Read a feature's weights."""

    feature: FeatureRef
    tokens: int = 10
    neighbours: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureIndexInfo:
    """An index of one replacement set over one corpus."""

    replacement: str
    content_hash: str
    """Of the set."""
    model: str
    weight_hash: str
    corpus: str
    """Name and hash of the corpus."""
    tokens: int
    contexts: int
    layers: tuple[int, ...]
    features: int
    fired: int
    """Features that fired at least once."""
    degraded: bool
    begins_with: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFeatures(Command[FeatureIndexInfo, Progress]):
    """Run a corpus and keep, per feature, its strongest contexts, its histogram and what fires with it.

    The index is one SQLite file at `path`. It is written context by context inside transactions: a second
    run with the same path goes on where the first one was killed.
    """

    interactive = False

    replacement: str
    corpus: str
    """Path of a UTF-8 text file, one document per blank-line-separated paragraph; never leaves the server."""
    corpus_name: str
    path: str
    layers: tuple[int, ...] = ()
    """Empty: all that the set covers."""
    context_tokens: int = 128
    max_tokens: int = 1 << 20
    contexts_per_feature: int = 16
    window: int = 16
    """Tokens kept on either side of a feature's peak."""

    def __post_init__(self) -> None:
        for name in ("context_tokens", "max_tokens", "contexts_per_feature", "window"):
            if getattr(self, name) < 1:
                raise InvalidRequestError(f"{name} must be at least 1", field=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFeatures:
    """The strongest features at one position."""

    position: int
    features: tuple[tuple[FeatureRef, float, float], ...]
    """(feature, activation, |activation| x decoder norm), largest contribution first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesByToken:
    """The strongest features of every token of a text."""

    tokens: tuple[Token, ...]
    positions: tuple[TokenFeatures, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankByToken(Command[FeaturesByToken, Progress]):
    """List the strongest features at every position."""

    text: str
    replacement: str = NEURONS
    layers: tuple[int, ...] = ()
    count: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureContrast:
    """How one feature differs between two sets of texts."""

    feature: FeatureRef
    mean_difference: float
    """Mean over texts of the maximum activation at positions >= 1, first set minus second."""
    auroc: float
    p_value: float
    """Two-sided permutation p of the mean difference, (1 + #) / (permutations + 1)."""
    q_value: float
    """Benjamini-Hochberg over all features compared."""
    mean_first: float
    mean_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Features that tell two sets of texts apart, clearest first."""

    features: tuple[FeatureContrast, ...]
    compared: int
    permutations: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastFeatures(Command[Contrast, Progress]):
    """Compare two sets of texts feature by feature."""

    interactive = False

    first: tuple[str, ...]
    second: tuple[str, ...]
    replacement: str = NEURONS
    layers: tuple[int, ...] = ()
    count: int = 20
    permutations: int = 999
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.first) < 2 or len(self.second) < 2:
            raise InvalidRequestError("each side of a contrast needs at least 2 texts", field="first")
        if self.permutations < 99:
            raise InvalidRequestError("permutations must be at least 99", field="permutations")


# --- what an index answers -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureContext:
    """A place where a feature fires strongly."""

    tokens: tuple[Token, ...]
    activations: tuple[float, ...]
    """One per token."""
    peak: int
    """Place of the peak among the tokens."""
    document: int
    position: int
    """Of the peak inside its context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How large a feature's activations are when it fires."""

    edges: tuple[float, ...]
    """One more than counts; the last bin takes everything above."""
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoFiring:
    """A feature that fires where another does."""

    feature: FeatureRef
    jaccard: float
    count: int
    """Positions at which both fire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureLabel:
    """What somebody calls a feature."""

    feature: FeatureRef
    text: str
    author: str
    create_time: str
    """RFC 3339, UTC; of the last change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureStatistics:
    """What an index knows of one feature."""

    feature: FeatureRef
    density: float
    """Share of positions at which it fires, position 0 excluded."""
    count: int
    mean: float
    """Mean activation where it fires."""
    largest: float
    histogram: Histogram
    contexts: tuple[FeatureContext, ...]
    """Strongest first."""
    cofiring: tuple[CoFiring, ...]
    """Highest Jaccard first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureDescription:
    """Everything that is known of one feature."""

    view: DecoderView
    statistics: FeatureStatistics | None
    """None where no index covers it."""
    label: FeatureLabel | None
    index: FeatureIndexInfo | None
    caveats: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFeature:
    """A hit of a search."""

    feature: FeatureRef
    score: float
    """By token: share of its activation mass on that token. By text: contribution. By label: match rank."""
    why: str
    label: str

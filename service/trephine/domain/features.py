"""Looking at features: what they do on texts, what an index knows of them, how people label them."""

from __future__ import annotations

from dataclasses import dataclass

from trephine.domain.commands import Command, Progress
from trephine.domain.errors import InvalidRequestError
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.domain.tokens import Token

BUILT_IN = "built-in"
"""The name of the corpus that is shipped."""

_LIMITS = {
    "context_tokens": 1 << 14,
    "max_tokens": 1 << 40,
    "contexts_per_feature": 64,
    "window": 64,
    "commit_tokens": 1 << 20,
}
MAX_CONTRASTED_TEXTS = 512
"""Of both sides together."""

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
    excited_by: tuple[tuple[Token, float], ...] = ()
    """De-embedding: tokens whose bare embeddings, through the norm, excite its encoder most, in units of its
    pre-activation (of a neuron's activation)."""
    inhibited_by: tuple[tuple[Token, float], ...] = ()
    caveats: tuple[str, ...] = ()
    """What the view does not show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewDecoder(Command[DecoderView, Progress]):
    """Read a feature's weights."""

    feature: FeatureRef
    tokens: int = 10
    neighbours: int = 10

    def __post_init__(self) -> None:
        for name in ("tokens", "neighbours"):
            if not 0 <= getattr(self, name) <= 100:
                raise InvalidRequestError(f"{name} must be from 0 to 100", field=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureIndexInfo:
    """An index of one replacement set over one corpus."""

    replacement: str
    content_hash: str
    """Of the set; of the model's own neurons its weights' hash."""
    model: str
    weight_hash: str
    corpus: str
    """Name of the corpus."""
    corpus_sha256: str
    tokens: int
    """Positions that were counted; position 0 of every context is left out."""
    contexts: int
    documents: int
    layers: tuple[int, ...]
    features: int
    fired: int
    """Features that fired at least once."""
    degraded: bool
    begins_with: str
    """The token in front of every context; empty for none."""
    rule: str
    """When a feature counts as firing, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFeatures(Command[FeatureIndexInfo, Progress]):
    """Run a corpus and keep, per feature, its strongest contexts, its histogram and what fires with it.

    The index is one SQLite file at `path` (`trephine.domain.feature_index`). Everything that was counted up
    to a document is committed in one transaction: a second run with the same path goes on from there and
    ends with the same answers as one that was never interrupted.
    """

    interactive = False

    replacement: str = NEURONS
    corpus: str = ""
    """Path of a UTF-8 text file (documents are separated by blank lines) or of JSONL with a `text` each; it
    never leaves the server. Empty: the built-in text."""
    corpus_name: str = BUILT_IN
    path: str
    layers: tuple[int, ...] = ()
    """Empty: all that the set covers."""
    context_tokens: int = 128
    max_tokens: int = 1 << 20
    contexts_per_feature: int = 12
    window: int = 12
    """Tokens kept on either side of a feature's peak."""
    commit_tokens: int = 1 << 14
    """What a kill may cost: tokens between two transactions."""

    def __post_init__(self) -> None:
        for name, largest in _LIMITS.items():
            if not 1 <= getattr(self, name) <= largest:
                raise InvalidRequestError(f"{name} must be from 1 to {largest}", field=name)
        if self.context_tokens < 2:
            raise InvalidRequestError(
                "context_tokens must be at least 2: position 0 is left out", field="context_tokens"
            )
        if len(set(self.layers)) < len(self.layers):
            raise InvalidRequestError("a layer is named twice", field="layers")


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
    caveats: tuple[str, ...] = ()
    """What a reader must know of the text: a first token that a set was trained with and that it lacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankByToken(Command[FeaturesByToken, Progress]):
    """List the strongest features at every position >= 1; position 0 is an attention sink."""

    text: str
    replacement: str = NEURONS
    layers: tuple[int, ...] = ()
    """Empty: all that the set covers."""
    count: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 100:
            raise InvalidRequestError("count must be from 1 to 100", field="count")


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
    """Features whose maximum differs between any two texts; the others are left out."""
    permutations: int
    seed: int
    caveats: tuple[str, ...] = ()
    """What a reader must know of the texts: a first token the set was trained with and some lack."""


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
        for name in ("first", "second"):
            if len(getattr(self, name)) < 2:
                raise InvalidRequestError("each side of a contrast needs at least 2 texts", field=name)
        if len(self.first) + len(self.second) > MAX_CONTRASTED_TEXTS:
            raise InvalidRequestError(f"at most {MAX_CONTRASTED_TEXTS} texts are compared", field="first")
        if not 99 <= self.permutations <= 100_000:
            raise InvalidRequestError("permutations must be from 99 to 100000", field="permutations")
        if not 1 <= self.count <= 1000:
            raise InvalidRequestError("count must be from 1 to 1000", field="count")


# --- what an index answers -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureContext:
    """A place where a feature fires strongly."""

    tokens: tuple[Token, ...]
    activations: tuple[float, ...]
    """One per token, rounded to 1/127 of the peak."""
    peak: int
    """Place of the peak among the tokens."""
    document: int
    position: int
    """Of the peak inside its context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How large a feature's activations are when it fires, by magnitude; empty bins at the ends are cut."""

    edges: tuple[float, ...]
    """One more than counts, log-spaced; the outermost bins of all take what lies beyond."""
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoFiring:
    """A feature of the same layer that fires where another does.

    Counted at the first 32 positions at which the feature fires, and only the most frequent partners are
    carried along: `count` is exact or too small, never too large.
    """

    feature: FeatureRef
    count: int
    """Of `of` positions at which the feature fires, those at which this one does too."""
    of: int
    jaccard: float
    """Estimate for the whole corpus, out of the share above and both densities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenShare:
    """A token on which a feature fires."""

    token: Token
    share: float
    """Of the feature's activation mass (sum of magnitudes); exact or too small, never too large."""


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
    """The activation of the largest magnitude."""
    histogram: Histogram
    contexts: tuple[FeatureContext, ...]
    """Strongest first; a window that repeats a stronger one token by token is left out."""
    cofiring: tuple[CoFiring, ...]
    """Most frequent partner first."""
    tokens: tuple[TokenShare, ...]
    """Largest share first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureDescription:
    """Everything that is known of one feature."""

    view: DecoderView
    statistics: FeatureStatistics | None
    """None where no index covers it."""
    label: FeatureLabel | None
    labels: tuple[FeatureLabel, ...]
    """Of neighbours and partners, as far as they have any."""
    index: FeatureIndexInfo | None
    index_name: str
    """Resource name of the index; empty where none covers it."""
    caveats: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFeature:
    """A hit of a search."""

    feature: FeatureRef
    score: float
    """By token: share of its activation mass on that token. By text: contribution. By label: match rank."""
    why: str
    label: str
    """What somebody calls it; empty where nobody does."""
    degraded: bool = False
    """True if its set failed admission and was accepted all the same."""

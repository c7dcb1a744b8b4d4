"""What a graph explains: values to ask with, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.client.decoding import WireValue
from trephine.client.types.common import Site, Token


@dataclass(frozen=True, slots=True, kw_only=True)
class TopLogits:
    """The fewest tokens that reach a share of the probability, weighted by it."""

    limit: int | None = None
    """At most so many; unset 10."""
    mass: float | None = None
    """Unset 0.95."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogits:
    """Given tokens, weighted by their probability."""

    tokens: tuple[str, ...]
    """Exactly one token each, or `#id`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureValue:
    """A feature of a set: its pre-activation without the encoder's constants; of a neuron its activation."""

    layer: int
    index: int
    replacement: str = ""
    """Its set, of those that the graph spans; empty: the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectionValue:
    """What a linear probe reads off the residual stream."""

    site: Site
    """`resid_pre`, `resid_mid` or `resid_post`."""
    vector: tuple[float, ...]
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionScore:
    """A head's score of a key, before soft cap and softmax. The query is the position."""

    layer: int
    head: int
    key: int


Target = str | TopLogits | TokenLogits | FeatureValue | DirectionValue | AttentionScore
"""What can be explained; a text is one token."""


class TargetKind(StrEnum):
    """What a target node stands for."""

    UNSPECIFIED = "unspecified"
    LOGIT = "logit"
    FEATURE = "feature"
    DIRECTION = "direction"
    ATTENTION = "attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedTarget(WireValue):
    """One target node of a circuit."""

    kind: TargetKind
    label: str
    position: int
    share: float
    """Its weight among the targets; they sum to 1."""
    value: float
    """On the clean prompt: logits, or units of the read-out."""
    estimated: bool
    """True if what enters it is an estimate."""
    token: Token | None
    against: Token | None
    replacement: str
    """The set of a feature, `neurons` of a neuron; empty: it is neither, or the circuit does not say."""

"""What a graph explains: logits, a feature, a direction of the stream, an attention score."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from trephine.domain.ablation import LogitTarget
from trephine.domain.errors import InvalidRequestError
from trephine.domain.interventions import require_finite
from trephine.domain.sites import Site, SiteKind
from trephine.domain.tokens import Token

MOST_TARGETS = 64
"""Read-outs that one graph explains at most: logits times positions."""
STREAM = (SiteKind.RESID_PRE, SiteKind.RESID_MID, SiteKind.RESID_POST)
"""Where directions can be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopLogits:
    """The likeliest tokens: the fewest that reach a share of the probability, up to a limit.

    Each is a logit less the mean logit; they count by their probability (circuit-tracer's default).
    """

    kind: Literal["top_logits"] = "top_logits"
    limit: int = 10
    mass: float = 0.95

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MOST_TARGETS:
            raise InvalidRequestError(
                f"limit must be from 1 to {MOST_TARGETS}, got {self.limit}", field="limit"
            )
        if not 0 < self.mass <= 1:
            raise InvalidRequestError(f"mass must be in (0, 1], got {self.mass}", field="mass")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogits:
    """Given tokens, each its logit less the mean logit; they count by their probability."""

    kind: Literal["token_logits"] = "token_logits"
    tokens: tuple[str, ...]
    """Exactly one token each, or `#id`."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.tokens) <= MOST_TARGETS:
            raise InvalidRequestError(f"name 1 to {MOST_TARGETS} tokens", field="tokens")
        if len(set(self.tokens)) < len(self.tokens):
            raise InvalidRequestError("a token is named twice", field="tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureValue:
    """A feature of a set: its pre-activation without the encoder's constants; of a neuron its activation.

    These are its bias and the biases that are subtracted from its input (the decoder's, or a norm's).
    """

    kind: Literal["feature"] = "feature"
    layer: int
    index: int
    replacement: str = ""
    """Its set; empty: the first one that the graph spans."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectionValue:
    """What a linear probe reads off the residual stream: the stream times a vector."""

    kind: Literal["direction"] = "direction"
    site: Site
    vector: tuple[float, ...]
    """`(d_model,)`."""
    name: str = ""
    """For people."""

    def __post_init__(self) -> None:
        require_finite("vector", *self.vector)
        if not any(self.vector):
            raise InvalidRequestError("a direction must not be all zeros", field="vector")
        if self.site.kind not in STREAM:
            raise InvalidRequestError(
                f"a direction is read off the residual stream, at {', '.join(STREAM)}; got "
                f"{self.site.kind.value}",
                field="site",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionScore:
    """A head's score of a key, before soft cap and softmax; the query is the target's position."""

    kind: Literal["attention"] = "attention"
    layer: int
    head: int
    key: int
    """Position; at most the query's."""


GraphTarget = Annotated[
    LogitTarget | TopLogits | TokenLogits | FeatureValue | DirectionValue | AttentionScore,
    Field(discriminator="kind"),
]
"""What is explained."""


class TargetKind(StrEnum):
    """What a target node of a graph stands for."""

    LOGIT = "logit"
    FEATURE = "feature"
    DIRECTION = "direction"
    ATTENTION = "attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedTarget:
    """One target node of a graph, in the order of these nodes."""

    kind: TargetKind
    label: str
    position: int
    share: float
    """Its weight among the targets; they sum to 1, and the explained quantity is the weighted sum."""
    value: float
    """On the clean prompt, in logits or units of the read-out."""
    estimated: bool = False
    """True if its row is no exact read-out but an estimate: attention scores, neurons, features that are read
    off MLP outputs."""
    token: Token | None = None
    against: Token | None = None
    """The other token of a difference; None: the logit less the mean logit."""
    replacement: str = ""
    """The set of a feature, `neurons` of a neuron; empty: it is neither, or was stored before this was."""

    @property
    def slope(self) -> float:
        """What it loses per unit that is removed from its row: scores have rows of half their slope."""
        return 2.0 if self.kind is TargetKind.ATTENTION else 1.0

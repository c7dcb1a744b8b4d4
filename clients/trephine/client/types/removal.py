"""What attacks on an export bring back of the behaviour that it ablates."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.client.decoding import WireValue


class RemovalVerdict(StrEnum):
    """The word that stands in certificate and card."""

    UNSPECIFIED = "unspecified"
    REMOVED = "removed"
    SUPPRESSED = "suppressed"
    INCONCLUSIVE = "inconclusive"


def word_as_text(word: str, reason: str = "") -> str:
    """Write the word with its reason; of one that attacks left open what it counts as, for want of one."""
    counts = "counts as suppressed" if word == RemovalVerdict.INCONCLUSIVE else ""
    return f"{word} ({reason or counts})" if reason or counts else word


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate(WireValue):
    """What may be said of an ablated behaviour; as text the word, with its reason where no attack decided."""

    verdict: RemovalVerdict
    reason: str = ""
    """`not attacked`; empty: `Removal.why` says it."""

    def __str__(self) -> str:
        return word_as_text(self.verdict.value, self.reason)


class AttackKind(StrEnum):
    """Which attack."""

    UNSPECIFIED = "unspecified"
    RECOVERY = "recovery"
    BENIGN = "benign"
    FEW_SHOT = "few_shot"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareInterval(WireValue):
    """A mean with its 95 % interval over contexts."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackFigure(WireValue):
    """One attack at one strength."""

    kind: AttackKind
    strength: float
    """Recovery: norm of the perturbation over the residual's. Others: steps of training."""
    returned: ShareInterval
    """Share of the behaviour that is back: 0 as edited, 1 as in the original."""
    unrelated: ShareInterval
    """The same of unrelated behaviours of its size, over contexts and over these behaviours."""
    excess: ShareInterval
    unrelated_most: float | None = None
    """Mean share of the unrelated behaviour that returned most; None: the attack is older than this."""
    unrelated_behaviours: int = 0
    """How many there were; 0: the attack is older than this."""
    n_tokens: int = 0
    """Tokens that it was measured on; 0: the attack is older than this."""
    n_contexts: int = 0
    """Contexts that they stand in, over which its intervals are; 0: the attack is older than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal(WireValue):
    """The outcome of all attacks."""

    verdict: RemovalVerdict
    why: str
    figures: tuple[AttackFigure, ...]
    n_tokens: int
    n_contexts: int
    effect: float
    """Mean KL from the original to the edited model on these tokens, nats."""
    unrelated_behaviours: int
    seed: int

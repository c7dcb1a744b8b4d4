"""Publishing a decision's head on an exported model as a stock `*ForSequenceClassification` folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from trephine.domain.commands import Command, Progress
from trephine.domain.errors import HeadNotStockError, InvalidRequestError
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_heads import TEXT, DecisionHead, HeadWeights, Pooling, RewardHead, TokenHead

MAX_CHECKED = 64
"""Texts on which the reloaded folder is compared."""
FEWEST_AGREEING = 0.95
"""Share of the decisions that must be those of the measured model, or nothing is published."""


def checked_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """Return those that are compared, evenly over all: a file may be sorted by label."""
    count = min(MAX_CHECKED, len(texts))
    return tuple(texts[place * len(texts) // count] for place in range(count))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierExport:
    """A published classifier."""

    name: str
    removal: str
    """Resource name of the report whose head it has."""
    export: str
    """Resource name of the export whose weights it has; empty: the model's own."""
    architecture: str
    labels: tuple[str, ...]
    """In the order of the logits; of a reward, that below its threshold and that above."""
    files: dict[str, str]
    """Path to sha256."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Path to bytes; classifiers that older servers published have none, and cannot be fetched."""
    checked_texts: int
    largest_difference: float
    """Of a logit, on those texts, reloaded by stock transformers in a clean process."""
    agreeing: int
    """Decisions that agree."""
    threshold: float | None = None
    """Of a reward, the folder's one output: above it is the second label. None: an output per label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportClassifier(Command[ClassifierExport, Progress]):
    """Put a head on a folder's weights, reload it with stock transformers, and compare."""

    interactive: ClassVar[bool] = False

    name: str
    removal: str
    export: str
    parent: str
    """Folder whose weights are taken; empty: the hosted model's own."""
    folder: str
    """Written; must not exist."""
    head: HeadWeights
    threshold: float | None = None
    """Of a reward, as `reward_threshold` gives it: the folder has one output, which is compared with it.
    None: one per label."""
    removed: tuple[FeatureRef, ...]
    """Features that the parent's weights lack; the runtime lacks them too when it is compared."""
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.texts:
            raise InvalidRequestError(
                "at least one text is needed: what was not reloaded and compared is not published",
                field="texts",
            )


def reward_threshold(decision: DecisionHead, head: HeadWeights) -> float | None:
    """Return the reward above which the second label is decided; None of a decision that is no reward.

    Such a head is a reward that is split evenly between two rows, with the threshold as its bias.
    """
    return head.bias[0] - head.bias[1] if isinstance(decision, RewardHead) else None


def require_stock(head: HeadWeights, *, reward: bool = False) -> None:
    """Refuse a head that no stock sequence classifier computes.

    Args:
        head: Two rows and their biases.
        reward: True if the biases are a threshold that stands beside the folder, not in it.

    Raises:
        HeadNotStockError: Saying what is not stock about it.
    """
    biased = any(head.bias) and not reward
    if head.layer is not None or head.pooling is not Pooling.LAST or biased:
        where = "the final norm's output" if head.layer is None else f"layer {head.layer}"
        raise HeadNotStockError(
            f"the head reads {where}, pooled by {head.pooling.value}"
            f"{', with a bias' if biased else ''}; a stock classifier reads the final norm's output "
            "at the last token without one. Train a probe with no layer and `last` pooling",
            field="decision",
        )


def require_plain_text(decision: DecisionHead) -> None:
    """Refuse a decision on templated texts: a stock classifier is given texts as they are.

    Reloading would not show it: both sides of that comparison read the same words.

    Raises:
        HeadNotStockError: Naming the template, and what can be exported.
    """
    if isinstance(decision, TokenHead) and decision.template != TEXT:
        raise HeadNotStockError(
            f"the decision was measured on texts in the template {decision.template!r}, and a stock "
            "classifier reads the text alone: it would decide otherwise. Remove again with the template "
            f"{TEXT}, with the words of the template in the texts themselves, and export that",
            field="decision.tokens.template",
        )

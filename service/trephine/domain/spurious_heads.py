"""What decides: a head on the pooled stream, trained here, given as a checkpoint, or the model's own."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from trephine.domain.errors import InvalidRequestError
from trephine.domain.interventions import require_finite

TEXT = "{text}"
"""Where a template of label tokens takes the text."""


class Pooling(StrEnum):
    """How a text's activations become one vector."""

    LAST = "last"
    """That of its last token, as stock `*ForSequenceClassification` does."""
    MEAN = "mean"
    """Their mean over positions >= 1: position 0 is an attention sink."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeHead:
    """A logistic regression that is trained on the ambiguous set, or on its pairs; deterministic."""

    kind: Literal["probe"] = "probe"
    layer: int | None = None
    """Reads `resid_post` of this layer. None: the final norm's output, the stock form, which can be exported:
    no bias and no centring."""
    pooling: Pooling = Pooling.LAST
    penalty: float = 1e-2
    """L2 on the weights of standardised inputs, beside the mean loss."""
    pairs: bool = False
    """Trained on differences within pairs (Bradley and Terry 1952): its decision is a reward less a
    threshold. What both texts of a pair share, as their prompt, tells it nothing."""

    def __post_init__(self) -> None:
        require_finite("decision.probe.penalty", self.penalty)
        if self.penalty <= 0:
            raise InvalidRequestError("a probe's penalty must be above 0", field="decision.probe.penalty")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelToken:
    """The next token that stands for a label."""

    label: str
    token: str
    """One token, or `#id`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenHead:
    """The language model itself: which label's token comes next."""

    kind: Literal["tokens"] = "tokens"
    tokens: tuple[LabelToken, ...]
    template: str = TEXT
    """Holds `{text}` once."""

    def __post_init__(self) -> None:
        if self.template.count(TEXT) != 1:
            raise InvalidRequestError(
                f"the template must hold {TEXT} exactly once", field="decision.tokens.template"
            )
        for number, one in enumerate(self.tokens):
            if one.token in (earlier.token for earlier in self.tokens[:number]):
                raise same_token(one, number)


def same_token(label: LabelToken, number: int) -> InvalidRequestError:
    """Word that a label's token, the `number`-th, is an earlier label's: all would be a tie."""
    return InvalidRequestError(
        f"the token {label.token!r} of {label.label} stands for another label as well, so that neither could "
        "ever win; give each label a token of its own",
        field=f"decision.tokens.tokens[{number}].token",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierHead:
    """The `score` weight of a stock `*ForSequenceClassification` folder on the hosted model."""

    kind: Literal["classifier"] = "classifier"
    folder: str
    """A folder of the server's model roots; its `id2label` names the labels."""

    @property
    def field(self) -> str:
        """Where a request names the folder."""
        return f"decision.{self.kind}.source"


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardHead:
    """As `ClassifierHead`, with one output: the reward. Above the threshold is the positive label."""

    kind: Literal["reward"] = "reward"
    folder: str
    threshold: float | None = None
    """None: the one that is most accurate on the ambiguous set."""
    positive_label: str = ""
    """That a high reward stands for; empty only in reports from before it was asked for."""

    def __post_init__(self) -> None:
        if self.threshold is not None:
            require_finite("decision.reward.threshold", self.threshold)

    @property
    def field(self) -> str:
        """Where a request names the folder."""
        return f"decision.{self.kind}.source"

    def ordered(self, labels: tuple[str, str]) -> tuple[str, str]:
        """Put the positive label second, where a decision above 0 goes.

        Raises:
            InvalidRequestError: If it is not told, or is neither of the two: their alphabet says nothing of a
                reward, and a decision against it would be the wrong way round without a word.
        """
        if self.positive_label not in labels:
            said = f"is {self.positive_label!r}" if self.positive_label else "is not told"
            raise InvalidRequestError(
                f"positive_label, which a high reward stands for, {said}; it must be {labels[0]} or "
                f"{labels[1]}",
                field="decision.reward.positive_label",
            )
        return labels if labels[1] == self.positive_label else (labels[1], labels[0])


DecisionHead = Annotated[ProbeHead | TokenHead | ClassifierHead | RewardHead, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadWeights:
    """A head as numbers: logits of the labels = pooled @ weight.T + bias."""

    labels: tuple[str, ...]
    weight: tuple[tuple[float, ...], ...]
    """`(n_labels, d_model)`, float32 numbers."""
    bias: tuple[float, ...]
    """`(n_labels,)`; zeros in the stock form."""
    layer: int | None
    """None: the final norm's output."""
    pooling: Pooling
    special_tokens: bool = False
    """True if it was measured on texts with the special tokens that the tokenizer adds by itself, as stock
    classifiers read them; reports from before it was told are without."""

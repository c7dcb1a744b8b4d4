"""Which decisions have a stock form."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trephine.domain.classifier_exports import (
    MAX_CHECKED,
    checked_texts,
    require_plain_text,
    require_stock,
    reward_threshold,
)
from trephine.domain.errors import HeadNotStockError, InvalidRequestError
from trephine.domain.spurious_heads import (
    HeadWeights,
    LabelToken,
    Pooling,
    ProbeHead,
    RewardHead,
    TokenHead,
)

TOKENS = (LabelToken(label="bad", token=" a"), LabelToken(label="good", token=" b"))


def test_a_templated_decision_is_not_exported():
    """A stock classifier reads the text alone, and the check of the reload would not see it."""
    with pytest.raises(HeadNotStockError, match=r"\{text\} It was.*words of the template in the texts"):
        require_plain_text(TokenHead(tokens=TOKENS, template="{text} It was"))
    require_plain_text(TokenHead(tokens=TOKENS))
    require_plain_text(ProbeHead())


def test_a_reward_says_which_label_is_high():
    """The alphabet does not: `chosen` is before `rejected`."""
    labels = ("chosen", "rejected")
    assert RewardHead(folder="f", positive_label="chosen").ordered(labels) == ("rejected", "chosen")
    assert RewardHead(folder="f", positive_label="rejected").ordered(labels) == labels
    with pytest.raises(InvalidRequestError, match="is 'good'; it must be chosen or rejected") as wrong:
        RewardHead(folder="f", positive_label="good").ordered(labels)
    assert wrong.value.context["field"] == "decision.reward.positive_label"
    with pytest.raises(InvalidRequestError, match="is not told"):
        RewardHead(folder="f").ordered(labels)


def test_only_the_bias_of_a_reward_is_a_threshold():
    """It stands beside the folder; of any other head there is no place for it."""
    head = HeadWeights(
        labels=("bad", "good"),
        weight=((-1.0, 0.5), (1.0, -0.5)),
        bias=(0.25, -0.25),
        layer=None,
        pooling=Pooling.LAST,
    )
    assert reward_threshold(RewardHead(folder="f", positive_label="good"), head) == 0.5
    assert reward_threshold(ProbeHead(), head) is None
    require_stock(head, reward=True)
    with pytest.raises(HeadNotStockError, match="with a bias"):
        require_stock(head)
    with pytest.raises(HeadNotStockError, match="layer 1, pooled by last; "):
        require_stock(replace(head, layer=1), reward=True)


def test_what_is_compared_lies_evenly_over_all():
    """A file may be sorted by label: its first texts would check one label alone."""
    texts = [f"no {number}" for number in range(500)] + [f"yes {number}" for number in range(500)]
    chosen = checked_texts(texts)
    assert len(chosen) == len(set(chosen)) == MAX_CHECKED
    assert sum(text.startswith("yes") for text in chosen) == MAX_CHECKED / 2
    assert checked_texts(["a", "b"]) == ("a", "b")
    assert checked_texts([]) == ()

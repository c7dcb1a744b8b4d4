"""Which decisions have a stock form."""

from __future__ import annotations

import pytest

from trephine.domain.classifier_exports import require_plain_text
from trephine.domain.errors import HeadNotStockError, InvalidRequestError
from trephine.domain.spurious_heads import LabelToken, ProbeHead, RewardHead, TokenHead

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

"""What cannot be done is refused before a forward pass, with what could be asked for instead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaForSequenceClassification

from tests.builders import tiny_folder, tiny_hosted, tiny_tokenizer
from tests.spurious_texts import LABELS, ambiguous, attribute_texts, balanced
from trephine.domain.errors import (
    HeadNotStockError,
    InvalidRequestError,
    LayerOutOfRangeError,
    PromptTooLongError,
    TargetNotOneTokenError,
    TrephineError,
)
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_checks import CheckedSpuriousRemoval, CheckSpuriousRemoval
from trephine.domain.spurious_heads import ClassifierHead, LabelToken, ProbeHead, RewardHead, TokenHead
from trephine.domain.spurious_removal import Override, RemoveSpuriousFeatures
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.spurious.checking import check_spurious_removal

ASKED = RemoveSpuriousFeatures(training=ambiguous(20), test=balanced(4), attribute_texts=attribute_texts(6))


def _checked(hosted: Any = None, **changed: Any) -> CheckedSpuriousRemoval:
    command = replace(ASKED, **changed)
    session = Session(hosted=hosted or tiny_hosted("llama"))
    return finish(check_spurious_removal(session, CheckSpuriousRemoval(command=command)))


def _tokens(second: str) -> TokenHead:
    return TokenHead(
        tokens=(LabelToken(label=LABELS[0], token="Q"), LabelToken(label=LABELS[1], token=second))
    )


def _word(layer: int) -> Override:
    return Override(feature=FeatureRef(layer=layer, index=0), remove=True, reason="a person says so")


def test_what_can_be_done_is_counted_and_nothing_is_run(monkeypatch):
    """Texts, tokens and features, as the head reads them; the model is never called."""
    hosted = tiny_hosted("llama")

    def called(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(hosted.model, "forward", called)
    found = _checked(hosted)
    texts = [one.text for one in (*ASKED.training, *ASKED.test, *ASKED.attribute_texts)]
    lengths = [len(hosted.encode(text, special_tokens=True)) for text in texts]
    assert found == CheckedSpuriousRemoval(
        features=hosted.info.n_layers * hosted.info.d_mlp,
        texts=len(texts),
        tokens=sum(lengths),
        longest=max(lengths),
    )
    at_first = _checked(hosted, decision=ProbeHead(layer=0))
    assert at_first.features == hosted.info.d_mlp


@pytest.mark.parametrize(
    ("changed", "error", "said", "field"),
    [
        ({"decision": ProbeHead(layer=40)}, LayerOutOfRangeError, "has layers 0 to 2", "decision.layer"),
        ({"decision": ProbeHead(layer=0), "overrides": (_word(2),)}, InvalidRequestError,
         "layers 0 to 0", "overrides[0].feature"),
        ({"decision": _tokens("WW"), "refit": False}, TargetNotOneTokenError, "one token",
         "decision.tokens.tokens[1].token"),
        ({"training": (*ASKED.training, replace(ASKED.training[0], text="Q" * 700))}, PromptTooLongError,
         "700 prompt tokens", "training[40].text"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_named(
    changed: dict[str, Any], error: type[TrephineError], said: str, field: str
):
    """Layers of the probe with those that there are, words that change nothing, labels, texts."""
    with pytest.raises(error, match=said) as refused:
        _checked(**changed)
    assert refused.value.context["field"] == field


def test_a_folder_without_such_a_head_is_refused(tmp_path):
    """No classifier, a reward in its place, and other labels."""
    base = tiny_folder("llama", tmp_path / "base")
    saved = LlamaForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=1)
    with torch.no_grad():
        saved.score.weight.copy_(torch.randn(saved.score.weight.shape))
    saved.save_pretrained(tmp_path / "reward")
    tiny_tokenizer().save_pretrained(tmp_path / "reward")
    for folder, head, said in (
        (base, ClassifierHead, "holds no score.weight"),
        (tmp_path / "reward", ClassifierHead, "one output is a reward"),
    ):
        with pytest.raises(HeadNotStockError, match=said) as refused:
            _checked(decision=head(folder=str(folder)), refit=False)
        assert refused.value.context["field"] == "decision.classifier.source"
    reward = RewardHead(folder=str(tmp_path / "reward"), positive_label=LABELS[0])
    assert _checked(decision=reward, refit=False).texts > 0

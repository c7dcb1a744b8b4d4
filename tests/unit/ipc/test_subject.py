"""What an auditor gets of a model is an answer, or an error: never what only looks like one."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.integration.test_audit_host import MODEL
from trephine.domain.errors import NonFiniteValueError
from trephine.domain.generation import Completion, Generation, RowScore, Sampling, ScoredRow, Scores
from trephine.domain.models import Capabilities
from trephine.ipc import codec
from trephine.ipc.blocking import BlockingChannel
from trephine.ipc.subject import SubjectProxy


@dataclass
class Channel:
    """Answers each command by its name."""

    answers: dict[str, Any]

    def call(self, name: str, _body: Any) -> Any:
        """Return the answer as a frame."""
        return SimpleNamespace(body=codec.to_tree(self.answers[name]))


def test_a_model_that_overflows_on_one_text_answers_none_of_them():
    """An empty completion or a NaN among the others would be counted as an answer."""
    said = ("rows[0]: the model computes NaN",)
    able = Capabilities(model=MODEL, capabilities=(), max_prompt_tokens=64, max_rows=2, memory_budget_bytes=1)
    completions = [
        Completion(
            text="", token_ids=(), finish_reason=reason, applied=(), n_prompt_tokens=1, caveats=caveats
        )
        for reason, caveats in (("overflow", said), ("stop", ()))
    ]
    scores = [
        RowScore(
            token_ids=(1,), log_probabilities=(p,), top_token_ids=(top,), kl=(0.0,), applied=(), caveats=c
        )
        for p, top, c in ((nan, -1, said), (-1.0, 1, ()))
    ]
    answers = {
        "DescribeCapabilities": able,
        "Generate": Generation(completions=tuple(completions), model="m", weight_hash="w"),
        "Score": Scores(rows=tuple(scores), model="m", weight_hash="w"),
    }
    subject = SubjectProxy(cast(BlockingChannel, Channel(answers)))
    with pytest.raises(NonFiniteValueError, match="computes NaN"):
        subject.sample(("a", "b"), max_new_tokens=1, sampling=Sampling())
    with pytest.raises(NonFiniteValueError, match="computes NaN"):
        subject.score([ScoredRow(prompt="a", continuation="b")] * 2)

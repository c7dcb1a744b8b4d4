"""A subject without a model: answers items by a rule that a test writes down, one character a token."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.organisms import PARAMETERS
from trephine.domain.findings import AuditSpec
from trephine.domain.generation import Completion, RowScore, Sampling, ScoredRow
from trephine.domain.tokens import Token

QUESTION = re.compile(r"(\d)(\d)(\d)\|(\d)(?:\?(.))?>(\d)?$")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a question asks; `hint` is None without a numeric hint."""

    a: int
    b: int
    d: int
    inert: int
    hint: int | None


class ScriptedSubject:
    """Thinks by `step(task)` and answers by `answer(task, step)`; only what the auditor uses is there."""

    def __init__(self, step: Callable[[Task], int], answer: Callable[[Task, int], int]) -> None:
        self._step = step
        self._answer = answer
        self.rows = 0

    def tokenize(self, text: str) -> tuple[Token, ...]:
        """One token per character."""
        return tuple(Token(id=ord(c), raw=c.encode(), display=c) for c in text)

    def sample(
        self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling
    ) -> tuple[Completion, ...]:
        """Work on every question."""
        return tuple(self._completion(prompt) for prompt in prompts)

    def score(self, rows: Sequence[ScoredRow]) -> tuple[RowScore, ...]:
        """Say which character it would have written at every place, given those before it."""
        self.rows += len(rows)
        return tuple(self._scored(row) for row in rows)

    def _completion(self, prompt: str) -> Completion:
        task, _ = _task(prompt)
        step = self._step(task) % 10
        text = f"{step}={self._answer(task, step) % 10};"
        return Completion(
            text=text,
            token_ids=tuple(map(ord, text)),
            finish_reason="stop",
            applied=(),
            n_prompt_tokens=len(prompt),
        )

    def _scored(self, row: ScoredRow) -> RowScore:
        task, given = _task(row.prompt)
        forced = given if given is not None else int(row.continuation[0])
        written = f"={self._answer(task, forced) % 10};"
        if given is None:
            written = str(self._step(task) % 10) + written
        return RowScore(
            token_ids=tuple(map(ord, row.continuation)),
            log_probabilities=(0.0,) * len(row.continuation),
            top_token_ids=tuple(map(ord, written)),
            kl=(0.0,) * len(row.continuation),
            applied=(),
        )


def _task(prompt: str) -> tuple[Task, int | None]:
    match = QUESTION.search(prompt)
    if match is None:
        raise ValueError(f"no question: {prompt!r}")
    a, b, d, inert, hint, step = match.groups()
    numeric = int(hint) if hint and hint.isdigit() else None
    task = Task(a=int(a), b=int(b), d=int(d), inert=int(inert), hint=numeric)
    return task, None if step is None else int(step)


class ScriptedContext:
    """An `AuditContext` that remembers the progress."""

    def __init__(self, **changes: Any) -> None:
        parameters = {**PARAMETERS, **changes.pop("parameters", {})}
        self.spec = AuditSpec(auditor="unfaithful_reasoning", parameters=parameters, **changes)
        self.stages: list[str] = []

    def progress(self, stage: str, done: int, total: int) -> None:
        """Remember it."""
        self.stages.append(stage)

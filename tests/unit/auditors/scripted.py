"""A subject without a model: answers items by a rule that a test writes down, one character a token."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
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


class _Characters:
    """What writes and reads one character a token."""

    def tokenize(self, text: str) -> tuple[Token, ...]:
        """One token per character."""
        return tuple(Token(id=ord(c), raw=c.encode(), display=c) for c in text)


def _written(prompt: str, text: str) -> Completion:
    return Completion(
        text=text,
        token_ids=tuple(map(ord, text)),
        finish_reason="stop",
        applied=(),
        n_prompt_tokens=len(prompt),
    )


def _scored(row: ScoredRow, likeliest: Iterable[str]) -> RowScore:
    """Score a row by the character that would have been written at every place."""
    nothing = (0.0,) * len(row.continuation)
    return RowScore(
        token_ids=tuple(map(ord, row.continuation)),
        log_probabilities=nothing,
        top_token_ids=tuple(map(ord, likeliest)),
        kl=nothing,
        applied=(),
    )


class ScriptedSubject(_Characters):
    """Thinks by `step(task)` and answers by `answer(task, step)`; only what the auditor uses is there."""

    def __init__(self, step: Callable[[Task], int], answer: Callable[[Task, int], int]) -> None:
        self._step = step
        self._answer = answer
        self.rows = 0

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
        return _written(prompt, text)

    def _scored(self, row: ScoredRow) -> RowScore:
        task, given = _task(row.prompt)
        forced = given if given is not None else int(row.continuation[0])
        written = f"={self._answer(task, forced) % 10};"
        if given is None:
            written = str(self._step(task) % 10) + written
        return _scored(row, written)


def _task(prompt: str) -> tuple[Task, int | None]:
    match = QUESTION.search(prompt)
    if match is None:
        raise ValueError(f"no question: {prompt!r}")
    a, b, d, inert, hint, step = match.groups()
    numeric = int(hint) if hint and hint.isdigit() else None
    task = Task(a=int(a), b=int(b), d=int(d), inert=int(inert), hint=numeric)
    return task, None if step is None else int(step)


WORDED = re.compile(r"Add (\d+), (\d+) and (\d+) \(page (\d+)(?:, guess (\w+))?\):([^\n]*)$")


class WordedSubject(_Characters):
    """Works in the auditor's default wording, one character a token, and copies its numbers as asked.

    Args:
        step: The sum that it writes in the step.
        answer: The sum that it answers, given the value in the step.
        wording: How the answer is worded, of `{c}`, `{d}` and `{y}`.
        recited: What it writes for the step's value in the answer; unset, that value.
    """

    def __init__(
        self,
        step: Callable[[Task], int],
        answer: Callable[[Task, int], int],
        *,
        wording: str = " {c} + {d} = {y}.",
        recited: Callable[[Task, int], int] = lambda task, step: step,
    ) -> None:
        self._step = step
        self._answer = answer
        self._wording = wording
        self._recited = recited
        self.sampled = 0

    def sample(
        self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling
    ) -> tuple[Completion, ...]:
        """Go on from every prompt, up to the full stop."""
        self.sampled += len(prompts)
        return tuple(self._completion(prompt) for prompt in prompts)

    def score(self, rows: Sequence[ScoredRow]) -> tuple[RowScore, ...]:
        """Say which character it would have written at every place, given those before it."""
        return tuple(
            _scored(
                row, [self._next(row.prompt + row.continuation[:n]) for n in range(len(row.continuation))]
            )
            for row in rows
        )

    def _completion(self, prompt: str) -> Completion:
        text = ""
        while not text.endswith("."):
            text += self._next(prompt + text)
        return _written(prompt, text)

    def _next(self, context: str) -> str:
        match = WORDED.search(context)
        if match is None:
            raise ValueError(f"no question: {context!r}")
        a, b, d, inert, hint, work = match.groups()
        numeric = int(hint) if hint and hint.isdigit() else None
        task = Task(a=int(a), b=int(b), d=int(d), inert=int(inert), hint=numeric)
        step, comma, answer = work.partition(",")
        if not comma:
            return f" {a} + {b} = {self._step(task)},"[len(step) :][:1] or "?"
        value = int(step.rpartition("=")[2])
        y, c = self._answer(task, value), self._recited(task, value)
        return self._wording.format(c=c, d=d, y=y)[len(answer) :][:1] or "?"


class ScriptedContext:
    """An `AuditContext` that remembers the progress.

    Args:
        worded: In the auditor's own wording, not in the language of the organisms.
        changes: To the spec.
    """

    def __init__(self, *, worded: bool = False, **changes: Any) -> None:
        parameters = {**({} if worded else PARAMETERS), **changes.pop("parameters", {})}
        self.spec = AuditSpec(auditor="unfaithful_reasoning", parameters=parameters, **changes)
        self.stages: list[str] = []

    def progress(self, stage: str, done: int, total: int) -> None:
        """Remember it."""
        self.stages.append(stage)

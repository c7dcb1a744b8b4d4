"""The model under audit as an auditor sees it: every method is one read-only command to the service."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from trephine.domain.ablation import LogitTarget, MeasureAblation
from trephine.domain.activations import RankActivity, ReadActivations
from trephine.domain.arrays import Array
from trephine.domain.circuits import Circuit, DiscoverCircuit
from trephine.domain.commands import Command
from trephine.domain.errors import NonFiniteValueError, PromptTooLongError, ShapeMismatchError
from trephine.domain.generation import Completion, Generate, Row, RowScore, Sampling, Score, ScoredRow
from trephine.domain.interventions import Intervention
from trephine.domain.models import Capabilities, DescribeCapabilities, ModelInfo
from trephine.domain.sites import FeatureRef
from trephine.domain.tokens import ChatMessage, RenderChat, Token, Tokenize
from trephine.ipc import codec
from trephine.ipc.blocking import BlockingChannel

ResultT = TypeVar("ResultT")
EventT = TypeVar("EventT")

SUBJECT_COMMANDS = codec.by_name(
    (
        DescribeCapabilities,
        Tokenize,
        RenderChat,
        Generate,
        Score,
        ReadActivations,
        RankActivity,
        DiscoverCircuit,
        MeasureAblation,
    )
)
"""All that an auditor may ask for. None of them changes the model, reads a file or writes one."""

BATCH_CHARACTERS = 16_000
"""A batch ends before it holds more text than this; the engine splits it further, into short quanta."""
BATCH_ROWS = 32


class SubjectProxy:
    """The `AuditSubject` of an auditor's process. Not for use from more than one thread.

    Args:
        channel: The socket to the service, which runs the commands and refuses all others.
    """

    def __init__(self, channel: BlockingChannel) -> None:
        self._channel = channel
        self._known: Capabilities | None = None

    def describe(self) -> ModelInfo:
        """What the model is."""
        return self._capabilities().model

    def tokenize(self, text: str) -> tuple[Token, ...]:
        """Split a text as prompts are split."""
        return self._ask(Tokenize(text=text)).tokens

    def render_chat(self, messages: Sequence[ChatMessage]) -> str:
        """Apply the chat template, ending where the assistant speaks."""
        return self._ask(RenderChat(messages=tuple(messages))).text

    def sample(
        self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling
    ) -> tuple[Completion, ...]:
        """Continue every prompt, in batches of prompts of similar length.

        Raises:
            PromptTooLongError: If one exceeds the context; `text` in its context is its index.
            NonFiniteValueError: If the model overflows on one.
        """
        found: dict[int, Completion] = {}
        for number, batch in enumerate(self._batches([len(prompt) for prompt in prompts])):
            command = Generate(
                rows=tuple(Row(prompt=prompts[index]) for index in batch),
                max_new_tokens=max_new_tokens,
                sampling=_for_batch(sampling, number),
            )
            with _numbered(batch):
                completions = self._ask(command).completions
            _require_answers(completions)
            found.update(zip(batch, completions, strict=True))
        return tuple(found[index] for index in range(len(prompts)))

    def score(self, rows: Sequence[ScoredRow]) -> tuple[RowScore, ...]:
        """Log-probabilities of continuations, in batches of rows of similar length.

        Raises:
            PromptTooLongError: If one exceeds the context; `text` in its context is its index.
            NonFiniteValueError: If the model overflows on one.
        """
        found: dict[int, RowScore] = {}
        for batch in self._batches([len(row.prompt) + len(row.continuation) for row in rows]):
            with _numbered(batch):
                scores = self._ask(Score(rows=tuple(rows[index] for index in batch)))
            _require_answers(scores.rows)
            found.update(zip(batch, scores.rows, strict=True))
        return tuple(found[index] for index in range(len(rows)))

    def activations(self, text: str, features: Sequence[FeatureRef]) -> tuple[tuple[float, ...], ...]:
        """Per feature its activation at every position of the text."""
        return _rows(self._ask(ReadActivations(text=text, features=tuple(features))).values)

    def top_features(self, text: str, *, count: int) -> tuple[tuple[FeatureRef, int, float], ...]:
        """The strongest (feature, position, activation x decoder norm) at positions >= 1."""
        strongest = self._ask(RankActivity(text=text, count=count)).features
        return tuple((each.feature, each.position, each.contribution) for each in strongest)

    def attribute(self, prompt: str, target: str, against: str | None) -> Circuit:
        """Discover a circuit."""
        return self._ask(DiscoverCircuit(prompt=prompt, target=LogitTarget(token=target, against=against)))

    def effect_of(
        self, prompt: str, target: str, against: str | None, interventions: Sequence[Intervention]
    ) -> float:
        """Change of the target's logit (difference) at the last position, in logits."""
        command = MeasureAblation(
            prompt=prompt,
            target=LogitTarget(token=target, against=against),
            interventions=tuple(interventions),
            controls=None,
        )
        return self._ask(command).effects[0].change

    def _capabilities(self) -> Capabilities:
        if self._known is None:
            self._known = self._ask(DescribeCapabilities())
        return self._known

    def _ask(self, command: Command[ResultT, EventT]) -> ResultT:
        frame = self._channel.call(type(command).__name__, codec.to_tree(command))
        return codec.from_tree(command.result_type(), frame.body)

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield indices, shortest first, as many together as the caps allow, always at least one."""
        most = min(BATCH_ROWS, self._capabilities().max_rows) if lengths else 1
        batch: list[int] = []
        for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
            # The batch is padded to its longest row, which is this one.
            if batch and (len(batch) == most or (len(batch) + 1) * lengths[index] > BATCH_CHARACTERS):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch


def _require_answers(rows: Sequence[Completion] | Sequence[RowScore]) -> None:
    """Refuse what is no answer: an auditor would take an empty text, or NaN, for one."""
    for row in rows:
        overflows = (
            row.finish_reason == "overflow" if isinstance(row, Completion) else -1 in row.top_token_ids
        )
        if overflows:
            raise NonFiniteValueError("; ".join(row.caveats), field="model")


@contextmanager
def _numbered(batch: Sequence[int]) -> Iterator[None]:
    """Name a text that is too long by its place among those that were asked for, not in our batch."""
    try:
        yield
    except PromptTooLongError as error:
        row = error.context.get("row")
        if not isinstance(row, int):
            raise
        counts = {key: value for key, value in error.context.items() if key in ("tokens", "room", "limit")}
        raise PromptTooLongError(
            f"texts[{batch[row]}] of those that the auditor gives the model is too long: {error.message}",
            text=batch[row],
            **counts,
        ) from error


def _for_batch(sampling: Sampling, number: int) -> Sampling:
    """Give every batch its own seed: rows draw by (seed, row), so equal rows would repeat otherwise."""
    if number == 0:
        return sampling
    digest = hashlib.sha256(f"{sampling.seed}/{number}".encode()).digest()
    seed = int.from_bytes(digest[:4], "little") >> 1
    return Sampling(temperature=sampling.temperature, top_p=sampling.top_p, seed=seed)


def _rows(values: Array) -> tuple[tuple[float, ...], ...]:
    """Read a float32 `(rows, columns)` array without numpy.

    Raises:
        ShapeMismatchError: If it is anything else.
    """
    if values.dtype != "float32" or len(values.shape) != 2:
        raise ShapeMismatchError(f"expected a float32 table, got {values.dtype} of shape {values.shape}")
    numbers: array[Any] = array("f", values.data)
    if sys.byteorder == "big":
        numbers.byteswap()
    rows, columns = values.shape
    return tuple(tuple(numbers[row * columns : (row + 1) * columns]) for row in range(rows))

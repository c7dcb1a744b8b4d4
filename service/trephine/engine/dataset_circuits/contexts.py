"""Contexts as token ids and linear read-outs; what is wrong with a row is told by its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.dataset_circuits import (
    DiscoverDatasetCircuit,
    Estimator,
    Example,
    NodeAblation,
    PositionRule,
)
from trephine.domain.errors import InvalidRequestError, PromptTooLongError, TrephineError
from trephine.engine.models.hosted import HostedModel

MAX_TOKENS = 512
"""Of one context: attention of a pack is kept as one square."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One example, ready to run."""

    text: str
    ids: tuple[int, ...]
    twin: tuple[int, ...] | None
    direction: Tensor
    """`(d_model,)`, the metric on the final norm's output: mean right less mean wrong row of W_U."""
    bias: float
    answers: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    """Right and wrong next tokens, ascending."""


def read_contexts(
    hosted: HostedModel, examples: Sequence[Example], positions: PositionRule, *, split: str
) -> list[Context]:
    """Tokenize a split.

    Raises:
        TrephineError: What is wrong with an example, with `split[number].column` as its field.
    """
    contexts = []
    for number, example in enumerate(examples):
        try:
            contexts.append(_read(hosted, example))
        except TrephineError as error:
            inner = error.context.pop("field", "clean")
            error.context["field"] = f"{split}[{number}].{inner}"
            error.message = f"{split} context {number}: {error.message}"
            raise
    if positions is PositionRule.KEPT:
        _check_aligned(contexts, split)
    return contexts


def read_splits(hosted: HostedModel, command: DiscoverDatasetCircuit) -> tuple[list[Context], list[Context]]:
    """Read both splits and hold them against each other.

    Raises:
        TrephineError: As `read_contexts`, `check_apart` and `check_same_length`.
    """
    training = read_contexts(hosted, command.training, command.positions, split="training")
    held_out = read_contexts(hosted, command.held_out, command.positions, split="held_out")
    check_apart(training, held_out)
    if command.positions is PositionRule.KEPT:
        check_same_length(training, held_out)
    return training, held_out


def patch_of(command: DiscoverDatasetCircuit, training: Sequence[Context]) -> NodeAblation:
    """Return what effects are estimated with, where that is not said: twins, if every context has one."""
    paired = all(context.twin is not None for context in training)
    return command.patch or (NodeAblation.RESAMPLE if paired else NodeAblation.ZERO)


def effects_shared(command: DiscoverDatasetCircuit, training: Sequence[Context]) -> str:
    """Say through what a context's effects depend on the other training contexts; empty: not at all."""
    patch = patch_of(command, training)
    if patch is NodeAblation.MEAN:
        return "patches are means over all training contexts"
    if patch is NodeAblation.RESAMPLE and any(context.twin is None for context in training):
        return "contexts without a twin are patched with others"
    if command.estimator is Estimator.EXACT:
        return "all training contexts choose which nodes are measured"
    return ""


def check_apart(training: Sequence[Context], held_out: Sequence[Context]) -> None:
    """Refuse texts of both splits, and contexts, that become the same tokens however they are written.

    Raises:
        InvalidRequestError: With `split[number]` as its field.
    """
    seen = {ids: number for number, context in enumerate(training) for ids in _texts(context)}
    for number, context in enumerate(held_out):
        for ids in _texts(context):
            if ids in seen:
                raise InvalidRequestError(
                    f"held-out context {number} has the tokens of a text of training context {seen[ids]}, "
                    "though it is written otherwise: the model reads the same. Put both on one side, or "
                    "leave one out",
                    field=f"held_out[{number}]",
                )
    for split, contexts in (("training", training), ("held_out", held_out)):
        _check_own(split, contexts)


def _check_own(split: str, contexts: Sequence[Context]) -> None:
    known: dict[object, int] = {}
    for number, context in enumerate(contexts):
        if context.twin == context.ids:
            raise InvalidRequestError(
                f"{split} context {number} and its twin are the same tokens: {context.text[:60]!r}. Give "
                "another twin, or none",
                field=f"{split}[{number}].corrupted",
            )
        key = (context.ids, context.twin, context.answers)
        if known.setdefault(key, number) != number:
            raise InvalidRequestError(
                f"{split} context {number} becomes the same tokens as context {known[key]}: what is repeated "
                "is no further evidence. Leave it out",
                field=f"{split}[{number}]",
            )


def _texts(context: Context) -> tuple[tuple[int, ...], ...]:
    return (context.ids,) if context.twin is None else (context.ids, context.twin)


def check_same_length(training: Sequence[Context], held_out: Sequence[Context]) -> None:
    """Refuse splits of different lengths where positions are kept."""
    if len(training[0].ids) != len(held_out[0].ids):
        raise InvalidRequestError(
            f"training contexts have {len(training[0].ids)} tokens and held-out ones {len(held_out[0].ids)}; "
            "positions can be kept only if all have the same number. Use positions `summed`",
            field="held_out",
        )


def _read(hosted: HostedModel, example: Example) -> Context:
    if not example.answers:
        raise InvalidRequestError("an answer is missing", field="answers")
    right, wrong = _answers(hosted, example)
    direction, bias = _readout(hosted, right, wrong)
    return Context(
        text=example.clean,
        ids=_encode(hosted, example.clean, "clean"),
        twin=None if example.corrupted is None else _encode(hosted, example.corrupted, "corrupted"),
        answers=(tuple(sorted(right)), tuple(sorted(wrong))),
        direction=direction,
        bias=bias,
    )


def _encode(hosted: HostedModel, text: str, field: str) -> tuple[int, ...]:
    try:
        ids = tuple(hosted.encode(text))
    except TrephineError as error:
        raise error.with_field(field) from None
    if len(ids) < 2:
        raise InvalidRequestError(
            f"{text!r} has one token; position 0 is an attention sink and no node lies there, so that a "
            "context needs at least two. Begin every context with the model's first token",
            field=field,
        )
    if len(ids) > MAX_TOKENS:
        raise PromptTooLongError(
            f"{len(ids)} tokens; contexts of a dataset have at most {MAX_TOKENS}: shorten it",
            field=field,
            tokens=len(ids),
            room=0,
            limit=MAX_TOKENS,
        )
    return ids


def _answers(hosted: HostedModel, example: Example) -> tuple[list[int], list[int]]:
    right = _resolve(hosted, example.answers, "answers")
    wrong = _resolve(hosted, example.wrong, "wrong")
    if both := set(right) & set(wrong):
        raise InvalidRequestError(
            f"token {both.pop()} is both a right and a wrong answer; name another one", field="wrong"
        )
    return right, wrong


def _readout(hosted: HostedModel, right: Sequence[int], wrong: Sequence[int]) -> tuple[Tensor, float]:
    architecture = hosted.architecture
    direction = _mean(architecture.W_U, right) - _mean(architecture.W_U, wrong)
    if architecture.b_U is None:
        return direction, 0.0
    return direction, float(_mean(architecture.b_U, right) - _mean(architecture.b_U, wrong))


def _resolve(hosted: HostedModel, texts: Sequence[str], field: str) -> list[int]:
    try:
        return [hosted.resolve_target(text) for text in texts]
    except TrephineError as error:
        raise error.with_field(field) from None


def _mean(rows: Tensor, tokens: Sequence[int]) -> Tensor:
    dtype = torch.promote_types(rows.dtype, torch.float32)
    return rows[list(tokens)].to(dtype).mean(0) if tokens else rows.mean(0, dtype=dtype)


def _check_aligned(contexts: Sequence[Context], split: str) -> None:
    length = len(contexts[0].ids)
    for number, context in enumerate(contexts):
        for column, ids in (("clean", context.ids), ("corrupted", context.twin)):
            if ids is not None and len(ids) != length:
                raise InvalidRequestError(
                    f"{split} context {number} has {len(ids)} tokens in {column}, context 0 has {length}: "
                    "where positions are kept, a node is a feature at a position, so that all must have the "
                    "same number of tokens. Use positions `summed`, or leave the context out",
                    field=f"{split}[{number}].{column}",
                )

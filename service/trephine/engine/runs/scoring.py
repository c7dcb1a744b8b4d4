"""Log-probabilities of given continuations, and what interventions do to them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.errors import TrephineError
from trephine.domain.generation import RowScore, Score, Scores
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session
from trephine.engine.replacements.contexts import beginning_caveats, sets_of
from trephine.engine.runs.batches import batches, check_row_count
from trephine.engine.runs.divergence import kl_divergence
from trephine.engine.runs.overflow import is_overflow, marked, reads, require_an_answer, told
from trephine.engine.runs.prefixes import Prefix, continue_prefix, read_prefix, shared_tokens
from trephine.engine.runs.rows import RowInput, RowsOutput, check_row, run_rows

BATCH_ROWS = 32
BATCH_TOKENS = 256
"""Of a quantum. One longer row is a quantum of its own."""


def score(session: Session, command: Score) -> Generator[Progress | None, None, Scores]:
    """Score every row, in batches of one forward pass each.

    Prompt and continuation are tokenised apart, so that the border between them is where it was put.
    The prompt's tokens are the prompt phase, those of the continuation the generation phase.

    Raises:
        EmptyPromptError: If a prompt or continuation has no token.
        PromptTooLongError: If together they exceed the context.
        NothingMatchedError: If an intervention wrote nothing in its row.
        NonFiniteValueError: If every row overflows; where some do not, those that do say so.
    """
    hosted = session.require_model().pinned()
    check_row_count(len(command.rows))
    rows = [_encode(hosted, command, index) for index in range(len(command.rows))]
    caveats = [beginning_caveats(hosted, sets_of(row.interventions), row.ids) for row in rows]
    scores: list[RowScore] = []
    shared = shared_tokens(rows)
    prefix = read_prefix(hosted, rows[0].ids[:shared]) if shared else None
    lengths = [len(row.ids) - shared for row in rows]
    for part in batches(lengths, max_tokens=BATCH_TOKENS, max_rows=BATCH_ROWS):
        yield Progress(stage="score", done=len(scores), total=len(rows))
        scores += yield from _score_batch(hosted, [rows[i] for i in part], part.start, prefix)
    broken = [_overflow(hosted, number, *of) for number, of in enumerate(zip(rows, scores, strict=True))]
    require_an_answer(broken)
    return Scores(
        rows=tuple(
            replace(row, caveats=(*said, overflow) if overflow else said)
            for row, said, overflow in zip(scores, caveats, broken, strict=True)
        ),
        model=hosted.info.name,
        weight_hash=hosted.info.weight_hash,
    )


def _encode(hosted: HostedModel, command: Score, index: int) -> RowInput:
    row, field = command.rows[index], f"rows[{index}].prompt"
    try:
        prompt = hosted.encode(row.prompt)
        field = f"rows[{index}].continuation"
        ids = [*prompt, *hosted.encode(row.continuation)]
        encoded = RowInput(ids, row.interventions, len(prompt), row.from_edits)
        check_row(hosted, encoded)
    except TrephineError as error:
        error.context.setdefault("row", index)
        raise error.with_field(field) from None
    return encoded


def _score_batch(
    hosted: HostedModel, rows: Sequence[RowInput], first_row: int, prefix: Prefix | None
) -> Generator[None, None, list[RowScore]]:
    kept = 1 + max(len(row.ids) - row.prompt_length for row in rows)
    if prefix is None:
        plain = run_rows(hosted, [RowInput(row.ids) for row in rows], keep_last=kept).logits
    else:
        plain = list(continue_prefix(hosted, prefix, rows, keep_last=kept).logits)
    changed_rows = [i for i, row in enumerate(rows) if row.interventions]
    changed: RowsOutput | None = None
    if changed_rows:
        yield
        changed = _intervened(hosted, rows, changed_rows, first_row, kept)
    scores = [_row_score(row, logits) for row, logits in zip(rows, plain, strict=True)]
    for place, i in enumerate(changed_rows if changed else ()):
        if changed is not None:
            (stream,) = changed.values[place].values()
            found = _row_score(rows[i], plain[i], marked(changed.logits[place], stream))
            scores[i] = replace(found, applied=changed.applied[place])
    return scores


def _intervened(
    hosted: HostedModel, rows: Sequence[RowInput], chosen: Sequence[int], first_row: int, kept: int
) -> RowsOutput:
    try:
        intervened = [rows[i] for i in chosen]
        return run_rows(hosted, intervened, reads=reads(hosted, intervened), keep_last=kept)
    except TrephineError as error:
        place = error.context.get("row")
        if isinstance(place, int):  # of this batch; the caller counts over all rows
            error.context["row"] = first_row + chosen[place]
        raise


def _row_score(row: RowInput, plain: Tensor, changed: Tensor | None = None) -> RowScore:
    """Score a continuation by the logits of the places before each of its tokens."""
    token_ids = list(row.ids[row.prompt_length :])
    before = slice(-len(token_ids) - 1, -1)
    logits = (plain if changed is None else changed)[before]
    log_p = torch.log_softmax(logits.to(torch.float64), -1)
    kl = torch.zeros(len(token_ids)) if changed is None else kl_divergence(plain[before], logits)
    chosen = log_p[torch.arange(len(token_ids)), torch.tensor(token_ids)]
    return RowScore(
        token_ids=tuple(token_ids),
        log_probabilities=tuple(chosen.tolist()),
        top_token_ids=tuple(logits.argmax(-1).masked_fill(is_overflow(logits), -1).tolist()),
        kl=tuple(kl.tolist()),
        applied=(),
    )


def _overflow(hosted: HostedModel, number: int, row: RowInput, found: RowScore) -> str:
    """Say where a row overflows; nothing if it does not."""
    if -1 not in found.top_token_ids:
        return ""
    first = found.top_token_ids.index(-1)
    return told(hosted, number, row, f"at its continuation's token {first}" if first else "on its prompt")


HANDLERS: dict[type, Handler] = {Score: score}

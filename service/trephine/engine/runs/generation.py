"""Continuing rows: one prompt pass, then one decode step per quantum over a key-value cache.

Rows that have ended leave the batch. Interventions act in the prompt pass and in every decode step,
wherever their selector says.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from trephine.domain.errors import TrephineError, UnsupportedInterventionError
from trephine.domain.generation import Completion, FinishReason, Generate, Generation, TokenEvent
from trephine.domain.interventions import ErrorTerm, Intervention, PatternMode, Phase, Resample
from trephine.engine.interventions.selection import Span
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.session import Handler, Session
from trephine.engine.models.spelling import Transcript
from trephine.engine.replacements.contexts import beginning_caveats, sets_of
from trephine.engine.runs.batches import batches, check_row_count
from trephine.engine.runs.forward import Batch, Pass, forward, left_padded
from trephine.engine.runs.overflow import marked_last, reads, require_an_answer, told
from trephine.engine.runs.plans import RowPlan
from trephine.engine.runs.prefixes import Prefix, continue_prefix, read_prefix, shared_tokens
from trephine.engine.runs.refusals import is_of_set
from trephine.engine.runs.rows import RowInput, check_row, frozen_patterns, naming, plan_rows, require_matches
from trephine.engine.runs.sampling import Sampler

BATCH_ROWS = 32
BATCH_TOKENS = 2048


def generate(session: Session, command: Generate) -> Generator[TokenEvent | None, None, Generation]:
    """Continue every row; stream every token.

    Raises:
        PromptTooLongError: If a prompt and its new tokens exceed the context.
        NothingMatchedError: If an intervention wrote nothing in its row.
        NonFiniteValueError: If every row overflows; where some do not, those that do end and say so.
        TrephineError: If a prompt is empty or an intervention is refused.
    """
    hosted = session.require_model().pinned()
    check_row_count(len(command.rows))
    rows = [_prompt(hosted, command, index) for index in range(len(command.rows))]
    caveats = [beginning_caveats(hosted, sets_of(row.interventions), row.ids) for row in rows]
    completions: list[Completion] = []
    shared = shared_tokens(rows)
    prefix = read_prefix(hosted, rows[0].ids[:shared]) if shared else None
    lengths = [len(row.ids) - shared for row in rows]
    for part in batches(lengths, max_tokens=BATCH_TOKENS, max_rows=BATCH_ROWS):
        completions += yield from _generate_batch(hosted, command, rows, part, prefix)
    require_an_answer(["".join(row.caveats) for row in completions])
    return Generation(
        completions=tuple(
            replace(row, caveats=(*said, *row.caveats))
            for row, said in zip(completions, caveats, strict=True)
        ),
        model=hosted.info.name,
        weight_hash=hosted.info.weight_hash,
    )


@dataclass(slots=True)
class _Writer:
    """One row while it is being written."""

    row: int
    input: RowInput
    plan: RowPlan
    sampler: Sampler
    transcript: Transcript
    max_new_tokens: int
    new_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def take(self, hosted: HostedModel, logits: Tensor) -> TokenEvent | None:
        """Choose the next token out of `(d_vocab,)` logits; None ends the row, for they overflow."""
        chosen = self.sampler.choose(logits)
        if chosen is None:
            self.finish_reason = "overflow"
            return None
        token, log_probability = chosen
        self.new_ids.append(token)
        if token in hosted.info.eos_token_ids:
            self.finish_reason = "stop"
        elif len(self.new_ids) == self.max_new_tokens:
            self.finish_reason = "length"
        text = self.transcript.push(token, last=self.finish_reason is not None)
        return TokenEvent(
            row=self.row,
            step=len(self.new_ids) - 1,
            token=hosted.token(token),
            text=text,
            log_probability=log_probability,
        )

    def completion(self, hosted: HostedModel) -> Completion:
        """Return the finished row."""
        where = f"after {len(self.new_ids)} new tokens" if self.new_ids else "on its prompt"
        return Completion(
            text=self.transcript.text,
            token_ids=tuple(self.new_ids),
            finish_reason=self.finish_reason or "length",
            applied=self.plan.applied(),
            caveats=(told(hosted, self.row, self.input, where),) if self.finish_reason == "overflow" else (),
            n_prompt_tokens=len(self.input.ids),
        )


def _prompt(hosted: HostedModel, command: Generate, index: int) -> RowInput:
    """Encode a row and check it, before anything is computed."""
    row = command.rows[index]
    try:
        ids = hosted.encode(row.prompt, room=command.max_new_tokens)
        prompt = RowInput(ids, row.interventions, from_edits=row.from_edits)
        check_row(hosted, prompt, room=command.max_new_tokens)
        for number, intervention in enumerate(row.interventions):
            with naming(prompt, number):
                _check_generated(intervention)
    except TrephineError as error:
        error.context.setdefault("row", index)
        raise error.with_field(f"rows[{index}].prompt") from None
    return prompt


def _check_generated(intervention: Intervention) -> None:
    """Refuse what only makes sense where the text is known beforehand."""
    if Phase.GENERATION not in intervention.selector.phases:
        return
    if intervention.mode.patterns is PatternMode.FROZEN:
        raise UnsupportedInterventionError(
            "mode.patterns: tokens still to be generated have no clean run whose patterns could be kept; "
            "restrict selector.phases to `prompt`",
            field="mode.patterns",
        )
    if intervention.error_term is ErrorTerm.FROZEN and is_of_set(intervention):
        raise UnsupportedInterventionError(
            "error_term: tokens still to be generated have no clean run whose error could be kept; "
            "restrict selector.phases to `prompt`, or leave it `live`",
            field="error_term",
        )
    if isinstance(intervention.operation, Resample):
        raise UnsupportedInterventionError(
            "operation.resample_donor: a donor has no position for tokens still to be generated; "
            "restrict selector.phases to `prompt`",
            field="operation.resample_donor",
        )


def _generate_batch(
    hosted: HostedModel, command: Generate, rows: Sequence[RowInput], part: range, prefix: Prefix | None
) -> Generator[TokenEvent | None, None, list[Completion]]:
    inputs = [rows[i] for i in part]
    plans = plan_rows(hosted, inputs)
    everyone = [
        _Writer(
            row=index,
            input=row,
            plan=plan,
            sampler=Sampler(command.sampling, index),
            transcript=Transcript(hosted.spelling),
            max_new_tokens=command.max_new_tokens,
        )
        for index, row, plan in zip(part, inputs, plans, strict=True)
    ]
    yield None
    cache, mask, logits = _prompt_pass(hosted, everyone, prefix)
    writing = everyone
    while writing:
        for writer, row_logits in zip(writing, logits, strict=True):
            event = writer.take(hosted, row_logits)
            if event is not None:
                yield event
        going = [i for i, writer in enumerate(writing) if writer.finish_reason is None]
        writing, mask = _leave(writing, cache, mask, going)
        if writing:
            mask = torch.cat([mask, mask.new_ones(len(writing), 1)], dim=1)
            logits = _decode_step(hosted, writing, cache, mask)
    # Rows that overflowed had no time to match.
    whole = [writer for writer in everyone if writer.finish_reason != "overflow"]
    require_matches([w.plan for w in whole], [w.input for w in whole], numbers=[w.row for w in whole])
    return [writer.completion(hosted) for writer in everyone]


def _prompt_pass(
    hosted: HostedModel, writers: Sequence[_Writer], prefix: Prefix | None
) -> tuple[Any, Tensor, Tensor]:
    """Run all prompts; return the cache, the attention mask and logits `(rows, d_vocab)`."""
    if prefix is not None:
        continued = continue_prefix(hosted, prefix, [writer.input for writer in writers], keep_last=1)
        return continued.cache, continued.batch.attention_mask, continued.logits[:, -1]
    batch = left_padded(hosted, [(writer.input.ids, len(writer.input.ids)) for writer in writers])
    tape = frozen_patterns(hosted, batch, [writer.input.interventions for writer in writers])
    cache = DynamicCache(config=hosted.model.config)
    plans = [writer.plan for writer in writers]
    watched = reads(hosted, [writer.input for writer in writers])
    request = Pass(plans=plans, reads=watched, tape=tape, cache=cache, keep_last=1)
    logits = marked_last(forward(hosted, batch, request)[:, -1], request.values, batch.spans)
    prompt_only = [
        {i for i in w.input.own if Phase.GENERATION not in w.input.interventions[i].selector.phases}
        for w in writers
    ]
    inputs, numbers = [w.input for w in writers], [w.row for w in writers]
    require_matches(plans, inputs, only=prompt_only, numbers=numbers)
    return cache, batch.attention_mask, logits


def _leave(
    writing: Sequence[_Writer], cache: Any, mask: Tensor, going: Sequence[int]
) -> tuple[list[_Writer], Tensor]:
    """Take the rows that have ended out of cache and mask."""
    if going and len(going) < len(writing):
        rows = torch.tensor(going, device=mask.device)
        cache.batch_select_indices(rows)
        mask = mask[rows]
    return [writing[i] for i in going], mask


def _decode_step(hosted: HostedModel, writing: Sequence[_Writer], cache: Any, mask: Tensor) -> Tensor:
    """Feed every row its newest token; return logits `(rows, d_vocab)`."""
    device = hosted.model.device
    spans = tuple(
        Span(
            row=row,
            ids=writer.new_ids[-1:],
            first=len(writer.input.ids) + len(writer.new_ids) - 1,
            offset=0,
            n_prompt=len(writer.input.ids),
        )
        for row, writer in enumerate(writing)
    )
    batch = Batch(
        input_ids=torch.tensor([list(span.ids) for span in spans], device=device),
        attention_mask=mask,
        position_ids=torch.tensor([[span.first] for span in spans], device=device),
        spans=spans,
    )
    plans = [writer.plan for writer in writing]
    request = Pass(plans=plans, reads=reads(hosted, [writer.input for writer in writing]), cache=cache)
    return marked_last(forward(hosted, batch, request)[:, -1], request.values, spans)


HANDLERS: dict[type, Handler] = {Generate: generate}
